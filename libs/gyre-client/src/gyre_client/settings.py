"""Where the mesh is and how to speak to it: the environment that the services read, plus the caller's token."""

from gyre_runtime import ServiceSettings


class ClientSettings(ServiceSettings):
    """The settings of a client; addresses, TLS and Kafka are those of every process."""

    token: str | None = None
    """The bearer token; that of `token_file` without it."""
