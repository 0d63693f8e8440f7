"""The loops that a command can name: those of GYRE_LOOPS, or those that the local stack serves."""

from collections.abc import Sequence

from gyre_core.spec import LoopSpec
from gyre_runtime import Invalid, load_loops
from gyre_runtime.settings import LoopSettings

from gyre_client.local_stack import served_loops


def known_loop(settings: LoopSettings, name: str) -> LoopSpec:
    """The spec of a loop by its name, read from its file; no service is asked.

    Args:
        settings: its `loops`, where they were given; otherwise those count that the local stacks of this checkout were
            last brought up with, the latest first.
        name: of the loop.

    Raises:
        Invalid: none is called so (UNKNOWN_LOOP).
        Misconfigured: a file cannot be read, or breaks a rule.
    """
    found: dict[str, LoopSpec] = {}
    for source in _sources(settings):
        found = load_loops(source) | found
        if name in found:
            return found[name]
    where = "GYRE_LOOPS names" if "loops" in settings.model_fields_set else "without GYRE_LOOPS there are"
    raise Invalid("UNKNOWN_LOOP", f"loop = {name!r}: {where} {', '.join(found)}")


def _sources(settings: LoopSettings) -> Sequence[LoopSettings]:
    if "loops" in settings.model_fields_set:
        return [settings]
    return [LoopSettings(loops=paths) for paths in served_loops()] or [settings]
