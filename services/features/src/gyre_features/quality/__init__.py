"""Continuous data quality: windows of the raw stream, sketches of served features, checks of both, and reports."""
