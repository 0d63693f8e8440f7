"""The warehouse of a loop: its Iceberg tables, their schemas and offsets, and their rows as events."""
