"""The gateway's gRPC service."""
