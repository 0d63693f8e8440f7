"""The Python SDK of Gyre and its command line, `gyre`.

    async with GyreClient("127.0.0.1:17020") as gyre:
        answer = await gyre.rank("movies", "1", ["1074638", "1853728"], time=1373457600.0)
        await gyre.track("movies", [Interaction("1", answer.items[0].item_id, "rating", value=8, time=1373457601.0)])

Every call has a deadline, is repeated only where that is safe, and raises a `GyreError` that says what to do.
`Mesh` reaches the other services, `import_history` fills a loop with its past.
"""

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
