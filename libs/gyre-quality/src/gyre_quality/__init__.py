"""Data-quality checks for snapshots and streams: drift, label noise, personal data, completeness.

Pure: arrays in, `Check`s out, no network. cleanlab and presidio are imported only where they are used (extras `labels`,
`pii`).
"""
