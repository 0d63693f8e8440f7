"""The inference service: scores rows of features on Triton, with exactly the version that the caller names."""
