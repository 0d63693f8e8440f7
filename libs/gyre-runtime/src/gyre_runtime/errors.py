"""The one error hierarchy: a class for each thing a caller can do about it, and its form on the wire.

A server turns a `GyreError` into `google.rpc.Status` with `ErrorInfo`, `BadRequest` and `RetryInfo`
(https://google.aip.dev/193); a client rebuilds the same class from it. Whatever is not a `GyreError` is INTERNAL
and leaks nothing. The classes read as what they say about the call (`raise NotFound(…)`), without an Error suffix.
"""

from collections.abc import Iterable, Mapping, Sequence
from traceback import walk_tb
from typing import Any, ClassVar, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DOMAIN = "gyre"
UNSET = "unset"
"""The value of a violation whose field is not there."""
DETAILS_KEY = "grpc-status-details-bin"


class Violation(NamedTuple):
    """One rule that one field broke: `limit = 1001: must be at most 1000`; the value is `UNSET` where there is none."""

    field: str
    value: str
    rule: str

    def __str__(self) -> str:
        """Name the field, the value where there is one, and the rule."""
        if self.value == UNSET:
            return f"{self.field}: {self.rule}"
        return f"{self.field} = {self.value}: {self.rule}"


class GyreError(Exception):
    """An error with a machine-readable reason; used directly it means INTERNAL.

    Args:
        reason: UPPER_SNAKE, stable, what a program branches on.
        message: a sentence for a person, without personal data.
        metadata: further strings that travel in `ErrorInfo`.
        violations: broken field rules, sent as `BadRequest`.
        retry_after_s: seconds after which to try again, sent as `RetryInfo`; None says nothing. `call` does not wait by
            it.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the error cross from one process to another."""
        return type(self), (self.reason, self.message), self.__dict__

    def __str__(self) -> str:
        """Show reason and message."""
        return f"{self.reason}: {self.message}"


class Invalid(GyreError):  # noqa: N818 - see the module
    """The request is wrong and stays wrong: change it."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(GyreError):  # noqa: N818 - see the module
    """What was asked for does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class Conflict(GyreError):  # noqa: N818 - see the module
    """Somebody else changed or made it first: read again, then decide. Sent as ABORTED."""

    code = grpc.StatusCode.ABORTED


class Precondition(GyreError):  # noqa: N818 - see the module
    """The system is not in the state that this needs: change that state first."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Misconfigured(Precondition):
    """A setting, or a file that it names, cannot be used: the message names setting, value and rule.

    A process that is started with it ends with that message alone, see `gyre_runtime.lifecycle`.
    """


def cannot_listen(setting: str, address: str) -> Misconfigured:
    """Build, and do not raise, the error for an address that a process of these settings cannot listen at.

    Args:
        setting: the field that holds the address, such as `metrics_listen`.
        address: host:port.
    """
    rule = "must be an address of this host that is free: is another process listening there?"
    return Misconfigured("CANNOT_LISTEN", f"GYRE_{setting.upper()}={address!r}: {rule}")


class Exhausted(GyreError):  # noqa: N818 - see the module
    """A limit is reached: come back later, with less."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(GyreError):  # noqa: N818 - see the module
    """Nobody can answer at the moment: the same call may be repeated, and may have been done all the same."""

    code = grpc.StatusCode.UNAVAILABLE


class Unsupported(GyreError):  # noqa: N818 - see the module
    """This server does not offer it: do without."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Unauthenticated(GyreError):  # noqa: N818 - see the module
    """The caller did not prove who it is, or may not do this: give another token."""

    code = grpc.StatusCode.UNAUTHENTICATED


class DeadlineExceeded(GyreError):  # noqa: N818 - see the module
    """The time for the call was over before its answer: it may have been done all the same."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


