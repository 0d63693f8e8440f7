"""Kafka to Redis: batches of events become features, exactly once."""
