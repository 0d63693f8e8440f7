"""The examples: their loops are valid, their worlds reproducible, and what they measure is measured right."""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from available import available
from demo_loop.baseline import DecayedPopularity
from demo_loop.scenario import OTHERS, Choice, RecentItems, split, with_candidates
from demo_loop.traffic import IN_FLIGHT, Traffic, quality
from grocery.dataset import GroceryMissing
from grocery.dataset import find as find_grocery
from grocery.protocol import among_promoted
from grocery.protocol import scenario as grocery_scenario
from gyre_client.history import prepare
from gyre_core.features import Layout, Replay, RequestContext, UserInteraction
from gyre_core.spec import load_loop, parse_loop
from gyre_runtime import Unavailable
from movies import dataset
from movies.dataset import DataMissing
from simworld.protocol import scenario
from simworld.world import CANDIDATES, CATEGORIES, World

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/gyre.yaml")), ids=lambda path: path.parent.name)
def test_every_example_is_valid(path: Path) -> None:
    """Each gyre.yaml of the examples has no issue, and is named like its folder."""
    assert load_loop(path).loop == path.parent.name


def test_the_readme_shows_a_valid_loop() -> None:
    """What the README tells people to start from passes `gyre validate`."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    loops = [parse_loop(block, source="README.md") for block in blocks if "\nloop: " in block]
    assert [spec.loop for spec in loops] == ["shop"]


def test_a_world_is_made_by_its_seed() -> None:
    """The same seed gives the same events, another seed others."""
    first, again, other = (list(World(seed=seed).events(50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_choices_follow_the_known_preference() -> None:
    """The chosen item's utility is far above the candidates' mean, and the best ranking is by utility."""
    world = World()
    events = list(world.events(400))
    gains, ranked = [], []
    for event in events:
        worth = world.utility(event.interaction.user_id, event.candidates)
        chosen = event.candidates.index(event.interaction.item_id)
        gains.append(worth[chosen] - worth.mean())
        ranked.append((worth.tolist(), [float(item == event.interaction.item_id) for item in event.candidates]))
    assert np.mean(gains) > 1.0
    chance = quality([([0.0] * CANDIDATES, relevance) for _, relevance in ranked])
    assert quality(ranked).ndcg > 3 * chance.ndcg


def test_a_world_has_what_its_loop_declares() -> None:
    """Items carry the declared fields and one of the declared categories, users click nothing else."""
    spec = load_loop(ROOT / "examples/simworld/gyre.yaml")
    assert tuple(spec.items.fields["category"].values) == CATEGORIES  # type: ignore[union-attr]
    catalogue = World().catalogue()
    assert {frozenset(item.fields) for item in catalogue} == {frozenset(spec.items.fields)}
    assert {event.interaction.type for event in World().events(20)} == set(spec.events.interactions)


def test_the_scenario_parts_time_in_order() -> None:
    """History ends before live begins, impressions are the newest of the history and hold what was chosen."""
    made = scenario(World(), events=6000, history=5000)
    assert len(made.history) == 5000
    assert max(each.time for each in made.history) < min(each.interaction.time for each in made.live)
    chosen = {(each.user_id, each.time): each.item_id for each in made.history}
    assert [each.time for each in made.shown] == [each.time for each in made.history[-len(made.shown) :]]
    assert all(chosen[each.user_id, each.time] in each.item_ids for each in made.shown)


def test_candidates_are_drawn_from_recent_items_only() -> None:
    """An item counts while an event of it is within the window; without enough of them nothing is drawn."""
    events = [UserInteraction("u", f"i{number % 150}", "click", float(number)) for number in range(600)]
    choices = list(with_candidates(events, window_s=140.0, seed=1))
    assert not choices[50].candidates
    # Items come back after 150 s, when they have just left the window of 140 s.
    assert not any(choice.candidates for choice in choices)
    again = list(with_candidates(events, window_s=160.0, seed=1))
    for choice in again[200:]:
        assert len(set(choice.candidates)) == OTHERS + 1
        assert choice.relevance.count(1.0) == 1
    assert again == list(with_candidates(events, window_s=160.0, seed=1))


def test_recent_items_forget_and_count_right() -> None:
    """An item with two events stays until the second is too old."""
    recent = RecentItems(10.0)
    recent.add("a", 0.0)
    recent.add("b", 1.0)
    recent.add("a", 5.0)
    recent.forget_before(11.5)
    assert ("a" in recent, "b" in recent, len(recent)) == (True, False, 1)
    recent.forget_before(15.5)
    assert len(recent) == 0


def test_the_split_keeps_what_has_no_candidates() -> None:
    """A live interaction without candidates is told, too, but does not count as a request."""
    clicks = [UserInteraction("u", "i", "click", float(number)) for number in range(20)]
    choices = [Choice(click, ("i",) if click.time % 2 else ()) for click in clicks]
    history, shown, live = split(choices, history_share=0.5, shown=3, live=4)
    assert (len(history), [each.time for each in shown]) == (10, [5.0, 7.0, 9.0])
    assert [choice.interaction.time for choice in live] == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0]


def test_the_baseline_is_the_seven_day_count_of_the_feature_algebra() -> None:
    """The baseline equals the column that the mesh falls back to, so that the comparison is fair."""
    spec = load_loop(ROOT / "examples/simworld/gyre.yaml")
    layout = Layout.compile(spec)
    replay, baseline = Replay(layout), DecayedPopularity(7 * 86_400.0)
    column = layout.index[spec.serving.fallback_feature or ""]
    for event in World().events(300):
        interaction = event.interaction
        matrix, _ = replay.matrix(interaction.user_id, event.candidates, RequestContext(interaction.time))
        expected = baseline.scores(event.candidates, interaction.time)
        np.testing.assert_allclose(matrix[:, column], expected, rtol=1e-4, atol=1e-6)
        replay.apply([interaction])
        baseline.add([interaction])


class SlowGateway:
    """Answers after a turn of the event loop; notes order and concurrency; fails where it is told to."""

    def __init__(self, *, failing: frozenset[str] = frozenset()) -> None:
        self.order: dict[str, list[float]] = {}
        self.in_flight = self.most = 0
        self.failing = failing

    async def rank(self, loop: str, user_id: str, item_ids: tuple[str, ...], **options: Any) -> Any:
        """Score the first candidate best."""
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self.order.setdefault(user_id, []).append(options["time"])
        for _ in range(int(user_id[1:]) % 3 + 1):
            await asyncio.sleep(0)
        self.in_flight -= 1
        if user_id in self.failing:
            raise Unavailable("GONE", "for now")
        items = [SimpleNamespace(item_id=item, score=-place) for place, item in enumerate(item_ids)]
        how = SimpleNamespace(request_id="r", model_version="v", arm="live", degraded=False, degraded_reason="")
        return SimpleNamespace(items=items, provenance=how)

    async def track(self, loop: str, events: list[Any]) -> list[str]:
        """Note the order."""
        self.order[events[0].user_id].append(-events[0].time)
        return ["e"]


async def replayed(gateway: SlowGateway, count: int = 300) -> Traffic:
    """The traffic of some choices of a world against a gateway."""
    choices = [Choice(event.interaction, event.candidates) for event in World(users=5).events(count)]
    traffic = Traffic(gateway, "shop", DecayedPopularity(1.0))  # type: ignore[arg-type]
    await traffic.replay(choices, done=lambda: False)
    return traffic


async def test_a_users_requests_keep_their_order() -> None:
    """However many requests are in flight, a user's next one waits until the one before was ranked and tracked."""
    gateway = SlowGateway()
    traffic = await replayed(gateway)
    assert (len(traffic.answers), traffic.tracked, traffic.failures) == (300, 300, [])
    assert 1 < gateway.most <= IN_FLIGHT
    for times in gateway.order.values():
        ranked, tracked = times[::2], [-each for each in times[1::2]]
        assert ranked == tracked == sorted(ranked)


