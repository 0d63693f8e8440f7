# ruff: noqa: INP001 - a part of docs/generate.py
"""The names that clients, producers and operators hold on to, read from their declarations."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from gyre.deployer.v1 import deployer_pb2
from gyre.events.v1 import behavior_pb2, features_pb2, models_pb2, monitor_pb2, privacy_pb2
from gyre.features.v1 import data_quality_pb2, parity_pb2
from gyre.features.v1 import features_pb2 as features_api_pb2
from gyre.gateway.v1 import gateway_pb2
from gyre.inference.v1 import inference_pb2
from gyre.monitor.v1 import monitor_pb2 as monitor_api_pb2
from gyre.trainer.v1 import trainer_pb2
from gyre_core.keys import KEYS
from gyre_core.spec import json_schema
from gyre_core.topics import TOPICS
from gyre_runtime.metrics import METRICS
from gyre_warehouse.tables import columns_of_tables

ROOT = Path(__file__).resolve().parent.parent
NAMES_FILE = ROOT / "docs" / "reference" / "contract-names.txt"
FILES: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR
    for module in (
        behavior_pb2, features_pb2, models_pb2, monitor_pb2, privacy_pb2, gateway_pb2, features_api_pb2,
        data_quality_pb2, parity_pb2, inference_pb2, trainer_pb2, deployer_pb2, monitor_api_pb2,
    )
)  # fmt: skip
NOT_SERVED = "Not served yet"
_SERVICE = re.compile(r"((?:^//[^\n]*\n)*)^service (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_RPC = re.compile(r"((?:^ *//[^\n]*\n)*)^ *rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)", re.MULTILINE)
_COMMENT = re.compile(r"^ *// ?", re.MULTILINE)


def contract_names(variables: Iterable[str]) -> list[str]:
    """Every name of the contract, `kind name`, sorted; `variables` are the settings of all processes."""
    found = {f"setting {name}" for name in variables}
    found |= {f"topic {each.suffix}" for each in TOPICS}
    found |= {f"key {each.name}" for each in KEYS}
    found |= {f"metric {each.name}{{{','.join(each.labels)}}}" for each in METRICS}
    found |= {f"column {table}.{column}" for table, columns in columns_of_tables().items() for column in columns}
    found |= {f"gyre.yaml {path}" for path in _spec_paths(json_schema())}
    found |= {f"rpc {full_name}" for full_name, _, _ in rpcs()}
    for file in FILES:
        for message in file.message_types_by_name.values():
            found |= set(_message_names(message))
        for enum in file.enum_types_by_name.values():
            found |= set(_enum_names(enum))
    return sorted(found)


def kept_names(variables: Iterable[str]) -> list[str]:
    """The names of the contract, and those that it once had: only a person takes one from the file."""
    known = set(NAMES_FILE.read_text().splitlines()) if NAMES_FILE.exists() else set()
    return sorted(known | set(contract_names(variables)))


def rpcs() -> Iterator[tuple[str, str, bool]]:
    """Full name, meaning and whether it is served of each RPC, from the protos and their comments."""
    for path in sorted((ROOT / "proto").rglob("*.proto")):
        text = path.read_text()
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        for lead, service, body in _SERVICE.findall(text):
            for comment, method, *_ in _RPC.findall(body):
                meaning = " ".join(_COMMENT.sub("", comment or lead).split())
                name = f"{package.group(1) if package else ''}.{service}/{method}"
                yield name, meaning, NOT_SERVED not in f"{lead}{comment}"


def _message_names(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        yield f"field {message.full_name}.{field.name} = {field.number}"
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from _message_names(nested)
    for enum in message.enum_types:
        yield from _enum_names(enum)


def _enum_names(enum: EnumDescriptor) -> Iterator[str]:
    for value in enum.values:
        yield f"enum {enum.full_name}.{value.name} = {value.number}"


def _spec_paths(schema: Mapping[str, Any]) -> Iterator[str]:
    """The properties that `gyre.yaml` may hold, by the definition that holds them."""
    for name, definition in {"": schema, **schema.get("$defs", {})}.items():
        for field in definition.get("properties", {}):
            yield f"{name or 'gyre.yaml'}.{field}"
