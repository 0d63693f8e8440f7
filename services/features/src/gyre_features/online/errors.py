"""What an error of Redis means to a caller."""

from gyre_runtime import GyreError, Unavailable
from gyre_runtime.errors import is_transient
from redis.exceptions import RedisError

_SHOWN_CHARS = 200


def unavailable(error: RedisError) -> GyreError:
    """Our error for one of Redis, not raised here: Unavailable where another attempt can help, else STORE_REFUSED."""
    said = f"{type(error).__name__}: {str(error)[:_SHOWN_CHARS]}"
    if is_transient(error):
        return Unavailable("STORE_UNAVAILABLE", f"the online store does not answer: {said}")
    return GyreError("STORE_REFUSED", f"the online store refuses: {said}")
