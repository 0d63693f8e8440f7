"""Events folded into a real database file: exact counts over redelivery and any order, and who is credited."""

import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from gyre_core.keyring import Keyring
from gyre_core.topics import IMPORT_SOURCE
from gyre_monitor.domain.outcomes import ArmTotals
from gyre_monitor.store import reports, schema
from gyre_monitor.store.database import Database, insert_new, upsert
from gyre_monitor.store.projection import Projection
from gyre_monitor.store.schema import IMPRESSIONS
from gyre_runtime import Precondition
from gyre_runtime.events import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

WINDOW_S = 1800.0


async def arms(database: Database, loop: str, rollout_id: str = "") -> dict[tuple[str, str], tuple[int, ...]]:
    """Impressions, clicked, converted, degraded by arm and version."""
    found = await database.read(reports.experiment, loop, rollout_id)
    assert found is not None
    return {key: (each.impressions, each.clicked, each.converted, each.degraded) for key, each in sorted(found.items())}


async def test_answers_and_their_outcomes_are_counted_by_arm(projection, database, log, make, loop) -> None:
    """Each answer counts once for clicks and once for conversions, whatever the number of its interactions."""
    later = make.begin + 60
    await projection.apply(
        [
            log.shown(make.impression("r1")),
            log.shown(make.impression("r2", "u2", arm="candidate", model_version="v2", degraded_reason="TRITON_DOWN")),
            log.shown(make.impression("r3", "u3", model_version="", arm="")),
            log.acted(make.interaction(), at=later),
            log.acted(make.interaction(), at=later),
            log.acted(make.interaction("u2", kind="buy", value=3, request_id="r2"), at=later),
            log.acted(make.interaction("u3", kind="view"), at=later),
            log.acted(make.interaction("u3", item="unseen"), at=later),
        ]
    )
    assert await arms(database, loop) == {
        ("", ""): (1, 0, 0, 0),
        ("candidate", "v2"): (1, 0, 1, 1),
        ("live", "v1"): (1, 1, 0, 0),
    }


async def test_interactions_that_are_read_before_their_answer_count(projection, database, log, make, loop) -> None:
    """A click waits for its answer, by the request's id or by user, item and time; a second one changes nothing."""
    end = make.begin + WINDOW_S
    await projection.apply([log.acted(make.interaction("u1"), at=end), log.acted(make.interaction("u2"), at=end + 1)])
    await projection.apply([log.acted(make.interaction("u3", "z", request_id="r3"), at=end + 1)])
    answers = [("r1", "u1"), ("r2", "u2"), ("r3", "u3")]
    await projection.apply([log.shown(make.impression(request_id, user)) for request_id, user in answers])
    assert await arms(database, loop) == {("live", "v1"): (3, 2, 0, 0)}
    await projection.apply([log.acted(make.interaction("u1"), at=end - 1)])
    assert await arms(database, loop) == {("live", "v1"): (3, 2, 0, 0)}


async def test_a_request_belongs_to_its_user(projection, database, log, make, loop) -> None:
    """Of two users with one request id both count, a click belongs to the user's own, and a second answer to none."""
    await projection.apply([log.shown(make.impression("r1", user, arm=user)) for user in ("u1", "u2")])
    click = log.acted(make.interaction("u2", "z", request_id="r1"), at=make.begin + 1)
    stranger = log.acted(make.interaction("u9", "a", request_id="r1"), at=make.begin + 1)
    again = log.shown(make.impression("r1", "u1", arm="again"))
    await projection.apply([click, stranger, again])
    assert await arms(database, loop) == {("u1", "v1"): (1, 0, 0, 0), ("u2", "v1"): (1, 1, 0, 0)}


async def test_redelivery_changes_nothing(projection, database, log, make, loop) -> None:
    """The same events again, in other batches, and the producer's own repeats leave every count as it was."""
    events = [log.shown(make.impression(f"r{n}", f"u{n}")) for n in range(6)]
    events += [log.acted(make.interaction(f"u{n}"), at=make.begin + 1) for n in range(4)]
    await projection.apply(events)
    once = await arms(database, loop), (await database.read(reports.status, loop, now=0.0))
    assert once[0] == {("live", "v1"): (6, 4, 0, 0)}
    assert once[1].interactions_since_trigger == 4
    await projection.apply(events[3:8])
    await projection.apply(events)
    assert (await arms(database, loop), await database.read(reports.status, loop, now=0.0)) == once
    repeats = [
        log.shown(make.impression("r1", "u1")),
        log.acted(make.interaction("u1"), at=make.begin + 1)._replace(id=events[7].id),
    ]
    await projection.apply(repeats)
    assert await arms(database, loop) == once[0]
    assert (await database.read(reports.status, loop, now=0.0)).interactions_since_trigger == 4


