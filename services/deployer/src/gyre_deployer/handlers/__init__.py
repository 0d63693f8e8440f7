"""What the deployer does: keeps the state, takes the next step, obeys a person."""
