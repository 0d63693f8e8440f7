"""The local stack: real Kafka, Redis, Triton, Prometheus, MLflow and the services as native processes.

One recipe for each component (`gyre_local.components`) serves the supervisor behind `gyre-local` and the test fixtures
of `gyre_local.testing` alike, so that what tests run against is what the stack runs.
"""
