"""The Python SDK of Gyre and its command line, `gyre`."""
