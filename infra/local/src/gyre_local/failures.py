"""The errors a person at the terminal can act upon: each message names what is wrong and the remedy."""


class LocalStackError(Exception):
    """Something the user can put right; the message says how."""


class NotReady(Exception):  # noqa: N818 - a state that passes, not a failure
    """A readiness probe's answer while the process is not usable yet; the message says what it waits for."""
