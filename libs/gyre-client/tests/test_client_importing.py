"""The import of files: every format, every way a row can fail to fit, and that a second import adds nothing."""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gyre.events.v1 import behavior_pb2 as behavior
from gyre_client import Invalid
from gyre_client.gateway import item_changed
from gyre_client.history import prepare
from gyre_client.importing import FileImport, files, load_mapping
from gyre_client.importing.events import events_by
from gyre_client.importing.mapping import ItemMapping, UserMapping
from gyre_client.importing.rows import Rejected, Row, rows_of
from gyre_core.features import FieldsChanged, UserInteraction
from gyre_core.spec import LoopSpec, SpecError, load_loop, parse_loop, parse_yaml
from gyre_core.topics import topic
from gyre_runtime.events import decode, message_types
from gyre_runtime.fields import field_values
from gyre_runtime.kafka import read_records
from typer.testing import Result

ROOT = Path(__file__).resolve().parents[3]
Gyre = Callable[..., Result]
RATINGS = """
kind: interactions
user: who
item: what
type: {column: how, names: {stars: rating, opened: click}}
value: stars
time: {column: at, format: "%Y-%m-%d %H:%M:%S", zone: Europe/Vienna}
"""
ITEMS = """
kind: items
item: sku
at: 2017-01-01T00:00:00Z
fields: {price: price, tags: {column: tags, separator: "|"}}
"""
VECTORS = """
version: 1
loop: vectors
events: {interactions: {click: {}}}
items: {fields: {embedding: {kind: vector, length: 2}}}
features: [{name: embedding, kind: vector, field: embedding}]
"""
ROWS: list[dict[str, Any]] = [
    {"who": "u2", "what": "i1", "how": "opened", "stars": None, "at": "2017-07-01 12:00:10"},
    {"who": "u1", "what": "i1", "how": "stars", "stars": 8, "at": "2017-07-01 12:00:00"},
    {"who": "u1", "what": "i2", "how": "stars", "stars": 11, "at": "2017-07-01 12:00:01"},
    {"who": "", "what": "i2", "how": "opened", "stars": None, "at": "2017-07-01 12:00:02"},
    {"who": "u1", "what": "i2", "how": "bought", "stars": None, "at": "2017-07-01 12:00:03"},
    {"who": "u1", "what": "i2", "how": "opened", "stars": None, "at": "yesterday"},
]
NOON_IN_VIENNA = datetime(2017, 7, 1, 10, tzinfo=UTC).timestamp()
REFUSED = [
    ("stars", "must be 0 to 10"),
    ("who", "is required"),
    ("how", "must be one of click, rating"),
    ("at", "must be a time like %Y-%m-%d %H:%M:%S"),
]


def write(folder: Path, suffix: str) -> Path:
    """The rows above in one of the formats."""
    path = folder / f"ratings{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        lines = [",".join("" if value is None else str(value) for value in row.values()) for row in ROWS]
        path.write_text("\n".join([",".join(ROWS[0]), *lines]) + "\n")
    return path


@pytest.fixture
def mapping_file(tmp_path: Path) -> Path:
    """The mapping of the ratings."""
    path = tmp_path / "mapping.yaml"
    path.write_text(RATINGS)
    return path


@pytest.mark.adapter
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
async def test_each_format_is_imported_once(
    suffix: str, kafka: str, spec: LoopSpec, gyre: Gyre, loop_file: Path, mapping_file: Path
) -> None:
    """`gyre import` sends what fits in the order of time, writes the rest to the rejects, and repeats nothing."""
    path = write(mapping_file.parent, suffix)
    words = ["import", str(loop_file), str(path), "--mapping", str(mapping_file)]
    first = await asyncio.to_thread(gyre, *words, kafka=kafka)
    assert first.exit_code == 0, first.output
    assert "2 events sent, 0 were there already, 4 rows rejected: see " in first.output
    second = await asyncio.to_thread(gyre, *words, kafka=kafka)
    assert "0 events sent, 2 were there already, 4 rows rejected" in second.output
    name, types = topic(spec.loop, "behavior.interactions"), message_types(behavior.Interaction)
    events = [decode(each, types) async for each in read_records(kafka, name)]
    told = sorted((each.time - NOON_IN_VIENNA, each.message.type, each.message.value) for each in events)
    assert told == [(0.0, "rating", 8.0), (10.0, "click", 0.0)]
    rejects = [json.loads(line) for line in path.with_name(f"{path.name}.rejects.jsonl").read_text().splitlines()]
    heading = suffix == ".csv"
    assert [each["line"] for each in rejects] == [3 + heading, 4 + heading, 5 + heading, 6 + heading]
    for each, (field, rule) in zip(rejects, REFUSED, strict=True):
        assert each["field"] == field
        assert rule in each["rule"]
    assert rejects[0]["value"] == "11"


