"""Who the local page answers: requests as browsers and other programs send them."""

import asyncio
import http.client
import json
import socket
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.serving.guard import LARGEST, Guard, check_address


def status(
    path: str = "/", method: str = "GET", host: str = "127.0.0.1:7860", **headers: str
) -> int:
    """What the guard answers, 200 where it lets a request through."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(b"host", host.encode()), *named],
    }
    asyncio.run(Guard(app, "127.0.0.1")(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "192.168.1.5:7860", socket.gethostname()],
)
def test_its_own_names(host: str) -> None:
    assert status(host=host) == 200
    assert status("/gradio_api/queue/join", "POST", host, origin=f"http://{host}") == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "localhost.evil.com", ""])
def test_names_made_to_point_here(host: str) -> None:
    assert status(host=host) == 403
    assert status("/gradio_api/queue/join", "POST", host, origin=f"http://{host}") == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:7860", ""]
)
def test_other_origins(origin: str) -> None:
    assert status("/gradio_api/queue/join", "POST", origin=origin) == 403
    assert status("/config", origin=origin) == 403


def test_pages_that_send_no_origin() -> None:
    assert status("/gradio_api/run/x", "POST", sec_fetch_site="cross-site") == 403
    assert status(sec_fetch_site="cross-site") == 200  # a link to the page


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/upload",
        "/gradio_api/UPLOAD",
        "/gradio_api//upload",
        "/gradio_api/upload_progress",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://x",
        "/gradio_api/stream/1",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit",
        "/monitoring",
        "/login",
    ],
)
def test_no_files(path: str) -> None:
    assert status(path, "POST") == 403


def test_no_multipart_and_nothing_large() -> None:
    kind = "Multipart/form-data; boundary=x"
    assert status("/gradio_api/queue/join", "POST", content_type=kind) == 403
    assert status("/gradio_api/queue/join", "POST", content_length=str(LARGEST + 1)) == 403
    assert status("/gradio_api/queue/join", "POST", content_length="x") == 403


def test_an_endless_body_is_cut_off() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            seen.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 100_000, "more_body": True}

    async def send(message: Any) -> None: ...

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(app, "127.0.0.1")(scope, receive, send))
    assert len(seen) == LARGEST // 100_000


def test_addresses() -> None:
    check_address("127.0.0.1", None)
    check_address("localhost", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"port \d+.*--port that is free"):
            check_address("127.0.0.1", taken.getsockname()[1])


@pytest.mark.filterwarnings("ignore")  # Gradio's own
def test_the_page_works_behind_it(closed_loops: None) -> None:
    gradio = pytest.importorskip("gradio", reason="needs paretune[serve]")
    from paretune.serving.page import serve

    with gradio.Blocks() as app:
        text = gradio.Textbox()
        gradio.Button().click(lambda said: said[::-1], text, text, api_visibility="private")
    address = serve(app, "127.0.0.1", None)
    host = address.removeprefix("http://").rstrip("/")
    try:

        def ask(method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
            connection = http.client.HTTPConnection(host, timeout=20)
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()

        assert ask("GET", "/")[0] == 200
        assert ask("GET", "/config")[0] == 200
        assert ask("GET", "/config", host="evil.example")[0] == 403
        assert ask("POST", "/gradio_api/upload", "x", origin="http://evil.example")[0] == 403
        large, form = "x" * 5_000_000, "multipart/form-data; boundary=x"
        assert ask("POST", "/gradio_api/upload", large, content_type=form)[0] == 403
        asked = {"data": ["abc"], "fn_index": 0, "session_hash": "s"}
        code, _ = ask(
            *("POST", "/gradio_api/queue/join", json.dumps(asked)),
            content_type="application/json",
            origin=f"http://{host}",
        )
        assert code == 200
        assert '"data":["cba"]' in ask("GET", "/gradio_api/queue/data?session_hash=s")[1]
    finally:
        app.close()
