"""SQL and Kafka, as the monitor uses them."""
