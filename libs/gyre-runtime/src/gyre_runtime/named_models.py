"""Which model versions of a loop are named: those that serve, may serve soon, or wait for their rollout.

Nothing that one of them reads may be removed. A job asks after it looked at what is stored: what appears later is new.
"""

import logging

from gyre.events.v1.models_pb2 import CandidateRegistered, RolloutView
from gyre_core.topics import topic

from gyre_runtime.events import Unreadable, decode, message_types
from gyre_runtime.kafka import Start, read_compacted, read_records

_LOG = logging.getLogger(__name__)
_VIEWS, _CANDIDATES = message_types(RolloutView), message_types(CandidateRegistered)


async def named_versions(bootstrap: str, loop: str) -> frozenset[str] | None:
    """The versions that the rollout state names or holds loaded, and the candidates that it has not decided about.

    None where there is no rollout state: nothing was decided yet, or Kafka was made anew and nobody says what serves,
    so that nothing may be removed. A candidate that cannot be read is logged and left out.

    Args:
        bootstrap: Kafka's host:port list.
        loop: of which models.

    Raises:
        TimeoutError: the rollout state could not be read within 30 s, as where it has no topic.
        Unavailable: Kafka went away.
    """
    # The state first: a candidate that is decided meanwhile is then found in the topic all the same.
    event = (await read_compacted(bootstrap, topic(loop, "models.rollouts"), _VIEWS)).get(loop)
    if event is None:
        return None
    view: RolloutView = event.message
    named = {view.last_good_version, *view.loaded_versions}
    named |= {arm.version for arm in view.arms} | {model.version for model in view.models}
    undecided = Start(view.candidates_offset)
    async for record in read_records(bootstrap, topic(loop, "models.candidates"), undecided):
        try:
            named.add(decode(record, _CANDIDATES).message.version)
        except Unreadable as error:
            _LOG.warning("a candidate that nobody can read is never rolled out", extra={"problem": str(error)})
    return frozenset(named - {""})
