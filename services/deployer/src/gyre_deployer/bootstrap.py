"""Builds the service on a lifespan: Triton, a log and a reconciler for each loop, the gRPC server."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from gyre.deployer.v1.deployer_pb2_grpc import add_DeployerServiceServicer_to_server
from gyre_core.models import triton_model
from gyre_core.spec import LoopSpec
from gyre_runtime import Dependency, Lifespan, Registration, Server, build_server, load_loops
from gyre_runtime.kafka import Producer, ensure_topics
from gyre_runtime.layouts import LayoutCatalog

from gyre_deployer.adapters.alerts import KafkaAlerts
from gyre_deployer.adapters.artifacts import ArtifactFolders
from gyre_deployer.adapters.kafka_log import SOURCE, KafkaRolloutLog
from gyre_deployer.adapters.layouts import KnownLayouts
from gyre_deployer.adapters.repository import TritonRepository
from gyre_deployer.adapters.triton import TritonControl
from gyre_deployer.adapters.views import KafkaCandidates, KafkaGateways, own_projection
from gyre_deployer.handlers.commands import Commands
from gyre_deployer.handlers.ledger import RolloutLedger
from gyre_deployer.handlers.loading import LoadAttempts
from gyre_deployer.handlers.reconcile import Reconciler
from gyre_deployer.handlers.recovery import Recovery
from gyre_deployer.handlers.serving import ServedVersions, WarmUp
from gyre_deployer.handlers.waiting import Waiting
from gyre_deployer.settings import DeployerSettings
from gyre_deployer.transport.servicer import DeployerServicer


@dataclass(frozen=True, slots=True)
class RunningDeployer:
    """What tests and programs that embed the service may look at."""

    server: Server
    ledgers: dict[str, RolloutLedger]


async def bootstrap(lifespan: Lifespan, settings: DeployerSettings) -> RunningDeployer:
    """Wire the service; it serves once every loop's log is folded, and waits for Triton where it needs it.

    It listens meanwhile, and answers for the loops whose logs are folded already.
    """
    loops = load_loops(settings)
    triton = await lifespan.enter(TritonControl(settings, timeout_s=settings.deployer_triton_timeout_s))
    lifespan.depends_on(Dependency("triton", triton.is_live, required=False))
    commands: dict[str, Commands] = {}
    ledgers: dict[str, RolloutLedger] = {}
    registration = Registration(add_DeployerServiceServicer_to_server, DeployerServicer(loops, commands))
    server = await lifespan.serve(build_server(settings, [registration], health=lifespan.health))

    def on_trial() -> frozenset[str]:
        under_way = ((loop, ledger.state.under_way) for loop, ledger in ledgers.items())
        return frozenset(triton_model(loop, each.version) for loop, each in under_way if each and each.is_on_traffic)

    attempts = LoadAttempts(
        triton,
        TritonRepository(settings.triton_repository),
        first_backoff_s=settings.deployer_load_backoff_s,
        timeout_s=settings.deployer_triton_timeout_s,
        on_trial=on_trial,
    )

    async def fold(spec: LoopSpec) -> None:
        await ensure_topics(settings, [spec])
        folded = await _serve_loop(lifespan, settings, spec, triton, attempts)
        ledgers[spec.loop], commands[spec.loop] = folded.ledger, folded

    for name, spec in loops.items():
        lifespan.set_up(f"log of {name}", fold(spec))
    return RunningDeployer(server, ledgers)


async def _serve_loop(
    lifespan: Lifespan, settings: DeployerSettings, spec: LoopSpec, triton: TritonControl, attempts: LoadAttempts
) -> Commands:
    """One loop: fence a twin first, then fold the log, and only then write."""
    loop = spec.loop
    arrived = asyncio.Event()
    log = await lifespan.enter(KafkaRolloutLog(settings.kafka, loop))
    ledger = await lifespan.enter(RolloutLedger(loop, log, max_ended=spec.retention.rollouts))
    gateways = await lifespan.enter(KafkaGateways(settings.kafka, loop))
    candidates = await lifespan.enter(
        KafkaCandidates(settings.kafka, loop, start=ledger.state.candidates_offset, on_arrival=arrived.set)
    )
    ledger.candidates = candidates
    alerts = KafkaAlerts(await lifespan.enter(Producer(settings.kafka, source=SOURCE)))
    projection = await lifespan.enter(own_projection(settings.kafka, loop, ledger.note_epoch))
    repository = TritonRepository(settings.triton_repository)
    catalog = await lifespan.enter(LayoutCatalog(settings.kafka, {loop: spec}))
    await catalog.ready()
    lifespan.background(f"layouts of {loop}", catalog.follow())
    layouts = KnownLayouts(spec, catalog)
    serving = ServedVersions(
        layouts,
        triton,
        repository,
        ArtifactFolders(),
        WarmUp(settings.deployer_warmup_requests, settings.deployer_warmup_rows),
        attempts,
    )
    waiting = Waiting(ledger, candidates, layouts, settings.deployer_layout_wait_s, time.monotonic)
    recovery = Recovery(ledger, serving, alerts, first_pause_s=settings.deployer_outage_pause_s)
    reconciler = Reconciler(spec, ledger, recovery, waiting, gateways)
    for name, check in (
        ("candidates", candidates.check),
        ("gateway reports", gateways.check),
        ("projection", projection.check),
    ):
        lifespan.depends_on(Dependency(f"{name} of {loop}", check))
    lifespan.background(f"candidates of {loop}", candidates.run(), stop=candidates.consumer.stop)
    lifespan.background(
        f"rollouts of {loop}", reconciler.run(tick_s=settings.deployer_tick_s, arrived=arrived), stop=reconciler.stop
    )
    return Commands(ledger, candidates)
