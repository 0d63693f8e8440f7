"""What the monitor knows by itself: attribution, figures, triggers, incidents, the order of spans."""

import pytest
from gyre_core.spec import Duration
from gyre_core.spec.operations import TriggerSpec, VolumeTrigger
from gyre_monitor.domain.incidents import AlertRecord, incidents
from gyre_monitor.domain.outcomes import LATENCY_BOUNDS_S, Action, ArmTotals, LoggedAnswer, attributed, latency_bucket
from gyre_monitor.domain.stages import flowing, rollout, training
from gyre_monitor.domain.traces import StoredSpan, parents_first
from gyre_monitor.domain.triggers import Due, Reason, Standing, due
from gyre_monitor.settings import MonitorSettings
from gyre_runtime import load_settings

WINDOW_S = 60.0


def answer(
    request_id: str, *, at: float = 0.0, user: bytes = b"u", items: tuple[str, ...] = ("a", "b")
) -> LoggedAnswer:
    """An answer to one user."""
    return LoggedAnswer(request_id, user, at, items)


def action(event_id: str, *, at: float, user: bytes = b"u", item: str = "a", request_id: str = "") -> Action:
    """A click of one user."""
    return Action(event_id, request_id, user, item, "click", at)


def credited(answers: list[LoggedAnswer], actions: list[Action]) -> dict[str, list[str]]:
    """Event ids by request id."""
    found = attributed(answers, actions, window_s=WINDOW_S)
    return {request_id: [each.event_id for each in actions] for (_, request_id), actions in found.items()}


def test_an_interaction_that_names_its_answer_belongs_to_it_alone() -> None:
    """The user's request id decides, whatever the item or the time; another user's answer is named by nobody else."""
    answers = [answer("r1"), answer("r2")]
    assert credited(answers, [action("e", at=1, user=b"v", request_id="r2")]) == {}
    assert credited(answers, [action("e", at=1e6, item="z", request_id="r2")]) == {"r2": ["e"]}
    assert credited(answers, [action("e", at=1, request_id="elsewhere")]) == {}


@pytest.mark.parametrize(
    ("at", "item", "user", "belongs"),
    [
        (100.0, "a", b"u", True),
        (160.0, "b", b"u", True),
        (160.001, "a", b"u", False),
        (99.999, "a", b"u", False),
        (110.0, "c", b"u", False),
        (110.0, "a", b"v", False),
    ],
)
def test_an_interaction_without_a_name_belongs_to_who_saw_the_item_in_time(
    at: float, item: str, user: bytes, belongs: bool
) -> None:
    """User, item and the closed attribution window by event time decide."""
    found = credited([answer("r", at=100.0)], [action("e", at=at, item=item, user=user)])
    assert found == ({"r": ["e"]} if belongs else {})


def test_every_answer_that_showed_the_item_is_credited() -> None:
    """Two answers to the same user within the window are both credited, as the trainer labels both."""
    answers = [answer("r1", at=0), answer("r2", at=30), answer("r3", at=30, items=("x",))]
    assert credited(answers, [action("e", at=40)]) == {"r1": ["e"], "r2": ["e"]}


def test_figures_of_an_arm() -> None:
    """Shares divide by answers, and the interval encloses the share."""
    totals = ArmTotals()
    totals.add(impressions=200, clicked=50, converted=10, degraded=4)
    assert (totals.ctr, totals.conversion, totals.degraded_share) == (0.25, 0.05, 0.02)
    low, high = totals.ctr_interval()
    assert (low, high) == pytest.approx((0.1951, 0.3143), abs=1e-3)
    empty = ArmTotals()
    assert (empty.ctr, empty.conversion, empty.degraded_share, empty.latency_s(0.5)) == (0, 0, 0, 0)


def test_latency_quantiles_are_right_within_a_fifth() -> None:
    """The buckets bound the error of a quantile; what lies past the last bound is reported as that."""
    totals = ArmTotals()
    for milliseconds in range(1, 1001):
        totals.add_latency(latency_bucket(milliseconds / 1000))
    assert totals.latency_s(0.5) == pytest.approx(0.5, rel=0.1)
    assert totals.latency_s(0.99) == pytest.approx(0.99, rel=0.1)
    slow = ArmTotals()
    slow.add_latency(latency_bucket(1e6))
    assert slow.latency_s(0.5) == LATENCY_BOUNDS_S[-1] > 50


BOTH = TriggerSpec(volume=VolumeTrigger(events=100), schedule=Duration.parse("1h"))


