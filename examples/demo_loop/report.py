"""What a demo prints in the end: the served model against the baseline, the figures, the stages, one lineage."""

import asyncio
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter

from gyre_client.cli.features import summary
from gyre_client.lineage import lineage_tree
from rich.console import Console
from rich.table import Table

from demo_loop.traffic import Quality, Traffic
from demo_loop.turn import Stage, Turn

_TIMEOUT_S = 5


async def report(turn: Turn, console: Console) -> bool:
    """Print everything; answer whether all stages happened and the gain is enough."""
    served, popular = turn.traffic.served(), turn.traffic.popular()
    stages = list(turn.stages)
    gain = served.ndcg / popular.ndcg - 1 if popular.ndcg else 0.0
    if turn.traffic.answers:
        stages.extend(_gain(gain, turn.scenario.least_gain))
        console.print(_measures(turn, served, popular))
        console.print(await _figures(turn))
    if turn.lineage is not None:
        console.print(lineage_tree(turn.lineage))
    console.print(_stages(stages))
    if turn.parity is not None:
        console.print(summary(turn.parity))
    return bool(stages) and all(stage.happened for stage in stages)


def _gain(gain: float, least: float | None) -> list[Stage]:
    """The stage that the gain is, where the scenario wants one; the table shows it anyway."""
    if least is None:
        return []
    return [Stage("served model beats popularity", gain >= least, f"{gain:+.2%} NDCG@10, at least {least:+.0%} wanted")]


def _measures(turn: Turn, served: Quality, popular: Quality) -> Table:
    made = Table(title=f"{turn.scenario.title}: {len(turn.traffic.answers):,} rankings of 100 candidates")
    for heading in ("", "NDCG@10", "hit rate@10", "MRR"):
        made.add_column(heading, justify="left" if not heading else "right")
    for name, value in (
        (f"popularity ({turn.scenario.baseline_half_life} half-life)", popular),
        ("served model", served),
    ):
        made.add_row(name, f"{value.ndcg:.4f}", f"{value.hit_rate:.4f}", f"{value.mrr:.4f}")
    pairs = ((served.ndcg, popular.ndcg), (served.hit_rate, popular.hit_rate), (served.mrr, popular.mrr))
    made.add_row("gain", *(f"{own / other - 1:+.2%}" if other else "" for own, other in pairs))
    return made


async def _figures(turn: Turn) -> Table:
    answers, traffic = turn.traffic.answers, turn.traffic
    made = Table(show_header=False, box=None, pad_edge=False)
    rate = len(answers) / turn.live_s if turn.live_s else 0.0
    made.add_row("requests", f"{len(answers):,} in {turn.live_s:.0f} s, {rate:.0f} a second")
    made.add_row("interactions tracked", f"{traffic.tracked:,}")
    made.add_row("failures", f"{len(traffic.failures)}")
    made.add_row("degraded answers", _degraded(traffic))
    made.add_row("answers by version", _versions(traffic))
    latencies = sorted(each.latency_s for each in answers)
    made.add_row("Rank p50 / p99", f"{_quantile(latencies, 0.5)} / {_quantile(latencies, 0.99)}")
    fresh = [await asyncio.to_thread(freshness_s, turn, q) for q in (0.5, 0.99)]
    made.add_row("feature freshness p50 / p99", " / ".join(_milliseconds(each) for each in fresh))
    made.add_row("loop time", f"{turn.status.loop_time_s:.1f} s from trigger to all traffic")
    return made


def _degraded(traffic: Traffic) -> str:
    reasons = Counter(each.degraded_reason for each in traffic.answers if each.degraded_reason)
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return f"{reasons.total()}{f' ({listed})' if listed else ''}"


def _versions(traffic: Traffic) -> str:
    counts = Counter((each.version or "no model", each.arm) for each in traffic.answers)
    return ", ".join(f"{version} {arm} {count:,}" for (version, arm), count in counts.items())


def _quantile(ordered: list[float], q: float) -> str:
    return _milliseconds(ordered[min(int(q * len(ordered)), len(ordered) - 1)]) if ordered else "not measured"


def _milliseconds(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{1000 * seconds:.1f} ms"


def freshness_s(turn: Turn, q: float) -> float | None:
    """A quantile over the live part: from an event's arrival in Kafka to its readability; None where unknown."""
    window = f'increase(gyre_features_freshness_seconds_bucket{{loop="{turn.loop}"}}[{max(round(turn.live_s), 10)}s])'
    query = urllib.parse.urlencode({"query": f"histogram_quantile({q}, sum by (le) ({window}))"})
    url = f"{turn.settings.prometheus}/api/v1/query?{query}"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 (the settings allow http only)
            found = json.load(answer)["data"]["result"]
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None
    seconds = float(found[0]["value"][1]) if found else math.nan
    return seconds if math.isfinite(seconds) else None


def _stages(stages: list[Stage]) -> Table:
    made = Table(title="what happened", box=None, pad_edge=False)
    for heading in ("", "stage", "fact"):
        made.add_column(heading)
    for stage in stages:
        mark = "[green]✓[/]" if stage.happened else "[red]✗[/]"
        made.add_row(mark, stage.name, stage.fact)
    return made
