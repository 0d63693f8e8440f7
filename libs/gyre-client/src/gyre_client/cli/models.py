"""Commands about training runs and rollouts."""

import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
from gyre.deployer.v1 import deployer_pb2 as deployer
from gyre.trainer.v1 import trainer_pb2 as trainer
from gyre_runtime import NotFound, call
from rich.console import Group, RenderableType

from gyre_client.cli.session import TIMEOUT_S, JsonOption, LoopArgument, ask, console, fail, show, table, when
from gyre_client.mesh import Mesh

RolloutArgument = Annotated[str, typer.Argument(help="The rollout; the newest by default.", show_default=False)]
VersionArgument = Annotated[str, typer.Argument(help="A version that `gyre runs` lists.", show_default=False)]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the log.", show_default=False)]
_WATCH_S = 3600.0
_BAD = (trainer.RUN_STATE_REFUSED, trainer.RUN_STATE_FAILED)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (runs, train, rollouts, offer, promote, rollback, pause):
        app.command()(command)


def word(enum: Any, value: int) -> str:
    """A value of a proto's enum of states for people, its name behind `_STATE_`: `RUN_STATE_GATE` is `gate`."""
    name: str = enum.Name(value)
    return name.partition("_STATE_")[2].replace("_", " ").lower()


def runs(loop: LoopArgument, *, as_json: JsonOption = False) -> None:
    """List training runs, newest first."""
    request = trainer.ListRunsRequest(loop=loop)
    answer = ask("trainer", lambda mesh: call(mesh.trainer.ListRuns, request, timeout_s=TIMEOUT_S))
    show(answer, as_json=as_json, render=lambda: _runs(answer))


def _runs(answer: trainer.ListRunsResponse) -> RenderableType:
    made = table("run", "state", "version", "NDCG@10", "since (UTC)", "why")
    for run in answer.runs:
        measured = {each.name: each.value for each in run.measurements}
        ndcg = f"{measured['ndcg_at_10']:.4f}" if "ndcg_at_10" in measured else ""
        state = word(trainer.RunState, run.state)
        why = f"{run.reason} (rows erased {when(run.erased_time)})" if run.HasField("erased_time") else run.reason
        why = f"{why} (model removed {when(run.removed_time)})" if run.HasField("removed_time") else why
        made.add_row(run.run_id, state, run.version, ndcg, when(run.update_time), why.strip())
    return made


def train(
    loop: LoopArgument,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run to its end.")] = False,
) -> None:
    """Start a training run now, and print its id; ends with 1 where it failed, which only `--watch` waits for."""
    doing = "starting"

    async def work(mesh: Mesh) -> trainer.Run:
        nonlocal doing
        request = trainer.StartRunRequest(loop=loop, request_id=uuid.uuid4().hex)
        run = (await call(mesh.trainer.StartRun, request, timeout_s=TIMEOUT_S)).run
        typer.echo(f"run {run.run_id}")
        if watch:
            watched = trainer.WatchRunRequest(run_id=run.run_id)
            async for answer in mesh.trainer.WatchRun(watched, timeout=_WATCH_S):
                run = answer.run
                doing = f"{word(trainer.RunState, run.state)} {run.progress:.0%}"
                typer.echo(f"{doing} {run.version} {run.reason}".rstrip())
        return run

    run = ask("trainer", work, doing=lambda: f"run of {loop}: {doing}")
    if run.state in _BAD:
        fail(f"run {run.run_id} was {word(trainer.RunState, run.state)}: {run.reason}")


def rollouts(loop: LoopArgument, *, as_json: JsonOption = False) -> None:
    """List rollouts, newest first, and who gets which model now."""
    request = deployer.ListRolloutsRequest(loop=loop)
    answer = ask("deployer", lambda mesh: call(mesh.deployer.ListRollouts, request, timeout_s=TIMEOUT_S))
    show(answer, as_json=as_json, render=lambda: _rollouts(answer))


def _rollouts(answer: deployer.ListRolloutsResponse) -> RenderableType:
    made = table("rollout", "version", "state", "share", "since (UTC)", "why")
    for each in answer.rollouts:
        made.add_row(*_rollout_row(each))
    arms = [f"{arm.name} {arm.version} {arm.share:.0%}" for arm in answer.view.arms]
    return Group(made, f"now: {', '.join(arms) if arms else 'no model'} (epoch {answer.view.epoch})")


def _rollout_row(each: deployer.Rollout) -> tuple[str, ...]:
    state = word(deployer.RolloutState, each.state)
    return each.rollout_id, each.version, state, f"{each.share:.0%}", when(each.update_time), each.reason


def _change(loop: str, rollout: str, change: Callable[[Mesh, str], Awaitable[Any]]) -> None:
    """Change a rollout, the newest where none is named, and print how it stands."""

    async def work(mesh: Mesh) -> deployer.Rollout:
        rollout_id = rollout
        if not rollout_id:
            request = deployer.ListRolloutsRequest(loop=loop)
            known = (await call(mesh.deployer.ListRollouts, request, timeout_s=TIMEOUT_S)).rollouts
            if not known:
                raise NotFound("NO_ROLLOUT", f"the loop {loop} has had no rollout yet")
            rollout_id = known[0].rollout_id
        changed: deployer.Rollout = (await change(mesh, rollout_id)).rollout
        return changed

    _print_rollout(ask("deployer", work))


def _print_rollout(changed: deployer.Rollout) -> None:
    made = table("rollout", "version", "state", "share", "since (UTC)", "why")
    made.add_row(*_rollout_row(changed))
    console().print(made)


def offer(loop: LoopArgument, version: VersionArgument) -> None:
    """Start the rollout of a candidate, again where an earlier one was rolled back or refused."""

    async def work(mesh: Mesh) -> deployer.Rollout:
        request = deployer.StartRolloutRequest(loop=loop, version=version, request_id=uuid.uuid4().hex)
        return (await call(mesh.deployer.StartRollout, request, timeout_s=TIMEOUT_S)).rollout

    _print_rollout(ask("deployer", work))


def promote(loop: LoopArgument, rollout: RolloutArgument = "", reason: ReasonOption = "") -> None:
    """Give the candidate of a rollout, by default the newest, all traffic now."""

    def change(mesh: Mesh, rollout_id: str) -> Awaitable[Any]:
        request = deployer.PromoteRequest(loop=loop, rollout_id=rollout_id, reason=reason)
        return call(mesh.deployer.Promote, request, timeout_s=TIMEOUT_S, attempts=1)

    _change(loop, rollout, change)


def rollback(loop: LoopArgument, rollout: RolloutArgument = "", reason: ReasonOption = "") -> None:
    """Give the model from before a rollout, by default the newest, all traffic now."""

    def change(mesh: Mesh, rollout_id: str) -> Awaitable[Any]:
        request = deployer.RollbackRequest(loop=loop, rollout_id=rollout_id, reason=reason)
        return call(mesh.deployer.Rollback, request, timeout_s=TIMEOUT_S, attempts=1)

    _change(loop, rollout, change)


def pause(
    loop: LoopArgument,
    rollout: RolloutArgument = "",
    reason: ReasonOption = "",
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Let it go on.")] = False,
) -> None:
    """Hold a rollout, by default the newest, at its share; with `--resume` let it go on."""

    def change(mesh: Mesh, rollout_id: str) -> Awaitable[Any]:
        request = deployer.PauseRequest(loop=loop, rollout_id=rollout_id, resume=resume, reason=reason)
        return call(mesh.deployer.Pause, request, timeout_s=TIMEOUT_S, attempts=1)

    _change(loop, rollout, change)
