# ruff: noqa: INP001 - a script of its own, in no package
"""Writes docs/reference from the declarations in the code, so that no page says something else than what runs.

`make docs` writes the pages; `make lint` runs this with `--check`, which fails and names each page that is not current.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from contracts import NAMES_FILE, NOT_SERVED, kept_names, rpcs
from gyre_core.keys import STORE_FORMAT
from gyre_core.reference import keys_table, markdown_table, topics_table
from gyre_core.spec import Feature, Field, FieldFeature, json_schema
from gyre_core.topics import DEAD_LETTER_SUFFIX
from gyre_local.ports import PORTS_FILE, load_ports
from gyre_privacy.stores import FILES_OF_OPERATORS, STORES
from gyre_runtime.environment import TOLERATED
from gyre_runtime.metrics import METRICS, Metric
from gyre_runtime.settings import PARTS, SERVICES, ServiceSettings, Settings, variable_of

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Written by docs/generate.py from the code: change it there and run `make docs`. -->"
NAME_PATTERN = FieldFeature.model_json_schema()["properties"]["name"]["pattern"]

Schema = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table as a part of a page, which ends its parts itself."""
    return markdown_table(head, rows).rstrip("\n")


def page(title: str, lead: str, *parts: str) -> str:
    """One page of the reference."""
    return "\n\n".join([f"# {title}", NOTE, lead, *parts]) + "\n"


def code(*names: object) -> str:
    """Names set as code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def topics() -> str:
    """The page of Kafka topics."""
    lead = (
        "Every loop has each of these; the full name is `<loop>.<topic>`. Values are protobuf or JSON, with the headers"
        " of CloudEvents 1.0 in binary mode. Any process creates what is missing at its start. *Sharded* topics have"
        " `shards.kafka_partitions` of the loop's `gyre.yaml`; behaviour is kept for its `retention.behavior`."
        f" What cannot be read from a topic goes to `<topic>{DEAD_LETTER_SUFFIX}`, one partition, kept for 30 days."
    )
    return page("Topics", lead, topics_table().rstrip("\n"))


def keys() -> str:
    """The page of Redis keys."""
    lead = (
        f"What the online store holds. `gyre{STORE_FORMAT}` names the format of the values: stores of two formats never"
        " meet. `{<loop>:<shard>}` is the hash tag that keeps a loop's virtual shard on one node of a Redis Cluster;"
        " `<layout>` is the hash of the feature layout, so two layouts live side by side. Where a retired layout is"
        " wanted again, a point and a number follow it: it is filled anew, and the keys of the retired one are deleted."
    )
    return page("Redis keys", lead, keys_table().rstrip("\n"))


def personal_data() -> str:
    """The page of the stores that may hold a person."""
    lead = (
        "Every store that may hold something of a user, and until when it does after `DeleteEntity` (`gyre forget`)."
        " `python -m gyre_privacy search LOOP USER FOLDER…` decodes each format and names the places that hold"
        " the id, or a hash of it, with their stores; it knows nothing of how keys are made."
    )
    rows = [(each.name, each.holds, each.format, each.owner, each.erased, each.until) for each in STORES]
    head = ("store", "what it holds", "format", "written by", "how a person leaves it", "holds until")
    own = "\n".join(f"- {each}" for each in FILES_OF_OPERATORS)
    return page("Stores that may hold a person", lead, table(head, rows), f"Not erased by Gyre:\n\n{own}")


def metrics() -> str:
    """The page of Prometheus metrics."""
    lead = (
        "What each process shows on `/metrics`, beside the standard metrics of its Python process. Whatever belongs to"
        " a loop carries the label `loop`."
    )
    by_owner: dict[str, list[Metric]] = {}
    for metric in METRICS:
        word = metric.name.split("_")[1]
        owner = {"archive": "features"}.get(word, word if word in SERVICES else "every process")
        by_owner.setdefault(owner, []).append(metric)
    parts = [f"## {owner.capitalize()}\n\n{_metric_table(group)}" for owner, group in by_owner.items()]
    return page("Metrics", lead, *parts)


def _metric_table(group: Iterable[Metric]) -> str:
    rows = [(code(each.name), each.kind, each.unit, code(*each.labels), each.description) for each in group]
    return table(("metric", "kind", "unit", "labels", "meaning"), rows)


def ports() -> str:
    """The page of the local stack's ports."""
    declared = load_ports(PORTS_FILE, offset=0)
    lead = (
        f"Where the processes of the local stack listen on {declared.host}, from `infra/local/ports.toml`;"
        " `GYRE_PORT_OFFSET` shifts all at once. In containers every service listens on 7000 (gRPC) and 7001 (metrics)."
    )
    rows = [
        (process, meaning, str(port))
        for process, meanings in declared.processes.items()
        for meaning, port in meanings.items()
    ]
    return page("Ports", lead, table(("process", "what", "port"), rows))


