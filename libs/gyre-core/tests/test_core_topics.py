"""Topics, keys and their reference tables."""

import pytest
from gyre_core import keys, reference
from gyre_core.spec import LoopSpec
from gyre_core.topics import TOPICS, declared, max_record_bytes, topic


def test_names_carry_the_loop(full_loop: LoopSpec) -> None:
    """Every topic of a loop begins with its name, and no two are the same."""
    names = [each.name for each in declared(full_loop)]
    assert all(name.startswith("movies.") for name in names)
    assert len(set(names)) == len(names)
    assert topic("movies", "models.rollouts") == "movies.models.rollouts"


def test_undeclared_topic_is_refused() -> None:
    """A topic that is not declared has no name."""
    with pytest.raises(KeyError):
        topic("movies", "behaviour.clicks")


def test_dead_letters_stand_beside_their_topic(full_loop: LoopSpec) -> None:
    """What may be poisoned has a dead-letter topic with one partition."""
    by_name = {each.name: each for each in declared(full_loop)}
    assert by_name["movies.behavior.interactions.dlq"].partitions == 1
    assert by_name["movies.behavior.interactions"].partitions == 4
    assert "movies.models.rollout-events.dlq" not in by_name


def test_retention_becomes_kafka_configuration(full_loop: LoopSpec) -> None:
    """The log is kept for a year, the projection and the catalogue compacted, behaviour as long as the loop says."""
    config = {each.name.removeprefix("movies."): each.config() for each in declared(full_loop)}
    assert (
        config["models.rollout-events"].items() >= {"cleanup.policy": "delete", "retention.ms": "31536000000"}.items()
    )
    assert config["models.rollouts"]["cleanup.policy"] == "compact"
    assert config["catalog.items"]["cleanup.policy"] == "compact"
    assert config["catalog.users"]["max.compaction.lag.ms"] == str(86_400_000)
    assert config["behavior.impressions"]["retention.ms"] == str(30 * 86_400_000)


def test_behaviour_and_catalogue_carry_the_append_time(full_loop: LoopSpec) -> None:
    """Where lateness is judged the broker stamps the time; elsewhere the producer does."""
    by_name = {each.name.removeprefix("movies."): each.config() for each in declared(full_loop)}
    stamped = {name for name, config in by_name.items() if config["message.timestamp.type"] == "LogAppendTime"}
    assert stamped == {"behavior.impressions", "behavior.interactions", "catalog.items", "catalog.users"}


def test_a_topic_that_is_written_all_the_time_stays_small(full_loop: LoopSpec) -> None:
    """Reports of gateways are compacted by small segments and forgotten a day after their gateway."""
    reports = {each.name: each.config() for each in declared(full_loop)}["movies.models.gateway-reports"]
    assert set(reports["cleanup.policy"].split(",")) == {"compact", "delete"}
    assert (int(reports["retention.ms"]), int(reports["segment.ms"])) == (86_400_000, 600_000)


def test_a_dead_letter_holds_a_record_of_the_greatest_size(full_loop: LoopSpec) -> None:
    """The topic of dead letters takes more than the topic of its records, by at least the headers that are added."""
    by_name = {each.name: int(each.config()["max.message.bytes"]) for each in declared(full_loop)}
    letters = [name for name in by_name if name.endswith(".dlq")]
    assert letters
    assert all(by_name[name] >= by_name[name.removesuffix(".dlq")] + 16_384 for name in letters)
    assert all(by_name[name] == max_record_bytes(name) for name in by_name)


def test_model_topics_keep_their_order() -> None:
    """Everything about models has one partition, so that its order is total."""
    assert {decl.partitions for decl in TOPICS if decl.suffix.startswith("models.")} == {1}


def test_keys_carry_loop_layout_and_shard() -> None:
    """An entity's key names the store's format, loop, shard, layout, kind and id, in that order."""
    key = keys.entity_key("movies", "abc", shard=3, kind="item", id="tt1")
    assert key == "gyre2:{movies:3}:abc:item:tt1"
    assert keys.applied_offset_key("movies", "abc", shard=0, topic="movies.catalog.items", partition=2).startswith(
        keys.prefix("movies", "abc", shard=0)
    )


def test_shards_are_stable_and_in_range() -> None:
    """An entity's virtual shard never moves, because its value would be lost."""
    assert keys.shard_of("item", "tt1", shards=1) == 0
    assert keys.shard_of("item", "tt1", shards=16) == keys.shard_of("item", "tt1", shards=16)
    assert {keys.shard_of("user", str(number), shards=4) for number in range(200)} == {0, 1, 2, 3}


def test_reference_lists_every_topic_and_key() -> None:
    """The tables have one row for each declaration."""
    assert reference.topics_table().count("\n") == len(TOPICS) + 2
    assert reference.keys_table().count("\n") == len(keys.KEYS) + 2