def test_events_come_in_the_order_of_time_whatever_the_size(
    tmp_path: Path, spec: LoopSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that needs several runs on disk is merged by time, the order of equal times is the file's."""
    monkeypatch.setattr(files, "RUN_EVENTS", 7)
    path, mapping = tmp_path / "clicks.jsonl", tmp_path / "mapping.yaml"
    times = [(number * 37) % 50 for number in range(100)]
    path.write_text("".join(json.dumps({"u": f"u{n}", "i": "i", "t": time}) + "\n" for n, time in enumerate(times)))
    mapping.write_text("{kind: interactions, user: u, item: i, type: {value: click}, time: {column: t, format: unix}}")
    work = FileImport(spec, load_mapping(mapping, spec), path, tmp_path / "rejects")
    (tmp_path / "runs").mkdir()
    runs = [run.open("rb") for run in work._sorted_runs(tmp_path / "runs")]
    merged = list(files._merged(runs))
    for run in runs:
        run.close()
    assert len(runs) == 15
    expected = sorted(range(100), key=lambda number: times[number])
    assert [each.user_id for each in merged if isinstance(each, UserInteraction)] == [
        f"u{number}" for number in expected
    ]


def test_items_carry_their_fields(tmp_path: Path, spec: LoopSpec) -> None:
    """Columns become fields of the declared kind; an empty one is absent; what is no number is refused."""
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(ITEMS)
    turn = events_by(load_mapping(mapping, spec), spec)
    at = datetime(2017, 1, 1, tzinfo=UTC).timestamp()
    row = Row(2, {"sku": 7, "price": "3.5", "tags": "old| new"})
    assert turn(row) == FieldsChanged("item", "7", at, {"price": 3.5, "tags": ["old", "new"]})
    assert turn(Row(3, {"sku": "a", "price": "", "tags": ""})) == FieldsChanged("item", "a", at, {})
    refused = turn(Row(4, {"sku": "a", "price": "cheap", "tags": ""}))
    assert refused == Rejected(4, "price", "cheap", "must be a number")


@pytest.mark.parametrize(
    ("time", "given", "expected"),
    [
        ("format: unix", "12.5", 12.5),
        ("format: unix_ms", 12_500, 12.5),
        ("format: iso", "1970-01-01T01:00:00+01:00", 0.0),
        ("zone: UTC", "1970-01-01T00:00:09", 9.0),
        ("zone: UTC", datetime(1970, 1, 2), 86_400.0),  # noqa: DTZ001 (Parquet has such times)
        ("format: iso", "1970-01-01T00:00:09", "must carry its UTC offset, or the mapping a zone"),
        ("format: unix", "soon", "must be a number"),
        ("format: unix", "-1", "must be a time from 1970 to 9999"),
    ],
)
def test_times_are_read_as_the_mapping_says(
    tmp_path: Path, spec: LoopSpec, time: str, given: object, expected: float | str
) -> None:
    """Each format gives unix seconds, or the rule that was broken."""
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(f"{{kind: interactions, user: u, item: i, type: {{value: click}}, time: {{column: t, {time}}}}}")
    made = events_by(load_mapping(mapping, spec), spec)(Row(1, {"u": "u", "i": "i", "t": given}))
    assert (made.rule if isinstance(made, Rejected) else made.time) == expected


def test_broken_lines_cost_only_themselves(tmp_path: Path, spec: LoopSpec, mapping_file: Path) -> None:
    """A line with too few columns, text that is not UTF-8 and a value over two lines leave the others readable."""
    path = tmp_path / "broken.csv"
    rows = b'who,what,how,stars,at\nu1,i1\n\xff,i1,opened,,2017-07-01 12:00:00\n"u\n1",i1,opened,,2017-07-01 12:00:00\n'
    path.write_bytes(rows + b"u3,i1,opened,,2017-07-01 12:00:00\n")
    mapping = load_mapping(mapping_file, spec)
    turn = events_by(mapping, spec)
    read = list(rows_of(path, mapping.columns().values(), mapping.csv, on_bytes=lambda *_: None))
    made = [each if isinstance(each, Rejected) else turn(each) for each in read]
    assert [(each.line, each.rule) for each in made if isinstance(each, Rejected)] == [
        (2, "must have 5 columns, not 2"),
        (3, "must be UTF-8 text"),
    ]
    assert [each.user_id for each in made if isinstance(each, UserInteraction)] == ["u\n1", "u3"]
    assert [each.line for each in read] == [2, 3, 4, 6]


def test_a_line_that_is_no_json_is_rejected(tmp_path: Path, spec: LoopSpec, mapping_file: Path) -> None:
    """What is no object is told with its line; the lines after it are read."""
    path = tmp_path / "broken.jsonl"
    path.write_text('{"who": \n[1]\n\n{"who": "u"}\n')
    mapping = load_mapping(mapping_file, spec)
    read = list(rows_of(path, mapping.columns().values(), mapping.csv, on_bytes=lambda *_: None))
    assert [each.line for each in read] == [1, 2, 4]
    assert isinstance(read[0], Rejected)
    assert read[0].rule.startswith("is no JSON")
    assert read[1] == Rejected(2, "(row)", "[1]", "must be a JSON object")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("user: who", "usr: who", "usr = 'who': is not a known field here"),
        ("{column: how, names: {stars: rating, opened: click}}", "{}", "type: must have either value or column"),
        ("opened: click", "opened: bought", "type.names.opened = 'bought': must be one of click, rating"),
        ("Europe/Vienna", "Mars/Olympus", "time.zone = 'Mars/Olympus': must be a time zone like UTC or Europe/Vienna"),
        ("kind: interactions", "kind: clicks", "kind = 'clicks': must be one of 'interactions', 'items', 'users'"),
    ],
)
def test_a_mistake_in_the_mapping_is_named(
    mapping_file: Path, spec: LoopSpec, old: str, new: str, expected: str
) -> None:
    """The error names the line, the field, the value and the rule."""
    mapping_file.write_text(RATINGS.replace(old, new))
    with pytest.raises(SpecError) as caught:
        load_mapping(mapping_file, spec)
    line = next(number for number, text in enumerate(RATINGS.splitlines(), start=1) if old in text)
    assert f"{mapping_file}:{line}: " in str(caught.value)
    assert expected in str(caught.value)


