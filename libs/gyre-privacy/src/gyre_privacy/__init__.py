"""What may be kept of a person: masking of events and requests, and redaction of texts."""
