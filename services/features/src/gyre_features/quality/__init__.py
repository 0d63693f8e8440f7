"""Continuous data quality: windowed counts and ranges of the raw stream, and the report that answers from them."""
