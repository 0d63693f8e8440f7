"""The gRPC door of the service."""