async def test_offsets_move_with_the_effect(projection, database, log, make, loop) -> None:
    """A batch that fails after its first writes leaves nothing of them, and no offsets."""
    await projection.apply([log.shown(make.impression("r1"))])
    place = f"{loop}.behavior.impressions", 0
    before = await projection.checkpoints([place])
    broken = log.acted(make.interaction())._replace(time="no number")
    with pytest.raises(TypeError):
        await projection.apply([log.add("models.candidates", make.candidate(loop, "v1")), broken])
    assert await projection.checkpoints([place]) == before
    assert before[place][0].offset == 1
    assert (await database.read(reports.status, loop, now=0.0)).stages[2].count == 0


async def test_imported_history_is_no_experiment(projection, database, log, make, loop) -> None:
    """Imported and simulated answers, and imported interactions, count neither for an arm nor for the volume."""
    await projection.apply(
        [
            log.shown(make.impression("r1", simulated=True)),
            log.shown(make.impression("r2", method=3)),
            log.shown(make.impression("r3"), source=IMPORT_SOURCE),
            *(log.acted(make.interaction(), source=IMPORT_SOURCE) for _ in range(50)),
        ]
    )
    status = await database.read(reports.status, loop, now=0.0)
    assert await arms(database, loop) == {}
    assert (status.interactions_since_trigger, status.stages[0].count) == (0, 53)


async def test_simulated_interactions_on_real_answers_count(projection, database, log, make, loop) -> None:
    """A simulated user's click on a real answer is an outcome, and counts for the volume."""
    await projection.apply([log.shown(make.impression("r1")), log.acted(make.interaction(simulated=True))])
    assert await arms(database, loop) == {("live", "v1"): (1, 1, 0, 0)}
    assert (await database.read(reports.status, loop, now=0.0)).interactions_since_trigger == 1


async def test_no_user_id_is_stored(projection, log, make, tmp_path: Path) -> None:
    """The database file holds no user id in clear."""
    await projection.apply(
        [log.shown(make.impression("r1", "ada@example.org")), log.acted(make.interaction("ada@example.org"))]
    )
    content = b"".join((tmp_path / name).read_bytes() for name in ("monitor.db", "monitor.db-wal"))
    assert b"r1" in content
    assert b"ada@example.org" not in content


async def test_what_was_hashed_under_another_key_goes(projection, database, loop, log, make) -> None:
    """Nobody could find a user in it any more; what is hashed under the same key stays over a restart."""
    await projection.apply([log.shown(make.impression("r1", "ada"))])

    async def rows_with(keyring: Keyring) -> int:
        await Projection(database, {loop: projection._loops[loop]}, keyring=keyring, timeout_s=600).prepare()
        return await database.read(lambda connection: len(connection.execute(select(IMPRESSIONS.c.id)).all()))

    assert await rows_with(Keyring(b"k" * 32)) == 1
    assert await rows_with(Keyring(b"l" * 32)) == 0


async def test_a_key_beside_its_hashes_goes_with_them(tmp_path: Path, loop, spec, log, make) -> None:
    """A database of the version before loses key and rows in the first start; nothing of either is in its files."""
    file = tmp_path / "monitor.db"
    async with Database(f"sqlite:///{file}") as former:
        projection = Projection(former, {loop: spec}, keyring=Keyring(b"f" * 32), timeout_s=600)
        await projection.prepare()
        await projection.apply([log.shown(make.impression("request-of-before", "ada"))])
    with closing(sqlite3.connect(file)) as plain:
        plain.execute("delete from meta where name = 'key_id'")
        plain.execute("insert into meta values ('user_key', ?)", ("5ec4e7" * 10,))
        plain.execute("update meta set value = '2' where name = 'schema_version'")
        plain.commit()
    async with Database(f"sqlite:///{file}") as opened:
        await Projection(opened, {loop: spec}, keyring=Keyring(b"k" * 32), timeout_s=600).prepare()
        content = b"".join((tmp_path / name).read_bytes() for name in ("monitor.db", "monitor.db-wal"))
    assert b"5ec4e7" not in content
    assert b"request-of-before" not in content


