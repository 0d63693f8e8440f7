"""The Python SDK of Gyre and its command line, `gyre`.

    async with GyreClient("127.0.0.1:17020") as gyre:
        answer = await gyre.rank("movies", "1", ["1074638", "1853728"], time=1373457600.0)
        await gyre.track("movies", [Interaction("1", answer.items[0].item_id, "rating", value=8, time=1373457601.0)])

Every call has a deadline, is repeated only where that is safe, and raises a `GyreError` that says what to do.
`Mesh` reaches the other services, `import_history` fills a loop with its past.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gyre_runtime import (
        Conflict,
        DeadlineExceeded,
        Exhausted,
        GyreError,
        Invalid,
        NotFound,
        Precondition,
        Unauthenticated,
        Unavailable,
        call,
        load_settings,
    )

    from gyre_client.dead_letters import DeadLetter, list_dead_letters, replay_dead_letters
    from gyre_client.gateway import GyreClient, Interaction, Item, RequestOptions, User
    from gyre_client.history import Imported, import_history
    from gyre_client.mesh import Mesh
    from gyre_client.settings import ClientSettings

__all__ = [
    "ClientSettings", "Conflict", "DeadLetter", "DeadlineExceeded", "Exhausted", "GyreClient", "GyreError", "Imported",
    "Interaction", "Invalid", "Item", "Mesh", "NotFound", "Precondition", "RequestOptions", "Unauthenticated",
    "Unavailable", "User", "call", "import_history", "list_dead_letters", "load_settings", "replay_dead_letters",
]  # fmt: skip

_MODULES = (
    "gyre_runtime",
    "gyre_client.dead_letters",
    "gyre_client.gateway",
    "gyre_client.history",
    "gyre_client.mesh",
    "gyre_client.settings",
)


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: a command shows that it works before all else is loaded.

    Raises:
        AttributeError: there is no such name.
    """
    if name in __all__:
        for module in map(import_module, _MODULES):
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
