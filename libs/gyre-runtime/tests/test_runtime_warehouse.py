"""The warehouse's declarations are what its tables are."""

from pathlib import Path

import pytest
from gyre_runtime import ServiceSettings
from gyre_runtime.warehouse import TABLE_OF, ensure_table, open_catalog, schema_of


@pytest.mark.parametrize("table", TABLE_OF.values())
def test_a_table_gets_the_ids_of_its_declaration(tmp_path: Path, table: str) -> None:
    """Rows are written with the declared ids, so a catalogue that gave others would refuse every list."""
    catalog = open_catalog(ServiceSettings(warehouse=str(tmp_path)))
    assert ensure_table(catalog, "shop", table).schema() == schema_of(table)
    assert ensure_table(catalog, "shop", table).schema().highest_field_id == schema_of(table).highest_field_id
