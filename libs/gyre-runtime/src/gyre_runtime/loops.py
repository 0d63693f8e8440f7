"""Loads every loop that a process serves."""

from gyre_core.spec import LoopSpec, load_loop

from gyre_runtime.errors import Invalid, NotFound
from gyre_runtime.settings import LoopSettings


def load_loops(settings: LoopSettings) -> dict[str, LoopSpec]:
    """Read the gyre.yaml of each of `settings.loops`, by loop name.

    Raises:
        SpecError: a file breaks a rule.
        Invalid: two files name the same loop (reason DUPLICATE_LOOP).
    """
    loops: dict[str, LoopSpec] = {}
    for path in settings.loops:
        spec = load_loop(path)
        if spec.loop in loops:
            raise Invalid("DUPLICATE_LOOP", f"{path}: the loop {spec.loop!r} is already served by this process")
        loops[spec.loop] = spec
    return loops


def unknown_loop(loop: str) -> NotFound:
    """The error for a loop that this process does not serve."""
    return NotFound("UNKNOWN_LOOP", f"loop = {loop!r}: is not served here", metadata={"loop": loop})
