"""What a request is, which model it gets, and how its candidates are ordered; no I/O."""
