"""The gRPC door of the service, and the triggers from Kafka."""