async def test_failures_are_counted_and_do_not_end_the_traffic() -> None:
    """A request that fails is in the report, its interaction is tracked all the same."""
    traffic = await replayed(SlowGateway(failing=frozenset({"u0"})))
    assert traffic.failures
    assert all(each == "Rank: GONE: for now" for each in traffic.failures)
    assert traffic.tracked == 300
    assert len(traffic.answers) + len(traffic.failures) == 300


def test_missing_data_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the data anywhere the message names every place, and why a wrong file does not do."""
    wrong = tmp_path / "given"
    wrong.mkdir()
    (wrong / "movies.dat").write_text("something else")
    monkeypatch.setenv("GYRE_DATA", str(wrong))
    monkeypatch.setenv("GYRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(dataset, "ORIGIN", (tmp_path / "nowhere").as_uri() + "/")
    with pytest.raises(DataMissing) as caught:
        dataset.find()
    assert "movies.dat is not that of the 100K snapshot" in str(caught.value)
    assert str(tmp_path / "shared") in str(caught.value)


def test_a_download_is_kept_only_with_the_right_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed original is refused and leaves no file that a later start would take."""
    origin = tmp_path / "origin"
    origin.mkdir()
    for name in dataset.CHECKSUMS:
        (origin / name).write_text("1::2::3::4\n")
    monkeypatch.setattr(dataset, "ORIGIN", origin.as_uri() + "/")
    with pytest.raises(OSError, match="another checksum"):
        dataset.download(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.dat"))


def test_without_data_the_simulated_world_is_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """`make demo` falls back and says why; a wished world, or one with its data, is taken as it is."""

    def missing() -> Path:
        raise DataMissing("nowhere")

    monkeypatch.setattr("available.find", missing)
    assert available("movies") == "simworld"
    assert "nowhere" in capsys.readouterr().err
    monkeypatch.setattr("available.find", Path)
    assert (available("movies"), available("simworld")) == ("movies", "simworld")


def test_groceries_are_chosen_among_what_was_promoted_and_sells() -> None:
    """Candidates come from the week's promotions that were sold of late; other purchases are only told."""
    seen = frozenset(f"p{number}" for number in range(0, 400, 2))
    bought = [
        (UserInteraction("h", f"p{n % 400}", "purchase", 1000.0 * n, 1.0), 1 if n < 900 else 2) for n in range(1200)
    ]
    choices = list(among_promoted(bought, {1: seen}, seed=3))
    assert not any(choice.candidates for choice in choices[:400])
    assert not any(choice.candidates for choice in choices[900:])
    for choice in choices[500:900]:
        assert bool(choice.candidates) == (choice.interaction.item_id in seen)
        assert set(choice.candidates) <= seen
        assert len(set(choice.candidates)) == len(choice.candidates)
    assert sum(sum(choice.relevance) for choice in choices[500:900]) == 200
    assert choices == list(among_promoted(bought, {1: seen}, seed=3))


def test_the_grocery_data_carry_the_loop() -> None:
    """Every purchase and product of the real sample passes the rules of the loop, and enough choices come live."""
    try:
        folder = find_grocery()
    except GroceryMissing as error:
        pytest.skip(str(error))
    made = grocery_scenario(folder)
    spec = load_loop(made.spec_file)
    assert len(made.history) + len(made.live) == 75_000
    for event in (*made.items[:500], *made.history[:500], *made.shown[:50]):
        assert prepare(spec, event)
    assert sum(bool(choice.candidates) for choice in made.live) >= made.enough
    assert max(each.time for each in made.history) <= made.live[0].interaction.time


def test_missing_groceries_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names every place and how the files are made."""
    monkeypatch.setenv("GYRE_DATA", str(tmp_path))
    monkeypatch.setattr("grocery.dataset.SHARED", tmp_path / "shared")
    with pytest.raises(GroceryMissing, match="transactions_sample") as caught:
        find_grocery()
    assert str(tmp_path / "shared") in str(caught.value)