def test_a_column_that_is_not_there_ends_the_import(
    tmp_path: Path, gyre: Gyre, loop_file: Path, mapping_file: Path
) -> None:
    """The message names the missing column and those that the file has; nothing was sent, so no Kafka is needed."""
    path = tmp_path / "other.csv"
    path.write_text("who,what,how,stars\n")
    result = gyre("import", str(loop_file), str(path), "--mapping", str(mapping_file))
    assert result.exit_code == 1
    assert "has no column 'at'; it has who, what, how, stars" in result.output


def test_a_file_of_which_nothing_fits_is_an_error(
    tmp_path: Path, gyre: Gyre, loop_file: Path, mapping_file: Path
) -> None:
    """A mapping that fits no row is a mistake, and the message says where the reasons are."""
    path = tmp_path / "other.csv"
    path.write_text("who,what,how,stars,at\n,,,,\n")
    result = gyre("import", str(loop_file), str(path), "--mapping", str(mapping_file))
    assert result.exit_code == 1
    assert "no row fits the mapping" in result.output


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    """The message lists what can be read."""
    with pytest.raises(Invalid, match=r"must be one of \.csv"):
        list(rows_of(tmp_path / "x.xls", [], None, on_bytes=lambda *_: None))  # type: ignore[arg-type]


