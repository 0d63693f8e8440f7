"""Redis from the distribution, append-only for the stack and in memory only for tests."""

import shutil
from functools import partial
from pathlib import Path

from gyre_local import probes
from gyre_local.failures import LocalStackError
from gyre_local.recipe import Recipe

_CONFIG = """\
bind {host}
port {port}
dir {directory}
daemonize no
save ""
appendonly {appendonly}
appendfsync everysec
rdbcompression no
maxmemory-policy noeviction
tcp-backlog 128
"""


def prepare(directory: Path, *, host: str, port: int, durable: bool = True) -> Recipe:
    """Write the server's configuration into `directory` and make the recipe; starts nothing.

    `durable` keeps an append-only file there; without it a stop loses all data.

    Raises:
        LocalStackError: redis-server is not installed.
    """
    server = shutil.which("redis-server")
    if server is None:
        raise LocalStackError(
            "redis-server is not installed. Remedy: run `make setup`, or `sudo apt-get install -y redis-server`."
        )
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "redis.conf"
    config.write_text(_CONFIG.format(host=host, port=port, directory=directory, appendonly="yes" if durable else "no"))
    return Recipe(
        name="redis",
        command=(server, str(config)),
        directory=directory,
        probe=partial(probes.redis, host, port),
        ports={"server": port},
    )
