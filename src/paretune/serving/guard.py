"""Who may talk to the local page: its own browser tab, with text, and nobody else.

A page of another origin can send requests to this machine; a name that its owner makes point here
(DNS rebinding) makes them look like the page's own. Neither gets through, and files are not taken.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from paretune.errors import InputError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_FILES = ("assets/", "static/", "svelte/", "theme.css", "favicon.ico", "manifest.json", "pwa_icon")
_CALLS = ("config", "info", "app_id", "startup-events", "heartbeat/", "queue/", "cancel", "reset")
_ROUTES = (*_FILES, *_CALLS, "run/", "call/", "user")
"""Routes of Gradio's that the page needs: elsewhere files come in or go out."""

LARGEST = 1_000_000
"""Bytes of a request; a prompt has far fewer."""


def check_address(host: str, port: int | None) -> None:
    """See, before a model is loaded, that the page can be served there.

    Raises:
        InputError: there is no such host on this machine, or the port is taken.
    """
    try:
        if not host or "\0" in host:
            raise OSError("that is no host")
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        where = f"{host!r}" if port is None else f"{host!r}, port {port}"
        raise InputError(
            f"The page cannot be served at {where} ({error}): give a --host of this machine, such "
            "as 127.0.0.1, and a --port that is free."
        ) from error


class Guard:
    """An ASGI application that lets the page's own requests through to another one."""

    def __init__(self, app: App, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        reason = self._refusal(scope)
        if reason is None:
            await self._app(scope, _limited(receive), send)
            return
        await _discard(receive)  # else the connection is reset, and the reason never arrives
        body = reason.encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Message) -> str | None:
        """Why a request is not let through; None lets it."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._own(hosts[0]):
            return "this page is not served under that name"
        origins = headers.get("origin", [])
        if any(origin.partition("://")[2].lower() != hosts[0].lower() for origin in origins):
            return "requests of other pages are not answered"
        if headers.get("sec-fetch-site", ["none"])[0] == "cross-site" and scope["method"] != "GET":
            return "requests of other pages are not answered"
        if any("multipart" in kind.lower() for kind in headers.get("content-type", [])):
            return "files are not taken"
        route = scope["path"].lower().removeprefix("/gradio_api").lstrip("/")
        if route and not route.startswith(_ROUTES):
            return "there is no such route"
        length = headers.get("content-length", ["0"])[0]
        if not length.isdigit() or int(length) > LARGEST:
            return "that is too much"
        return None

    def _own(self, host: str) -> bool:
        """Whether a Host header names this machine; an address cannot be made to point here."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._names
        return True


async def _discard(receive: Receive) -> None:
    """Read a body to its end, or to many times what a prompt may have, and keep nothing."""
    taken = 0
    while taken < 50 * LARGEST:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        taken += len(message.get("body", b""))


def _limited(receive: Receive) -> Receive:
    """Cut off a body that is sent in pieces without an end."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        return {"type": "http.disconnect"} if taken > LARGEST else message

    return limited