def test_the_mappings_of_the_page_are_valid(tmp_path: Path) -> None:
    """What docs/producers.md shows as mappings can be used with the movies loop."""
    movies = load_loop(ROOT / "examples/movies/gyre.yaml")
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/producers.md").read_text(), re.DOTALL)
    for block in blocks:
        (tmp_path / "mapping.yaml").write_text(block)
        assert load_mapping(tmp_path / "mapping.yaml", movies).columns()
    assert len(blocks) == 2


@pytest.mark.parametrize(
    ("given", "rule"),
    [("0.5,-1", None), ("[0.5, -1]", None), ([0.5, -1.0], None), ("0.5", "2 finite numbers"), ("a,b", "be a number")],
)
def test_a_vector_is_a_list_or_a_text(given: object, rule: str | None) -> None:
    """Numbers come as a list, or separated in one text; another count of numbers is told with the rule."""
    spec = parse_loop(VECTORS)
    mapping = parse_yaml(
        ItemMapping,
        "{kind: items, item: sku, at: 2017-01-01T00:00:00Z, fields: {embedding: {column: e}}}",
        source="test",
    )
    found = events_by(mapping, spec)(Row(1, {"sku": "i1", "e": given}))
    if rule is None:
        assert isinstance(found, FieldsChanged)
        assert found.fields == {"embedding": [0.5, -1.0]}
    else:
        assert isinstance(found, Rejected)
        assert (found.field, rule in found.rule) == ("e", True)


WRONG_RATINGS = [
    ({"stars": True}, "stars", "true", "must be a number"),
    ({"stars": "1_0"}, "stars", "1_0", "must be a number"),
    ({"stars": "\u0661"}, "stars", "\u0661", "must be a number"),
    ({"stars": [8]}, "stars", "[8]", "must be a number"),
    ({"stars": 10**400}, "stars", "1" + "0" * 198 + "…", "must fit into a float64"),
    ({"how": "opened"}, "stars", "8", "must be unset, as gyre.yaml declares no value of it"),
    ({"who": ["a", "b"]}, "who", '["a", "b"]', "must be a text or a whole number"),
    ({"who": {"id": 5}}, "who", '{"id": 5}', "must be a text or a whole number"),
    ({"what": True}, "what", "true", "must be a text or a whole number"),
    ({"what": 1.5}, "what", "1.5", "must be a text or a whole number"),
    ({"how": ["stars"]}, "how", '["stars"]', "must be a text or a whole number"),
]
WRONG_ITEMS = [
    ({"price": False}, "price", "false", "must be a number"),
    ({"price": "1_0"}, "price", "1_0", "must be a number"),
    ({"tags": {"a": 1}}, "tags", '{"a": 1}', "must be a text or a number"),
    ({"tags": True}, "tags", "true", "must be a text or a number"),
    ({"tags": ["old", None]}, "tags", "null", "must be a text or a number"),
    ({"sku": {"id": 5}}, "sku", '{"id": 5}', "must be a text or a whole number"),
]


