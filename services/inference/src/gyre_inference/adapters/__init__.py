"""Triton and Kafka, behind the ports."""
