"""Keys that have no time to live of their own are leased: as long as the stream of their layout runs, it renews them.

So a layout that nobody serves any more goes from the store by itself, and nothing that is in use does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from gyre_runtime import Unavailable

from gyre_features.online.store import OnlineStore

_LOOK_EVERY_S = 3600.0
_LOG = logging.getLogger(__name__)


async def keep_leases(stores: Callable[[], Collection[OnlineStore]]) -> None:
    """Renew each hour what is due of the stores that `stores` then answers, until cancelled; what fails is logged."""
    while True:
        for store in stores():
            try:
                renewed = await store.renew_leases()
            except Unavailable as error:
                _LOG.warning("leases are not renewed", extra={"loop": store.spec.loop, "problem": str(error)})
                continue
            if renewed:
                _LOG.info("leases renewed", extra={"loop": store.spec.loop, "keys": renewed})
        await asyncio.sleep(_LOOK_EVERY_S)
