"""Loads every loop that a process serves."""

from pathlib import Path

from gyre_core.spec import LoopSpec, SpecError, load_loop

from gyre_runtime.errors import Misconfigured, NotFound
from gyre_runtime.settings import LoopSettings, variable_of


def load_loops(settings: LoopSettings) -> dict[str, LoopSpec]:
    """Read the gyre.yaml of each of `settings.loops`, by loop name, in the settings' order.

    Raises:
        Misconfigured: a file cannot be read (LOOP_UNREADABLE) or breaks a rule (LOOP_INVALID), or two of them name the
            same loop (DUPLICATE_LOOP).
    """
    loops: dict[str, LoopSpec] = {}
    sources: dict[str, Path] = {}
    for path in settings.loops:
        spec = _read(path)
        if spec.loop in loops:
            rule = f"the loop {spec.loop!r} is already that of {sources[spec.loop]}: each loop must be named once"
            raise _unusable("DUPLICATE_LOOP", path, rule)
        loops[spec.loop], sources[spec.loop] = spec, path
    return loops


def _read(path: Path) -> LoopSpec:
    try:
        return load_loop(path)
    except SpecError as error:
        rules = "\n".join(str(issue) for issue in error.issues)
        raise _unusable("LOOP_INVALID", path, f"must follow the rules of gyre.yaml:\n{rules}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text in UTF-8"
        raise _unusable("LOOP_UNREADABLE", path, f"cannot be read: {reason}") from None


def _unusable(reason: str, path: Path, rule: str) -> Misconfigured:
    return Misconfigured(reason, f"{variable_of('loops')}={str(path)!r}: {rule}")


def unknown_loop(loop: str) -> NotFound:
    """Build, and do not raise, the error for a loop that this process does not serve (UNKNOWN_LOOP)."""
    return NotFound("UNKNOWN_LOOP", f"loop = {loop!r}: is not served here", metadata={"loop": loop})
