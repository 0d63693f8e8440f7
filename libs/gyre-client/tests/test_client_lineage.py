"""The lineage tree: links join traces, nothing is shown twice or left out, and what is alike is counted."""

from gyre.monitor.v1 import monitor_pb2 as pb
from gyre_client.lineage import lineage_tree, span_tree
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console


def span(
    trace: int, number: int, parent: int = 0, *, links: list[tuple[int, int]] | None = None, name: str = ""
) -> pb.TraceSpan:
    """A span with ids made of small numbers; the request's has the id `r`."""
    made = pb.TraceSpan(
        trace_id=f"{trace:032x}",
        span_id=f"{number:016x}",
        parent_span_id=f"{parent:016x}" if parent else "",
        service="service",
        name=name or f"span {trace}.{number}",
        duration_s=0.001,
    )
    made.start_time.FromNanoseconds(1000 * trace + number)
    for to_trace, to_span in links or []:
        made.links.add(trace_id=f"{to_trace:032x}", span_id=f"{to_span:016x}")
    if (trace, number) == (1, 1):
        made.attributes["gyre.request_id"] = "r"
    return made


def printed(answer: pb.GetLineageResponse) -> str:
    """The tree as text."""
    console = Console(width=200, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(lineage_tree(answer))
    return capture.get()


def test_linked_traces_hang_below_their_links() -> None:
    """Request, rollout, run and trigger become one tree, in the order of the links."""
    spans = [
        span(4, 1, name="training trigger"),
        span(3, 1, name="training run", links=[(4, 1)]),
        span(3, 2, 1, name="train"),
        span(2, 1, name="rollout", links=[(3, 1)]),
        span(1, 2, 1, name="GetFeatures"),
        span(1, 1, name="Rank", links=[(2, 1)]),
    ]
    lineage = pb.Lineage(request_id="r", model_version="v2", snapshots={"items": 7})
    text = printed(pb.GetLineageResponse(lineage=lineage, spans=spans))
    places = [text.index(each) for each in ("Rank", "rollout", "training run", "training trigger")]
    assert places == sorted(places)
    depths = [
        next(line.index(each) for line in text.splitlines() if each in line)
        for each in ("Rank", "rollout", "training run")
    ]
    assert depths == sorted(set(depths))
    assert "items 7" in text


def test_alike_links_are_counted() -> None:
    """Of twenty alike traces three are shown, the others are counted."""
    events = [span(number, 1, name="Track") for number in range(10, 30)]
    root = span(1, 1, name="Rank", links=[(number, 1) for number in range(10, 30)])
    text = printed(pb.GetLineageResponse(lineage=pb.Lineage(request_id="r"), spans=[*events, root]))
    assert text.count("Track service") == 3
    assert "17 more Track" in text


def test_an_unsampled_answer_says_so() -> None:
    """Without spans the ids are shown, with the reason that there is no trace."""
    text = printed(pb.GetLineageResponse(lineage=pb.Lineage(request_id="r", run_id="run-1")))
    assert "run-1" in text
    assert "not sampled" in text


def test_names_are_not_markup() -> None:
    """A span whose name looks like markup is shown as it is."""
    assert "[red]x" in printed(
        pb.GetLineageResponse(lineage=pb.Lineage(request_id="r"), spans=[span(1, 1, name="[red]x")])
    )


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(1, 5), st.integers(1, 6)), max_size=20))
def test_every_span_stands_in_the_tree_once(drawn: list[tuple[int, int, int, int]]) -> None:
    """Whatever parents are missing and however links loop, no span is lost or repeated."""
    counts: dict[int, int] = {}
    spans = []
    for trace, parent, to_trace, to_span in drawn:
        counts[trace] = counts.get(trace, 0) + 1
        own = counts[trace]
        spans.append(span(trace, own, parent if parent < own else 0, links=[(to_trace, to_span)]))
    found = [node.span for root in span_tree(spans, "r") for node in root.walk()]
    assert sorted(each.name for each in found) == sorted(each.name for each in spans)
