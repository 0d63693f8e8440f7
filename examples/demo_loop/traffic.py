"""Live traffic: each choice as a Rank call whose interaction is tracked, some in flight, every user's in order."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gyre_client import GyreClient, GyreError, Interaction
from gyre_core.ranking import hit_rate, ndcg, reciprocal_rank

from demo_loop.baseline import DecayedPopularity
from demo_loop.scenario import Choice

IN_FLIGHT = 12
SAMPLED_EVERY = 50
K = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered request.

    Attributes:
        request_id: of the answer.
        version: the model that scored.
        arm: live or candidate; empty without a model.
        degraded_reason: empty for a whole answer.
        latency_s: as the caller saw it.
        sampled: its trace was kept.
        scores: in the order of the candidates.
        choice: what was asked and chosen.
    """

    request_id: str
    version: str
    arm: str
    degraded_reason: str
    latency_s: float
    sampled: bool
    scores: tuple[float, ...]
    choice: Choice


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over rankings: NDCG@10, hit rate@10 and mean reciprocal rank, ties averaged over their orders."""

    ndcg: float
    hit_rate: float
    mrr: float


@dataclass
class Traffic:
    """Replays choices, and keeps what came back.

    Args:
        client: of the gateway.
        loop: the loop's name.
        baseline: is asked before each request and told each interaction, as the mesh is.
    """

    client: GyreClient
    loop: str
    baseline: DecayedPopularity
    answers: list[Answer] = field(default_factory=list)
    popularity: dict[int, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    tracked: int = 0

    async def replay(
        self,
        choices: Sequence[Choice],
        *,
        done: Callable[[], bool],
        pause_s: Callable[[int], float] = lambda _left: 0.0,
    ) -> None:
        """Replay until `done` says so, or nothing is left; a user's next request waits for the one before.

        `pause_s` is told how many choices are left, and says how long the next of them waits.
        """
        slots = asyncio.Semaphore(IN_FLIGHT)
        last: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            for number, choice in enumerate(choices):
                if done():
                    break
                await asyncio.sleep(pause_s(len(choices) - number))
                await slots.acquire()
                user_id = choice.interaction.user_id
                last[user_id] = task = group.create_task(self._one(number, choice, last.get(user_id)))
                task.add_done_callback(lambda _: slots.release())

    async def _one(self, number: int, choice: Choice, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        interaction, request_id = choice.interaction, ""
        if choice.candidates:
            self.popularity[id(choice)] = self.baseline.scores(choice.candidates, interaction.time)
            try:
                request_id = await self._rank(choice, sampled=number % SAMPLED_EVERY == 0)
            except GyreError as error:
                self.failures.append(f"Rank: {error}")
        self.baseline.add([interaction])
        event = Interaction(
            interaction.user_id,
            interaction.item_id,
            interaction.type,
            value=interaction.value,
            time=interaction.time,
            request_id=request_id,
        )
        try:
            await self.client.track(self.loop, [event])
            self.tracked += 1
        except GyreError as error:
            self.failures.append(f"Track: {error}")

    async def _rank(self, choice: Choice, *, sampled: bool) -> str:
        interaction = choice.interaction
        started = time.perf_counter()
        answer = await self.client.rank(
            self.loop, interaction.user_id, choice.candidates, time=interaction.time, sampled=sampled
        )
        latency_s = time.perf_counter() - started
        how, scores = answer.provenance, {item.item_id: item.score for item in answer.items}
        self.answers.append(
            Answer(
                request_id=how.request_id,
                version=how.model_version,
                arm=how.arm,
                degraded_reason=how.degraded_reason if how.degraded else "",
                latency_s=latency_s,
                sampled=sampled,
                scores=tuple(scores[item] for item in choice.candidates),
                choice=choice,
            )
        )
        return how.request_id

    def served(self, answers: Sequence[Answer] | None = None) -> Quality:
        """What the answers' own scores were worth."""
        chosen = self.answers if answers is None else answers
        return quality([(each.scores, each.choice.relevance) for each in chosen])

    def popular(self, answers: Sequence[Answer] | None = None) -> Quality:
        """What popularity would have been worth for the same requests."""
        chosen = self.answers if answers is None else answers
        return quality([(self.popularity[id(each.choice)], each.choice.relevance) for each in chosen])


def quality(rankings: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Quality:
    """The means over rankings, each given as scores and relevance."""
    if not rankings:
        return Quality(0.0, 0.0, 0.0)
    measured = [(ndcg(own, rel, K), hit_rate(own, rel, K), reciprocal_rank(own, rel)) for own, rel in rankings]
    return Quality(*(sum(each) / len(measured) for each in zip(*measured, strict=True)))
