"""Turns a loop once, from history to a promoted model: shared by the examples, which only bring their data."""
