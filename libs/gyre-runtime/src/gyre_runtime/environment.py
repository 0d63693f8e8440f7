"""Reads settings from the environment, and refuses what it does not understand."""

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from gyre_runtime.settings import PREFIX, SERVICES, ServerSettings, Settings, known_variables, variable_of

TOLERATED: Mapping[str, str] = {
    "GYRE_CACHE": "where downloads are kept, `~/.cache/gyre` by default",
    "GYRE_DATA": "where the examples find their data",
    "GYRE_OTLP_LISTEN": "where the monitor takes spans (OTLP over gRPC)",
    "GYRE_PORTS_FILE": "a ports file in place of `infra/local/ports.toml`",
    "GYRE_PORT_OFFSET": "added to every port of the local stack",
    "GYRE_SOURCE": "the application that calls, as the command line and the client name it",
    "GYRE_TEST_TIMEOUT_FACTOR": "multiplies the limits of waiting of tests and starts; measured by default",
    "GYRE_TOKEN": "the bearer token of the command line",
    "GYRE_VAR": "the folder of the local stack's data and logs, `var/` by default",
}
"""Variables of the local stack, the tests and the client, which a service may find in its environment."""

RENAMED: Mapping[str, str] = {
    "GYRE_FEATURES_ORPHANS_KEPT_S": "GYRE_FEATURES_ORPHAN_RETENTION_S",
    "GYRE_FEATURES_POPULAR_KEPT": "GYRE_FEATURES_MAX_POPULAR",
    "GYRE_FEATURES_QUALITY_KEPT": "GYRE_FEATURES_MAX_QUALITY_WINDOWS",
    "GYRE_FEATURES_SNAPSHOTS_KEPT": "GYRE_FEATURES_MIN_SNAPSHOTS",
    "GYRE_FEATURES_SNAPSHOTS_KEPT_S": "GYRE_FEATURES_SNAPSHOT_RETENTION_S",
}
"""Variables by the name that they had one release ago, which is still read, and the name that they have now."""

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

_LOG = logging.getLogger(__name__)
_PASSWORD = re.compile(r"(://[^/@\s]*?:)[^/\s]*@")
"""The password of a URL, which messages must not show."""
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY")
_TOKEN, _TOKEN_FILE = f"{PREFIX}TOKEN", f"{PREFIX}TOKEN_FILE"
_GUARDS = (_TOKEN, f"{PREFIX}TLS_")
"""How the variables begin that close the doors of a server."""

SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(cls: type[SettingsT], environ: Mapping[str, str] | None = None) -> SettingsT:
    """Read the settings of a process, or leave it with a message that names variable, value and rule.

    Variables of another service (`GYRE_GATEWAY_…`), of `TOLERATED` and those that Kubernetes injects are passed over;
    an old name of `RENAMED` is read and logged. No file that a setting names is opened.

    Args:
        cls: the settings class of the service.
        environ: an environment in place of the process's own, for tests.

    Raises:
        SystemExit: a variable is unknown, its value is blank or breaks its rule, or a security setting is set by half.
    """
    environ = _by_new_names(os.environ if environ is None else environ)
    problems = [
        f"{name}={_shown(value, name)}: is not a setting of this process{_hint(name)}"
        for name, value in _unknown(cls, environ).items()
    ]
    if issubclass(cls, ServerSettings) and _TOKEN in environ and _TOKEN_FILE not in environ:
        problems.append(f"{_TOKEN_FILE}: is not set, and {_TOKEN} is: a server reads its token from a file")
    values = {field: environ[variable_of(field)] for field in cls.model_fields if variable_of(field) in environ}
    try:
        settings = cls.model_validate(values)
    except ValidationError as error:
        problems += [_problem(issue, values) for issue in error.errors()]
    if problems:
        sys.exit("\n".join(problems))
    return settings


def _by_new_names(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment with the new names of renamed variables; where both are set the new one counts."""
    old = sorted(RENAMED.keys() & environ.keys())
    for name in old:
        _LOG.warning("%s is an old name, read for one release: write %s", name, RENAMED[name])
    given = {name: value for name, value in environ.items() if name not in old}
    return {RENAMED[name]: environ[name] for name in old} | given


def _unknown(cls: type[Settings], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that look like a setting, whatever their spelling, and are none of this process or another."""
    known = known_variables() | TOLERATED.keys()
    others = tuple(f"{PREFIX}{name.upper()}_" for name in SERVICES if name != cls.service)

    def is_unknown(name: str, value: str) -> bool:
        if not _spelt(name).startswith(PREFIX) or name in known or _injected(name, value):
            return False
        return not name.startswith(others) or _without_service(name).startswith(_GUARDS)

    return {name: environ[name] for name in sorted(environ) if is_unknown(name, environ[name])}


def _spelt(name: str) -> str:
    """A variable's name as a setting's is written: in capitals, its words joined by `_`."""
    return re.sub(r"[-.\s]", "_", name.strip()).upper()


def _without_service(name: str) -> str:
    """A variable's name, without a service's where it holds one."""
    return re.sub(rf"^{PREFIX}(?:{'|'.join(SERVICES).upper()})_", PREFIX, name)


def _hint(name: str) -> str:
    """What a misspelt variable must mean: the same with other letters, or without a service's name."""
    known = known_variables() | TOLERATED.keys()
    meant = next((each for each in (_spelt(name), _without_service(_spelt(name))) if each in known - {name}), "")
    return f": write {meant}" if meant else ""


def _injected(name: str, value: str) -> bool:
    """Whether Kubernetes made a variable for a Service whose name begins with `gyre`."""
    return any(names.fullmatch(name) and values.fullmatch(value) for names, values in _SERVICE_VARIABLES)


def _problem(issue: Any, values: Mapping[str, str]) -> str:
    rule = issue["msg"].removeprefix("Value error, ")
    if not issue["loc"]:
        return str(rule)  # a rule over several settings, which names them itself
    field = str(issue["loc"][0])
    return f"{variable_of(field)}={_shown(values.get(field, issue['input']))}: {rule}"


def _shown(value: object, name: str = "") -> str:
    """A value as a message may show it: without the password of a URL; not at all where a name says that it is secret.

    Settings name the file of a secret, so what is set under such a name in place of a file may be the secret itself.
    """
    if _SECRET.search(_spelt(name)) and not _spelt(name).endswith("_FILE"):
        return "'…'"
    return _PASSWORD.sub(r"\1…@", repr(value))