_CLASS_BY_CODE: dict[grpc.StatusCode, type[GyreError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.OUT_OF_RANGE: Invalid,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Precondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Unauthenticated,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}

_TRANSIENT = (Unavailable, DeadlineExceeded, Exhausted, ConnectionError, TimeoutError)
_TRANSIENT_CODES = {kind.code for kind in (Unavailable, DeadlineExceeded, Exhausted)}
_TRANSIENT_NAMES = frozenset(
    f"redis.exceptions.{name}Error"
    for name in (
        "Connection", "Timeout", "BusyLoading", "MasterDown", "ClusterDown", "ReadOnly", "OutOfMemory", "TryAgain",
        "Moved", "Ask", "NoPermission",
    )
)  # fmt: skip
"""Classes of libraries that this package does not depend on, and that derive from no class above."""
_REDIS_RESPONSE = "redis.exceptions.ResponseError"
_TRANSIENT_REPLIES = (
    "BUSY ", "MISCONF ", "NOREPLICAS ", "The user executing the script can't ", "ACL failure in script: ",
)  # fmt: skip
"""Replies that redis-py has no class for: the state of Redis, and NOPERM as Redis says it of a script's commands."""


def is_transient(error: BaseException) -> bool:
    """Whether trying the same thing again later can help; for our errors, gRPC's, Kafka's, Redis' and Python's.

    A class that is not known is permanent.

    Of Redis' answers these are the ones about its own state, however long that lasts: what passes by itself (no
    connection, no answer in time, LOADING, MASTERDOWN, CLUSTERDOWN, READONLY, OOM, BUSY, TRYAGAIN, MOVED, ASK), and
    what an operator mends (NOPERM, a password that is wrong or missing, MISCONF, NOREPLICAS). No record is at fault for
    the latter either: to give up would set every record aside. Any other answer is about the command.
    """
    if isinstance(error, _TRANSIENT) or getattr(error, "retriable", False):
        return True
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in _TRANSIENT_CODES
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    if _REDIS_RESPONSE in names and str(error).startswith(_TRANSIENT_REPLIES):
        return True
    return not names.isdisjoint(_TRANSIENT_NAMES)


def origin_of(error: BaseException) -> str:
    """Where an error came from: the innermost of its frames that is Gyre's code, such as `gyre_trainer.work:88`.

    Module and line name no value, so they may be told where the message of an error from anywhere must not. Empty where
    no frame is Gyre's.
    """
    frames = ((str(frame.f_globals.get("__name__")), line) for frame, line in walk_tb(error.__traceback__))
    own = [f"{module}:{line}" for module, line in frames if module.startswith("gyre")]
    return own[-1] if own else ""


def _pack(details: Iterable[Any]) -> Iterable[AnyMessage]:
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        yield packed


def to_status(error: BaseException) -> status_pb2.Status:
    """The status that a server answers for any error; one that is no `GyreError` is INTERNAL, without its message."""
    if not isinstance(error, GyreError):
        error = GyreError("INTERNAL", "internal error")
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(
                field=broken.field, description=f"{broken.value}: {broken.rule}"
            )
            for broken in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(retry)
    return status_pb2.Status(code=error.code.value[0], message=error.message, details=_pack(details))


def from_status(code: grpc.StatusCode, message: str, status: status_pb2.Status | None) -> GyreError:
    """Build, and do not raise, the error of a status; without details its reason is the code's name.

    A code that no class stands for gives a plain `GyreError`; `status` is None where none was sent.
    """
    reason, metadata, violations, retry_after_s = code.name, {}, [], None
    for detail in status.details if status is not None else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = [_violation(broken.field, broken.description) for broken in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    kind = _CLASS_BY_CODE.get(code, GyreError)
    return kind(reason, message, metadata=metadata, violations=violations, retry_after_s=retry_after_s)


def _violation(field: str, description: str) -> Violation:
    value, _, rule = description.rpartition(": ")
    return Violation(field, value, rule)


def from_rpc_error(error: grpc.aio.AioRpcError) -> GyreError:
    """Build, and do not raise, the `GyreError` that the server raised; see `from_status`."""
    status = None
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
    return from_status(error.code(), error.details() or "", status)