def truth(shown: list[Event], acted: list[Event]) -> tuple[int, int]:
    """How many answers are clicked and converted, straight from the definition."""
    by_kind = {"click": set(), "buy": set()}
    for action in acted:
        for answer in shown:
            message = answer.message
            own = action.message.user_id == message.user_id
            named = own and action.message.request_id == message.request_id
            seen = (
                not action.message.request_id
                and own
                and action.message.item_id in message.item_ids[: message.shown]
                and 0 <= action.time - answer.time <= WINDOW_S
            )
            if (named or seen) and action.message.type in by_kind:
                by_kind[action.message.type].add(message.request_id)
    return len(by_kind["click"]), len(by_kind["buy"])


USERS, ITEMS = st.sampled_from(["u1", "u2"]), st.sampled_from("abc")
TIMES = st.integers(0, 4000)
ANSWERS = st.lists(st.tuples(USERS, st.lists(ITEMS, min_size=1, max_size=3, unique=True), TIMES), max_size=6)
ACTIONS = st.lists(
    st.tuples(USERS, ITEMS, st.sampled_from(["click", "buy", "view"]), TIMES, st.sampled_from(["", "", "r0", "r3"])),
    max_size=8,
)


@given(answers=ANSWERS, actions=ACTIONS, data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_events_does_not_matter(answers, actions, data, *, make, fold) -> None:
    """However answers and interactions are ordered and cut into batches, the counts are those of the definition."""
    log = fold.new_log()
    shown = [
        log.shown(make.impression(f"r{n}", user, items=tuple(items)), at=make.begin + at)
        for n, (user, items, at) in enumerate(answers)
    ]
    acted = [
        log.acted(make.interaction(user, item, kind, value=1, request_id=request_id), at=make.begin + at)
        for user, item, kind, at, request_id in actions
    ]
    # Each topic keeps its own order, as Kafka does; the topics run past each other.
    turns = data.draw(st.permutations([True] * len(shown) + [False] * len(acted)))
    queues = {True: iter(shown), False: iter(acted)}
    mixed = [next(queues[turn]) for turn in turns]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(mixed)), max_size=4)) | {0, len(mixed)})

    totals = fold(log.loop, [mixed[start:end] for start, end in pairwise(cuts)]).get(("live", "v1"), ArmTotals())
    assert (totals.impressions, totals.clicked, totals.converted) == (len(shown), *truth(shown, acted))


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    """A monitor does not write into tables that it does not know."""
    async with Database(f"sqlite:///{tmp_path / 'monitor.db'}"):
        pass
    with sqlite3.connect(tmp_path / "monitor.db") as connection:
        connection.execute("update meta set value = '99' where name = 'schema_version'")
    connection.close()
    database = Database(f"sqlite:///{tmp_path / 'monitor.db'}")
    with pytest.raises(Exception, match="schema_version = 99"):
        await database.__aenter__()
    await database.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("url", "rule"),
    [("postgresql+nothing://u:secret@h/db", "nothing"), ("sqlite://:a:b", "int()"), ("oracle", "parse")],
)
def test_a_database_that_cannot_be_opened_names_the_setting(url: str, rule: str) -> None:
    """A bad URL stops the start, with the name of the variable and without the password."""
    with pytest.raises(Precondition, match="GYRE_MONITOR_DATABASE") as caught:
        Database(url)
    assert rule in caught.value.message
    assert "secret" not in str(caught.value)


def test_tables_and_upserts_are_postgresql_too() -> None:
    """Every table, index and upsert compiles for PostgreSQL, where rows are numbered and conflicts are resolved."""
    dialect = postgresql.dialect()
    for table in schema.METADATA.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE" in str(CreateIndex(index).compile(dialect=dialect))
    statements: list[str] = []

    def keep(statement: object, *_parameters: object) -> None:
        statements.append(str(statement.compile(dialect=dialect)))

    connection = SimpleNamespace(dialect=dialect, execute=keep)
    row = {"loop": "x", "version": "v", "arm": "a", "epoch": 1, "clicked": 2}
    upsert(connection, schema.ARMS, [row], sums=["clicked"])
    insert_new(connection, schema.SPANS, [{"trace_id": "t", "span_id": "s"}])
    assert "DO UPDATE SET clicked = (arms.clicked + excluded.clicked)" in statements[0]
    assert "ON CONFLICT DO NOTHING" in statements[1]
