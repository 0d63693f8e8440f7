"""The inference service: scores candidates with exactly the model version that the caller names."""
