"""The features and inference services and Kafka, behind the ports."""