@pytest.mark.adapter
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("mapping", "good", "wrong"),
    [
        (RATINGS, {**ROWS[1]}, WRONG_RATINGS),
        (ITEMS, {"sku": "i1", "price": 3, "tags": ["old"]}, WRONG_ITEMS),
    ],
)
async def test_a_value_of_another_kind_is_a_rejected_row(  # noqa: PLR0917 (fixtures)
    mapping: str, good: dict[str, Any], wrong: list[Any], words: tuple[str], kafka: str, gyre: Gyre, loop_file: Path
) -> None:
    """Truth values, lists and objects are no numbers, names or texts: each row is named by field, value and rule."""
    path, mapped = loop_file.with_name("rows.jsonl"), loop_file.with_name("mapping.yaml")
    mapped.write_text(mapping)
    rows = [good, *(good | changed for changed, *_ in wrong)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = await asyncio.to_thread(
        gyre, "import", str(loop_file), str(path), "--mapping", str(mapped), *words, kafka=kafka
    )
    assert done.exit_code == 0, done.output
    rejects = [json.loads(line) for line in path.with_name(f"{path.name}.rejects.jsonl").read_text().splitlines()]
    assert [each["line"] for each in rejects] == list(range(2, len(rows) + 1))
    for each, (_, field, value, rule) in zip(rejects, wrong, strict=True):
        assert (each["field"], each["value"]) == (field, value)
        assert rule in each["rule"]


def test_users_are_imported_like_items() -> None:
    """A row is a user with the fields that the loop declares; a field that it does not is told with its line."""
    spec = parse_loop(VECTORS + "users: {fields: {member: {kind: boolean}}}\n")
    text = "kind: users\nuser: id\nat: 2017-01-01T00:00:00Z\nfields:\n  member: since\n"
    mapping = parse_yaml(UserMapping, text, source="test")
    assert mapping.columns() == {"user": "id", "member": "since"}
    found = events_by(mapping, spec)(Row(1, {"id": "u1", "since": "yes"}))
    assert isinstance(found, FieldsChanged)
    assert (found.kind, found.id, found.fields) == ("user", "u1", {"member": True})
    assert (prepare(spec, found).suffix, prepare(spec, found).key) == ("catalog.users", "u1")


def test_a_vector_is_sent_as_numbers() -> None:
    """Text is a category, texts are categories, numbers are a vector."""
    sent = item_changed("i1", {"embedding": [1, 2.5], "tags": ["a"], "maker": "b"}).fields
    assert [sent[name].WhichOneof("kind") for name in ("embedding", "tags", "maker")] == [
        "vector",
        "categories",
        "text",
    ]
    assert field_values(sent) == {"embedding": [1.0, 2.5], "tags": ["a"], "maker": "b"}


@pytest.mark.adapter
async def test_an_item_larger_than_its_topic_takes_is_a_rejected_row(kafka: str, tmp_path: Path, gyre: Gyre) -> None:
    """It costs only itself, and the dry run says the same of it as the import."""
    texts, loop = [f"text{number}" for number in range(120)], "import-too-large"
    fields = "".join(f"    {name}: {{kind: text}}\n" for name in texts)
    spec, mapping, items = tmp_path / "gyre.yaml", tmp_path / "mapping.yaml", tmp_path / "items.jsonl"
    events = "events: {interactions: {click: {}}}\nfeatures: [{name: age, kind: age, field: made}]"
    spec.write_text(f"version: 1\nloop: {loop}\n{events}\nitems:\n  fields:\n    made: {{kind: time}}\n{fields}")
    sources = "".join(f"  {name}: {name}\n" for name in texts)
    mapping.write_text(f"kind: items\nitem: sku\nat: 2017-01-01T00:00:00Z\nfields:\n{sources}")
    rows = [{"sku": "small", "text0": "short"}, {"sku": "large", **dict.fromkeys(texts, "x" * 10_000)}]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["import", str(spec), str(items), "--mapping", str(mapping)]
    dry = await asyncio.to_thread(gyre, *words, "--dry-run", kafka=kafka)
    done = await asyncio.to_thread(gyre, *words, kafka=kafka)
    assert (dry.exit_code, done.exit_code) == (0, 0), done.output
    assert "1 events fit, 1 rows rejected" in dry.output
    assert "1 events sent, 0 were there already, 1 rows rejected" in done.output
    rejected = json.loads((tmp_path / "items.jsonl.rejects.jsonl").read_text())
    assert (rejected["line"], rejected["field"]) == (2, "fields")
    assert rejected["rule"].startswith("RECORD_TOO_LARGE: the record has 1,20"), rejected["rule"]
    assert [each.key async for each in read_records(kafka, topic(loop, "catalog.items"))] == [b"small"]
