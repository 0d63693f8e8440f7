"""Kafka as the mesh uses it: producers, the consumer, views of topics, and their creation."""

from gyre_runtime.kafka._connection import Fenced, require_fits
from gyre_runtime.kafka._delivery import StoreLostState
from gyre_runtime.kafka._names import DeclaredTopic, start_whole
from gyre_runtime.kafka._options import ConsumerOptions
from gyre_runtime.kafka._undecodable import UndecodableRecord
from gyre_runtime.kafka.consumer import Consumer
from gyre_runtime.kafka.logs import LogReplaced, accept_log
from gyre_runtime.kafka.producer import Producer
from gyre_runtime.kafka.topic_configs import ConfigDifference, config_differences, mend_configs
from gyre_runtime.kafka.topics import create_topics, ensure_topics, existing_topics
from gyre_runtime.kafka.transactions import Transaction, TransactionalProducer
from gyre_runtime.kafka.view import RecordReader, Start, View, read_compacted, read_log, read_newest, read_records
from gyre_runtime.kafka.work import ConsumerWork

__all__ = [
    "ConfigDifference",
    "Consumer",
    "ConsumerOptions",
    "ConsumerWork",
    "DeclaredTopic",
    "Fenced",
    "LogReplaced",
    "Producer",
    "RecordReader",
    "Start",
    "StoreLostState",
    "Transaction",
    "TransactionalProducer",
    "UndecodableRecord",
    "View",
    "accept_log",
    "config_differences",
    "create_topics",
    "ensure_topics",
    "existing_topics",
    "mend_configs",
    "read_compacted",
    "read_log",
    "read_newest",
    "read_records",
    "require_fits",
    "start_whole",
]
