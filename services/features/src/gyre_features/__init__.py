"""The features service: a stream into Redis, an archive into Iceberg, a watch over quality, and the read side."""
