"""`check`: compares what was served with a replay of the warehouse, in intervals and when asked; `check-once`: once."""

import sys
from collections.abc import Iterator

from gyre.features.v1 import parity_pb2_grpc as rpc
from gyre_runtime import Lifespan, Registration, Server, build_server, load_loops

from gyre_features.parity.checks import Checks, run_check
from gyre_features.parity.loop import LoopReport
from gyre_features.parity.servicer import ParityServicer
from gyre_features.settings import CheckSettings


async def check(lifespan: Lifespan, settings: CheckSettings) -> Server:
    """Wire the process, whose first check of all loops is one interval after the start; answers its running server."""
    checks = Checks(settings, load_loops(settings))
    services = [Registration(rpc.add_ParityServiceServicer_to_server, ParityServicer(checks))]
    lifespan.background("scheduled checks", checks.run())
    lifespan.background("erasures", checks.follow_erasures())
    return await lifespan.serve(build_server(settings, services, health=lifespan.health))


def check_once(settings: CheckSettings) -> int:
    """Check every loop, print what was found, and answer the exit code: 1 where a value mismatches, else 0.

    What nothing can be said about is printed and changes no exit code.
    """
    mismatches = 0
    for loop in load_loops(settings):
        for report in run_check(settings, loop, settings.features_check_impressions):
            mismatches += report.found.mismatches
            sys.stdout.write("".join(f"{line}\n" for line in lines(report)))
    return 1 if mismatches else 0


def lines(report: LoopReport) -> Iterator[str]:
    """The lines of one layout's report, for people, without ends of lines."""
    found = report.found
    yield (
        f"{report.loop}: parity: {found.impressions:,} impressions, {found.values:,} values, "
        f"{found.mismatches:,} mismatches, {found.unknown:,} unknown, {report.pending:,} pending"
    )
    replayed = f"{report.events:,} events in {report.batches:,} batches replayed in {report.seconds:.1f} s"
    yield f"  layout {report.layout}: {replayed}"
    for reason, count in found.reasons.most_common():
        yield f"  unknown: {count:,}: {reason}"
    yield from (f"  {line}" for line in report.rows.lines())
    if found.examples:
        yield f"  {'request':<34} {'item':<16} {'column':<28} {'served':>14} {'replayed':>14}"
    for each in found.examples:
        served, replayed = f"{each.served:>14.7g}", f"{each.replayed:>14.7g}"
        yield f"  {each.request_id:<34} {each.item_id:<16} {each.column:<28} {served} {replayed}"
