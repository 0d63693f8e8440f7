"""The lineage of an answer as a tree: the request's trace, and below each link the trace that it leads to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gyre.monitor.v1 import monitor_pb2 as pb
from rich.markup import escape
from rich.tree import Tree

_MAX_ALIKE = 3
_SHOWN = ("gyre.arm", "gyre.version", "gyre.run_id", "gyre.rollout_id", "gyre.trigger_id", "gyre.share", "gyre.reason")


@dataclass
class SpanNode:
    """A span, its children within the trace, and the roots of the traces that it links to."""

    span: pb.TraceSpan
    children: list[SpanNode] = field(default_factory=list)
    linked: list[SpanNode] = field(default_factory=list)

    def walk(self) -> Iterator[SpanNode]:
        """This node and all below it, depth first."""
        yield self
        for each in (*self.children, *self.linked):
            yield from each.walk()


def span_tree(spans: Iterable[pb.TraceSpan], request_id: str) -> list[SpanNode]:
    """The roots of the request's trace, everything else below them; a trace stands where it is first linked.

    A trace that nothing shown links to follows as further roots, so that no span is left out.
    """
    ordered = sorted(spans, key=lambda span: span.start_time.ToNanoseconds())
    nodes = {(span.trace_id, span.span_id): SpanNode(span) for span in ordered}
    roots: dict[str, list[SpanNode]] = defaultdict(list)
    for node in nodes.values():
        parent = nodes.get((node.span.trace_id, node.span.parent_span_id))
        (parent.children if parent else roots[node.span.trace_id]).append(node)
    own = [node.span.trace_id for node in nodes.values() if node.span.attributes.get("gyre.request_id") == request_id]
    placed: set[str] = set()
    found: list[SpanNode] = []
    for trace_id in dict.fromkeys([*own, *roots]):
        if trace_id not in placed:
            placed.add(trace_id)
            _hang(roots[trace_id], roots, placed)
            found.extend(roots[trace_id])
    return found


def _hang(nodes: list[SpanNode], roots: dict[str, list[SpanNode]], placed: set[str]) -> None:
    for node in nodes:
        for link in node.span.links:
            if link.trace_id in roots and link.trace_id not in placed:
                placed.add(link.trace_id)
                node.linked.extend(roots[link.trace_id])
                _hang(roots[link.trace_id], roots, placed)
        _hang(node.children, roots, placed)


def lineage_tree(answer: pb.GetLineageResponse) -> Tree:
    """The lineage as a tree for the terminal: ids first, then the spans."""
    lineage = answer.lineage
    tree = Tree(f"[bold]request[/] {escape(lineage.request_id)}")
    for name in ("model_version", "rollout_id", "run_id", "trigger_id"):
        value = getattr(lineage, name)
        if value:
            tree.add(f"[dim]{name.replace('_', ' ')}[/] {escape(value)}")
    if lineage.snapshots:
        snapshots = ", ".join(f"{table} {snapshot}" for table, snapshot in sorted(lineage.snapshots.items()))
        tree.add(f"[dim]snapshots[/] {escape(snapshots)}")
    if lineage.interaction_ids:
        tree.add(f"[dim]interactions that followed[/] {len(lineage.interaction_ids)}")
    traces = span_tree(answer.spans, lineage.request_id)
    branch = tree.add("[bold]trace[/]" if traces else "[dim]no trace was kept: the request was not sampled[/]")
    for node in traces:
        _add(branch, node, "")
    return tree


def _add(branch: Tree, node: SpanNode, prefix: str) -> None:
    below = branch.add(prefix + _label(node.span))
    for child in node.children:
        _add(below, child, "")
    by_name: dict[str, list[SpanNode]] = defaultdict(list)
    for root in node.linked:
        by_name[root.span.name].append(root)
    for name, roots in by_name.items():
        # The fullest say most; hundreds of alike events may have tipped one trigger.
        shown = sorted(roots, key=lambda root: -sum(1 for _ in root.walk()))[:_MAX_ALIKE]
        for root in shown:
            _add(below, root, "[magenta]linked →[/] ")
        if len(roots) > len(shown):
            below.add(f"[magenta]linked →[/] [dim]{len(roots) - len(shown)} more {escape(name)}[/]")


def _label(span: pb.TraceSpan) -> str:
    seconds = span.duration_s
    took = f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
    facts = " ".join(escape(span.attributes[name]) for name in _SHOWN if span.attributes.get(name))
    colour = "red" if span.failed else "cyan"
    return f"[{colour}]{escape(span.name)}[/] [dim]{escape(span.service)}[/] {took} {facts}".rstrip()
