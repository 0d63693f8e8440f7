"""Continuous data quality: windows of the raw stream, sketches of served features, what checks say of both, and reports."""
