"""Kafka as the mesh uses it: producers, the consumer, views of topics, and their creation."""

from gyre_runtime.kafka._connection import Fenced
from gyre_runtime.kafka.consumer import Consumer, ConsumerOptions
from gyre_runtime.kafka.producer import Producer
from gyre_runtime.kafka.topics import DeclaredTopic, create_topics, ensure_topics
from gyre_runtime.kafka.transactions import Transaction, TransactionalProducer
from gyre_runtime.kafka.view import RecordReader, View, read_compacted, read_log, read_records

__all__ = [
    "Consumer",
    "ConsumerOptions",
    "DeclaredTopic",
    "Fenced",
    "Producer",
    "RecordReader",
    "Transaction",
    "TransactionalProducer",
    "View",
    "create_topics",
    "ensure_topics",
    "read_compacted",
    "read_log",
    "read_records",
]
