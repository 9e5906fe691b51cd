"""The address of an endpoint: whether it is one, and where it leads."""

import ipaddress
from urllib.parse import urlsplit

from paretune.errors import InputError


def on_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_url(url: str) -> None:
    """Refuse what is no base URL, or what holds a secret that would be written down with it."""
    wrong = InputError("The base URL must look like https://host/v1, and this one does not.")
    try:
        parts = urlsplit(url)
        _ = parts.port  # complains of one that is none
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in url:
        raise wrong
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"The base URL of {parts.hostname} must have no user name, password or query: the key "
            "belongs in an environment variable (--api-key-env)."
        )
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise InputError("Leave /chat/completions off the base URL.")
