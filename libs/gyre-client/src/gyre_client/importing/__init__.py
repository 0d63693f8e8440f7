"""Imports files of history: CSV, JSON lines and Parquet, by a mapping that says which column is what."""

from gyre_client.importing.events import AMBIGUOUS, SKIPPED
from gyre_client.importing.files import FileImport, ImportedFile
from gyre_client.importing.mapping import Mapping, load_mapping

__all__ = ["AMBIGUOUS", "SKIPPED", "FileImport", "ImportedFile", "Mapping", "load_mapping"]
