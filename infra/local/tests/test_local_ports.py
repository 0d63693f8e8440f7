"""The ports file is read and refused as its rules say."""

from pathlib import Path

import pytest
from gyre_local.components.services import MODULES
from gyre_local.failures import LocalStackError
from gyre_local.ports import load_ports


def written(directory: Path, text: str) -> Path:
    """A ports file with this text."""
    path = directory / "ports.toml"
    path.write_text(text)
    return path


def test_every_service_process_has_a_metrics_port() -> None:
    """The repository's own ports file covers each process of the stack."""
    ports = load_ports(offset=0)
    assert all("metrics" in ports.of(name) for name in MODULES)
    assert ports.address("gateway", "grpc") == "127.0.0.1:17020"


def test_an_offset_shifts_every_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """GYRE_PORT_OFFSET moves the whole stack."""
    monkeypatch.setenv("GYRE_PORT_OFFSET", "100")
    plain, shifted = load_ports(offset=0), load_ports()
    for name, meanings in plain.processes.items():
        assert shifted.of(name) == {meaning: port + 100 for meaning, port in meanings.items()}


def test_the_file_can_be_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GYRE_PORTS_FILE names another file."""
    path = written(tmp_path, 'host = "127.0.0.2"\n[kafka]\nbroker = 1234\n')
    monkeypatch.setenv("GYRE_PORTS_FILE", str(path))
    assert load_ports(offset=0).address("kafka", "broker") == "127.0.0.2:1234"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[kafka]\nbroker = 1\n", "host: None is not an address"),
        ('host = "h"\n[kafka]\nbroker = "x"\n', r"kafka\.broker: 'x' .* is not from 1 to 65535"),
        ('host = "h"\n[kafka]\nbroker = 65535\n', r"kafka\.broker: 65535 \(offset 1\) is not from 1 to 65535"),
        (
            'host = "h"\n[kafka]\nbroker = 7\n[redis]\nserver = 7\n',
            r"redis\.server: 8 is already that of kafka",
        ),
        ('host = "h"\nkafka = 7\n', "kafka: 7 is not a table of ports"),
        ("host = \n", "Invalid value"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """The message names the file, the entry and the rule."""
    path = written(tmp_path, text)
    with pytest.raises(LocalStackError, match=complaint) as refusal:
        load_ports(path, offset=1)
    assert str(path) in str(refusal.value)


def test_a_missing_file_names_the_variable(tmp_path: Path) -> None:
    """A ports file that does not exist is reported with the remedy."""
    with pytest.raises(LocalStackError, match="GYRE_PORTS_FILE"):
        load_ports(tmp_path / "none.toml", offset=0)


def test_a_wrong_offset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An offset that is no number is named with its value."""
    monkeypatch.setenv("GYRE_PORT_OFFSET", "many")
    with pytest.raises(LocalStackError, match="GYRE_PORT_OFFSET: 'many' is not a whole number"):
        load_ports()


def test_unknown_processes_and_meanings_are_named() -> None:
    """Asking for a port that is not in the file names what there is."""
    ports = load_ports(offset=0)
    with pytest.raises(LocalStackError, match="no ports for 'kafkaa'"):
        ports.of("kafkaa")
    with pytest.raises(LocalStackError, match="'redis' has no grpc port, only server"):
        ports.port("redis", "grpc")