@pytest.mark.parametrize(
    ("triggers", "interactions", "elapsed_s", "expected"),
    [
        (BOTH, 99, 3599.0, None),
        (BOTH, 100, 0.0, Due(Reason.VOLUME, 100, 100)),
        (BOTH, 250, 4000.0, Due(Reason.VOLUME, 250, 100)),
        (BOTH, 0, 3600.0, Due(Reason.SCHEDULE, 3600, 3600)),
        (BOTH, 99, None, None),
        (TriggerSpec(), 10**9, 1e9, None),
    ],
)
def test_a_run_is_due_by_volume_or_by_schedule(
    triggers: TriggerSpec, interactions: int, elapsed_s: float | None, expected: Due | None
) -> None:
    """The threshold itself is enough; volume goes first; without a clock no schedule is due."""
    assert due(triggers, Standing(interactions, elapsed_s)) == expected


def alert(alert_id: str, start: float, end: float | None) -> AlertRecord:
    """An alert."""
    return AlertRecord(alert_id, "slow", 2, "slow", start, end)


def test_alerts_that_overlap_or_follow_closely_are_one_incident() -> None:
    """A gap parts incidents, a short one inside a long one does not; the id stays while alerts join."""
    first = [alert("a", 0, 100), alert("b", 10, 20), alert("c", 150, 160)]
    found = incidents([alert("d", 400, None), *reversed(first)], gap_s=60)
    assert [[each.alert_id for each in incident.alerts] for incident in found] == [["d"], ["a", "b", "c"]]
    assert [(incident.start_time, incident.end_time) for incident in found] == [(400, None), (0, 160)]
    assert incidents(first[:1], gap_s=60)[0].incident_id == found[1].incident_id
    assert found[0].incident_id != found[1].incident_id
    assert len(incidents([alert("open", 0, None), alert("later", 1e9, 2e9)], gap_s=60)) == 1


def span(span_id: str, parent: str = "", *, start: int = 0, trace: str = "t") -> StoredSpan:
    """A span."""
    return StoredSpan(trace, span_id, parent, "s", span_id, start, 0.0, failed=False, is_model=False)


def test_parents_come_before_children_whatever_their_clocks_say() -> None:
    """A child that seems to begin before its parent still follows it; siblings go by their beginning."""
    spans = [span("c2", "b", start=9), span("c1", "b", start=5), span("b", "a", start=7), span("a", start=8)]
    assert [each.span_id for each in parents_first(spans)] == ["a", "b", "c1", "c2"]


def test_spans_without_a_parent_at_hand_are_roots() -> None:
    """A parent that was not kept, or is of another trace, orders nothing and hides nothing."""
    spans = [span("x", "gone", start=2), span("y", "x", start=1, trace="other"), span("a", start=3)]
    assert [each.span_id for each in parents_first(spans)] == ["y", "x", "a"]
    circle = [span("p", "q"), span("q", "p"), span("r", "r")]
    assert {each.span_id for each in parents_first(circle)} == {"p", "q", "r"}


def test_stages_in_words() -> None:
    """What a person reads of each stage."""
    assert flowing("serving", now=100, update_time=90) == "answering"
    assert flowing("serving", now=200, update_time=90) == "idle"
    assert training(version="v1", closed=False, run_state="registered") == "registered"
    assert training(version="", closed=True, run_state="refused") == "refused"
    assert training(version="", closed=False, run_state="") == "triggered"
    assert rollout("shifted", 0.1) == "canary 10 %"
    assert rollout("rolled_back", 0.0) == "rolled back"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u:secret@h/db", "postgresql://h/db", "mysql://h/db", "sqlite://", "sqlite:///",
        "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "monitor.db",
    ],
)  # fmt: skip
def test_only_a_sqlite_file_is_a_database(url: str) -> None:
    """Any other database stops the start, with setting, value and rule, and without a password."""
    with pytest.raises(SystemExit) as caught:
        load_settings(MonitorSettings, {"GYRE_MONITOR_DATABASE": url})
    message = str(caught.value)
    assert message.startswith("GYRE_MONITOR_DATABASE=")
    assert message.endswith("must be sqlite:///FILE, a database in a file, or empty")
    assert url.replace("secret", "…") in message
    assert "secret" not in message


@pytest.mark.parametrize("url", ["", "sqlite:///monitor.db", "sqlite:////var/lib/gyre/monitor.db"])
def test_a_sqlite_file_is_taken(url: str) -> None:
    """A file by its relative or absolute path, or none, in whose place the one of the state folder is."""
    settings = load_settings(MonitorSettings, {"GYRE_MONITOR_DATABASE": url})
    assert settings.database_url == url or settings.database_url.endswith("/var/state/monitor.db")