def settings() -> str:
    """The page of environment variables."""
    lead = (
        "Processes are set by environment variables only. An unknown `GYRE_` variable or a wrong value stops the start"
        " with a message that names it, as does a file of a secret that is blank; what Kubernetes injects for a Service"
        " whose name begins with `gyre` is passed over. The defaults run the local stack. Secrets are given as files. A"
        " process reads the parts that it uses, and tolerates the variables of others."
    )
    processes = process_settings()
    parts = [_part(part, processes) for part in PARTS]
    shared = frozenset(name for part in PARTS for name in part.model_fields)
    for service in SERVICES:
        own = [(name, cls) for name, cls in processes if name.startswith(service)]
        fields = dict.fromkeys(field for _, cls in own for field in cls.model_fields if field not in shared)
        if fields:
            parts.append(f"## {service.capitalize()}\n\n{_own_table(own, list(fields))}")
    rows = [(code(name), meaning) for name, meaning in TOLERATED.items()]
    parts.append(f"## Local stack, tests and command line\n\n{table(('variable', 'meaning'), rows)}")
    return page("Settings", lead, *parts)


def _own_table(processes: Sequence[tuple[str, type[Settings]]], fields: Sequence[str]) -> str:
    """The variables of one service alone, and which of its processes read each, where it has several."""
    rows = []
    for field in fields:
        users = [(name, cls) for name, cls in processes if field in cls.model_fields]
        schema = users[0][1].model_json_schema()
        found = schema["properties"][field]
        row = [code(variable_of(field)), described(found, schema), _default(found), found.get("description", "")]
        rows.append([*row, ", ".join(name for name, _ in users)] if len(processes) > 1 else row)
    head = ("variable", "value", "default", "meaning")
    return table((*head, "read by") if len(processes) > 1 else head, rows)


def _part(part: type[Settings], processes: Sequence[tuple[str, type[Settings]]]) -> str:
    """One part: who is composed of it, and its variables."""
    users = [name for name, cls in processes if issubclass(cls, part)]
    jobs = {name for name, cls in processes if not issubclass(cls, ServiceSettings)}
    who = "every process" if {name for name, _ in processes} - jobs <= set(users) else ", ".join(users)
    who = who or "the command line"
    meaning = (part.__doc__ or "").partition("\n")[0].rstrip(".")
    return f"## {meaning}\n\nUsed by {who}.\n\n{_settings_table(part, list(part.model_fields))}"


def process_settings() -> list[tuple[str, type[Settings]]]:
    """Each process and job of the mesh with its settings class; what a service has several of, it lists itself."""
    found: list[tuple[str, type[Settings]]] = []
    for service in SERVICES:
        if importlib.util.find_spec(f"gyre_{service}.settings") is None:
            continue
        module = importlib.import_module(f"gyre_{service}.settings")
        if listed := getattr(module, "SETTINGS_OF", None):
            found += [(f"{service}-{name}", cls) for name, cls in listed.items()]
            continue
        classes = [each for each in vars(module).values() if isinstance(each, type)]
        found += [(service, each) for each in classes if issubclass(each, ServiceSettings) and each.service == service]
    return found


def _settings_table(cls: type[Settings], fields: Sequence[str]) -> str:
    schema = cls.model_json_schema()
    rows = [
        (code(variable_of(name)), described(field, schema), _default(field), field.get("description", ""))
        for name, field in schema["properties"].items()
        if name in fields
    ]
    return table(("variable", "value", "default", "meaning"), rows)


def _default(field: Schema) -> str:
    value = field.get("default")
    if value in (None, "", [], {}):
        return ""
    if isinstance(value, list):
        value = ":".join(str(each) for each in value)
    return code(value if isinstance(value, str) else json.dumps(value))


def feature_kinds() -> str:
    """The page of what `gyre.yaml` may declare as fields and features."""
    lead = (
        "What stands under `items.fields` and `users.fields`, and under `features`, of a `gyre.yaml`. The whole file is"
        " described by [gyre.schema.json](gyre.schema.json), which editors use to complete and check it."
        f" A *name* matches {code(NAME_PATTERN)}. Fields of items come with `ItemChanged`, those of users"
        " with `UserChanged`."
    )
    fields, features = (get_args(get_args(union)[0]) for union in (Field, Feature))
    parts = ["## Fields", *map(_kind, fields), "## Features", *map(_kind, features)]
    return page("Fields and features", lead, *parts)


