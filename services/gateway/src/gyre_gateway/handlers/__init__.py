"""What the gateway does with a request or an event."""
