"""The deployer: takes a candidate to all traffic step by step, or back; its log is its state."""
