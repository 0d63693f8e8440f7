"""Searches all stores for a person: every format is decoded, and nothing is known of how keys are made."""

from gyre_privacy.search.needles import Needle, needles_of
from gyre_privacy.search.searching import SearchedStores, SearchFindings, search

__all__ = ["Needle", "SearchFindings", "SearchedStores", "needles_of", "search"]
