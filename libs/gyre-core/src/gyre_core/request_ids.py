"""Ids of requests: those that the gateway makes have a form of their own; each belongs to one user.

Two users may have one request id, so what an impression answers is named by (user, request).
"""

from __future__ import annotations

import re
import uuid
from hashlib import blake2b

GATEWAY_SOURCE = "gyre/gateway"
"""CloudEvents source of the gateway's impressions."""
_GATEWAY_FORM = re.compile(r"gw-[0-9a-f]{32}")
_ID_BYTES = 16


def new_request_id() -> str:
    """A new random id in the gateway's form, `gw-` and 32 hex digits, which nobody else may use for impressions."""
    return f"gw-{uuid.uuid4().hex}"


def has_gateway_form(request_id: str) -> bool:
    """Whether an id has the form of `new_request_id`, which callers must not use; who made it is not looked up."""
    return _GATEWAY_FORM.fullmatch(request_id) is not None


def impression_id(user_id: str, request_id: str) -> str:
    """The CloudEvents id of a gateway's impression: the same for a request repeated, another for another user."""
    return blake2b(f"{user_id}\0{request_id}".encode(), digest_size=_ID_BYTES).hexdigest()
