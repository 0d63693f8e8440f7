"""What the monitor knows by itself: who is credited with what, when to train, what belongs together."""
