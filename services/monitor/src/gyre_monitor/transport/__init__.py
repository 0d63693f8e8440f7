"""The doors of the monitor: events, questions, spans."""
