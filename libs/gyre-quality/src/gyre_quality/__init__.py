"""Data-quality checks for snapshots and streams: drift, label noise, personal data, completeness."""