def _kind(model: Any) -> str:
    schema = model.model_json_schema()
    properties = {name: field for name, field in schema["properties"].items() if name != "kind"}
    rows = [
        (code(name), described(field, schema), "required" if name in schema["required"] else _default(field))
        for name, field in properties.items()
    ]
    title = f"### {schema['properties']['kind']['const']}\n\n{schema['description']}"
    return f"{title}\n\n{table(('field', 'value', 'default'), rows)}" if rows else title


def described(field: Schema, root: Schema) -> str:
    """The values that a JSON Schema allows, in words."""
    if "$ref" in field:
        return described(root["$defs"][field["$ref"].rpartition("/")[2]], root)
    if "anyOf" in field:
        return " or ".join(described(each, root) for each in field["anyOf"] if each.get("type") != "null")
    if field.get("type") == "array":
        count = _bounds(field, "minItems", "maxItems").removeprefix(", ")
        return f"list{f' ({count})' if count else ''} of {described(field['items'], root)}"
    if field.get("type") == "object":
        names = ", ".join(f"{name}: {described(each, root)}" for name, each in field.get("properties", {}).items())
        return f"{{{names}}}"
    return _scalar(field)


def _scalar(field: Schema) -> str:
    if "enum" in field or "const" in field:
        return code(*field.get("enum", [field.get("const")]))
    if "examples" in field:
        return "duration such as " + code(*field["examples"])
    if field.get("format") == "path":
        return "path"
    if field.get("pattern") == NAME_PATTERN:
        return "name"
    pattern = f" {code(field['pattern'])}" if "pattern" in field else ""
    length = _bounds(field, "minLength", "maxLength")
    number = _bounds(field, "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    return str(field.get("type", "any")) + pattern + (f"{length} characters" if length else "") + number


def _bounds(field: Schema, low: str, high: str, above: str = "", below: str = "") -> str:
    words = [("from", low), ("above", above), ("to", high), ("below", below)]
    given = [f"{word} {field[name]}" for word, name in words if name in field]
    return f", {' '.join(given)}" if given else ""


def schema() -> str:
    """The JSON Schema of `gyre.yaml`."""
    return json.dumps(json_schema(), indent=2) + "\n"


def rpc_page() -> str:
    """The page of gRPC methods."""
    lead = (
        "Every method of the mesh. All servers also speak gRPC's health checking and reflection. What is"
        f" *{NOT_SERVED.lower()}* stands in the protos for what is to come, and nothing answers it."
    )
    rows = [
        (code(name), meaning.replace(f"{NOT_SERVED}:", f"*{NOT_SERVED}*:"), "yes" if served else "not yet")
        for name, meaning, served in rpcs()
    ]
    return page("gRPC methods", lead, table(("method", "meaning", "served"), rows))


def contract_names_file() -> str:
    """The names of the contract, one a line."""
    return "\n".join(kept_names(variables())) + "\n"


def variables() -> set[str]:
    """Every environment variable that a process or the command line reads."""
    classes = [*PARTS, *(cls for _, cls in process_settings())]
    return {*TOLERATED, *(variable_of(field) for cls in classes for field in cls.model_fields)}


PAGES: Mapping[str, Callable[[], str]] = {
    "rpc.md": rpc_page,
    NAMES_FILE.name: contract_names_file,
    "topics.md": topics,
    "keys.md": keys,
    "personal-data.md": personal_data,
    "metrics.md": metrics,
    "ports.md": ports,
    "settings.md": settings,
    "feature-kinds.md": feature_kinds,
    "gyre.schema.json": schema,
}


def stale() -> list[str]:
    """The pages of the folder that are not what the code says, and files that no page writes."""
    present = {path.name for path in REFERENCE.glob("*")}
    wrong = [name for name, write in PAGES.items() if name not in present or (REFERENCE / name).read_text() != write()]
    return sorted([*wrong, *(present - PAGES.keys())])


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is not current")
    if parser.parse_args().check:
        if found := stale():
            sys.exit(f"docs/reference is not what the code says: {', '.join(found)}. Remedy: make docs")
        return
    REFERENCE.mkdir(exist_ok=True)
    for name, write in PAGES.items():
        (REFERENCE / name).write_text(write())


if __name__ == "__main__":
    main()
