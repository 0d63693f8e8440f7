"""Redis's files after a deletion: under the settings of the compose stack, and where snapshots are made."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from gyre_core.features import Layout
from gyre_core.spec import LoopSpec
from gyre_features.online.store import OnlineStore
from gyre_local import probes
from gyre_local.process import running
from gyre_local.recipe import Recipe
from gyre_local.reserve import free_ports
from gyre_local.testing import eventually
from redis.asyncio import Redis

COMPOSE = yaml.safe_load((Path(__file__).parents[3] / "docker-compose.yml").read_text())["services"]
HOST, MARKED = "127.0.0.1", "marked-7f3a91"


def _recipe(folder: Path, *settings: str) -> Recipe:
    """A Redis of its own with some settings."""
    server, (port,) = shutil.which("redis-server"), free_ports(1)
    assert server is not None
    command = (server, "--bind", HOST, "--port", str(port), "--dir", str(folder), *settings)
    return Recipe("redis", command, folder, partial(probes.redis, HOST, port), ports={"server": port})


def _holding(folder: Path) -> list[str]:
    """The files that hold the marked user."""
    return sorted(each.name for each in folder.rglob("*") if MARKED.encode() in _content(each))


def _content(path: Path) -> bytes:
    """The bytes of a file; none of a folder, or where Redis has just replaced it."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:
        return b""


@pytest.mark.adapter
@pytest.mark.parametrize("settings", ["compose", "snapshots"])
async def test_no_file_of_redis_keeps_a_deleted_user(
    tmp_path: Path, spec: LoopSpec, layout: Layout, settings: str
) -> None:
    """A snapshot from before a deletion is made again after it, as the append-only file is."""
    own = COMPOSE["redis"]["command"][1:] if settings == "compose" else ["--save", "3600 1", "--rdbcompression", "no"]
    folder = tmp_path / "data"
    folder.mkdir()
    recipe = _recipe(folder, *own)
    with running(recipe, log=tmp_path / "redis.log"):
        async with Redis(host=HOST, port=recipe.ports["server"]) as redis:
            store = OnlineStore(redis, spec, layout)
            await redis.set(store.names.entity("user", MARKED), b"features")
            await redis.save()
            assert "dump.rdb" in _holding(folder)
            await store.delete("user", MARKED)
            await store.rewrite_file()

            def is_gone() -> bool:
                assert _holding(folder) == []
                return True

            await eventually(is_gone, timeout_s=20, message="no file holds the user")


@pytest.mark.adapter
async def test_redis_of_the_compose_stack_makes_no_snapshots(tmp_path: Path) -> None:
    """Its append-only file is what it starts from; a snapshot would keep who was deleted until the next save point."""
    folder = tmp_path / "data"
    folder.mkdir()
    recipe = _recipe(folder, *COMPOSE["redis"]["command"][1:])
    with running(recipe, log=tmp_path / "redis.log"):
        async with Redis(host=HOST, port=recipe.ports["server"]) as redis:
            assert await redis.config_get("save", "appendonly") == {"save": "", "appendonly": "yes"}
