"""Kafka, Triton and the folders of artefacts and models, behind the ports."""
