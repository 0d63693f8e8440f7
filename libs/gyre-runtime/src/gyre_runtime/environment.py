"""Reads settings from the environment, and refuses what it does not understand."""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from gyre_runtime.settings import PREFIX, SERVICES, Settings, known_variables, variable_of

TOLERATED: Mapping[str, str] = {
    "GYRE_CACHE": "where downloads are kept, `~/.cache/gyre` by default",
    "GYRE_DATA": "where the examples find their data",
    "GYRE_OTLP_LISTEN": "where the monitor takes spans (OTLP over gRPC)",
    "GYRE_PORTS_FILE": "a ports file in place of `infra/local/ports.toml`",
    "GYRE_PORT_OFFSET": "added to every port of the local stack",
    "GYRE_TEST_TIMEOUT_FACTOR": "multiplies the limits of waiting of tests and starts; measured by default",
    "GYRE_TOKEN": "the bearer token of the command line",
    "GYRE_VAR": "the folder of the local stack's data and logs, `var/` by default",
}
"""Variables of the local stack, the tests and the client, which a service may find in its environment."""

_PROTOCOL = r"(tcp|udp|sctp)"
_INJECTED: tuple[tuple[str, str], ...] = (
    (r"SERVICE_HOST", r"[0-9a-fA-F.:]+|None"),
    (r"SERVICE_PORT(_[A-Z0-9_]+)?", r"\d+"),
    (rf"PORT(_\d+_{_PROTOCOL.upper()})?", rf"{_PROTOCOL}://\S+:\d+"),
    (rf"PORT_\d+_{_PROTOCOL.upper()}_PROTO", _PROTOCOL),
    (rf"PORT_\d+_{_PROTOCOL.upper()}_PORT", r"\d+"),
    (rf"PORT_\d+_{_PROTOCOL.upper()}_ADDR", r"[0-9a-fA-F.:]+"),
)
"""How names end, and their values, that Kubernetes injects for each Service of a namespace
(https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables)."""
_SERVICE_VARIABLES = [(re.compile(rf"GYRE(_[A-Z0-9]+)*_{name}"), re.compile(value)) for name, value in _INJECTED]

_PASSWORD = re.compile(r"(://[^/@\s]*?:)[^/\s]*@")
"""The password of a URL, which messages must not show."""

SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(cls: type[SettingsT], environ: Mapping[str, str] | None = None) -> SettingsT:
    """Read the settings of a process, or leave it with a message that names variable, value and rule.

    Args:
        cls: the settings class of the service.
        environ: for tests, an environment in place of the process's own.

    Raises:
        SystemExit: a variable is unknown, its value is blank or breaks its rule, or a security setting is set by half.
    """
    environ = os.environ if environ is None else environ
    problems = [f"{name}={_shown(environ[name])}: is not a setting of this process" for name in _unknown(cls, environ)]
    values = {field: environ[variable_of(field)] for field in cls.model_fields if variable_of(field) in environ}
    try:
        settings = cls.model_validate(values)
    except ValidationError as error:
        problems += [_problem(issue, values) for issue in error.errors()]
    if problems:
        sys.exit("\n".join(problems))
    return settings


def _unknown(cls: type[Settings], environ: Mapping[str, str]) -> list[str]:
    known = known_variables() | TOLERATED.keys()
    others = tuple(f"{PREFIX}{name.upper()}_" for name in SERVICES if name != cls.service)
    return sorted(
        name
        for name, value in environ.items()
        if name.startswith(PREFIX) and name not in known and not name.startswith(others) and not _injected(name, value)
    )


def _injected(name: str, value: str) -> bool:
    """Whether Kubernetes made a variable for a Service whose name begins with `gyre`."""
    return any(names.fullmatch(name) and values.fullmatch(value) for names, values in _SERVICE_VARIABLES)


def _problem(issue: Any, values: Mapping[str, str]) -> str:
    rule = issue["msg"].removeprefix("Value error, ")
    if not issue["loc"]:
        return str(rule)  # a rule over several settings, which names them itself
    field = str(issue["loc"][0])
    return f"{variable_of(field)}={_shown(values.get(field, issue['input']))}: {rule}"


def _shown(value: object) -> str:
    """A value as a message may show it: without the password of a URL."""
    return _PASSWORD.sub(r"\1…@", repr(value))
