"""`python -m gyre_privacy search LOOP USER FOLDER…`: where a person is found, for operators."""

import argparse
import asyncio
import sys
from pathlib import Path

from gyre_runtime import load_settings, run_once
from gyre_runtime.settings import KafkaSettings, PrivacySettings, RedisSettings

from gyre_privacy.masking import read_keyring
from gyre_privacy.pseudonyms import Pseudonyms
from gyre_privacy.search import SearchedStores, SearchFindings, needles_of, search
from gyre_privacy.stores import store_of


class SearchSettings(KafkaSettings, RedisSettings, PrivacySettings):
    """What the search reads from the environment."""


def main() -> None:
    """Search, print what was found, and leave with 1 where somebody was, or where something could not be read."""
    parser = argparse.ArgumentParser(prog="python -m gyre_privacy", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser("search", help="find a person")
    command.add_argument("loop", help="the loop, for hashes of the id")
    command.add_argument("user", help="the user's id")
    command.add_argument("folders", nargs="*", type=Path, help="folders to search: warehouse, state, artefacts, logs")
    given, settings = parser.parse_args(), load_settings(SearchSettings)
    run_once(lambda: _search(settings, given), name="privacy search")


def _search(settings: SearchSettings, given: argparse.Namespace) -> int:
    keyring = read_keyring(settings)
    ids = (given.user,) if keyring is None else Pseudonyms(keyring).forms(given.user)
    needles = needles_of(ids, keyring, loop=given.loop)
    places = SearchedStores(settings.kafka, settings.redis, given.folders)
    finding = asyncio.run(search(places, needles))
    sys.stdout.write("".join(f"{line}\n" for line in _lines(finding)))
    return 1 if finding.hits or finding.unread else 0


def _lines(finding: SearchFindings) -> list[str]:
    lines = []
    for place, names in sorted(finding.hits.items()):
        store = store_of(place)
        kept = "no declared store" if store is None else f"{store.name}, until: {store.until}"
        lines.append(f"{place}: {', '.join(sorted(names))} ({kept})")
    lines += [f"{place}: not read: {reason}" for place, reason in sorted(finding.unread.items())]
    return [*lines, f"{finding.looked} topics, keys and files searched, {len(finding.hits)} with the user"]


if __name__ == "__main__":
    main()
