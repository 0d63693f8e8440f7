"""What a rollout is and what follows from what: pure, without I/O."""
