"""The data-quality gate of a training run: checks of what was read, then of what it makes a training set of."""
