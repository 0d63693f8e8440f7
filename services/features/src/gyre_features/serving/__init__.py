"""The read side over gRPC."""
