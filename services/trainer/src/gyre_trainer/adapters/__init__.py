"""SQLite, the warehouse, Kafka, the job's process and MLflow, behind the ports."""
