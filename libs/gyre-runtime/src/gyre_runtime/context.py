"""What is known about the call in progress: its request id and the moment its time is over."""

import time
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallContext:
    """The incoming call that the current task works for.

    Attributes:
        request_id: the caller's id, or a new one where it gave none or one that is too long.
        deadline: `time.monotonic()` seconds at which the caller stops waiting, or the server's limit where it said
            none.
    """

    request_id: str
    deadline: float

    def remaining_s(self) -> float:
        """Seconds left until the caller stops waiting; negative when it has."""
        return self.deadline - time.monotonic()


CURRENT_CALL: ContextVar[CallContext | None] = ContextVar("gyre_current_call", default=None)


def current_call() -> CallContext | None:
    """Return the incoming call of this task, or None outside of one."""
    return CURRENT_CALL.get()


def request_id() -> str:
    """Return the id of the incoming call, or an empty string outside of one."""
    call = CURRENT_CALL.get()
    return call.request_id if call else ""
