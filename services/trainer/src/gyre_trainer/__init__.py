"""The trainer: from a trigger to a candidate, by way of a snapshot, a training set, a gate, training and evaluation."""
