"""Which addresses a request, and a key, may be sent to."""

import ipaddress
from urllib.parse import urlsplit

from core_rl.errors import UsageError


def check_base_url(base_url: str) -> None:
    """Raises ValueError for no plain http address, and does not show it: it may hold a password."""
    try:
        parts = urlsplit(base_url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises where it is none
    except ValueError:
        valid = False
        parts = None
    if not valid or parts is None or any(c.isspace() for c in base_url):
        raise ValueError("base_url must be like https://HOST/v1 or http://127.0.0.1:8000/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            "base_url must hold no user, password or query: it stands in records, and a key "
            "belongs into the environment variable that api_key_env names"
        )


def is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_key_may_travel(base_url: str, has_key: bool, allow_insecure: bool) -> None:
    """Raises UsageError where a key would be sent unencrypted, or is missing."""
    try:
        check_base_url(base_url)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if is_loopback(base_url):
        return
    encrypted = urlsplit(base_url).scheme == "https"
    if has_key and not encrypted and not allow_insecure:
        raise UsageError(
            "the key would be sent unencrypted to another machine: "
            "take an https address, or set allow_insecure"
        )
    if encrypted and not has_key:
        raise UsageError(
            "no key: set the environment variable that api_key_env names "
            "(to any text, where the server needs none)"
        )
