"""The archive of the stream in Iceberg tables, and their maintenance."""
