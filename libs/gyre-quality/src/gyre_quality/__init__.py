"""Data-quality checks for snapshots and streams: drift, label noise, completeness, sequences.

Pure: arrays in, `Check`s out, no network. cleanlab is imported only where it is used (the extra `labels`).
"""
