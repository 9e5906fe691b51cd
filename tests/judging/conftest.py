"""Run folders with answers, and servers on loopback that answer as they are told."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
model: {name: smollm2-135m-instruct}
data: {loader: demo, objectives: [concise, informative]}
sweep: {preferences: [[0.8, 0.2], [0.2, 0.8]]}
"""


def write_answers(folder: Path, answers: list[tuple[Any, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        {"prompt": prompt, "response": response, "finished": True, "scores": {}}
        for prompt, response in answers
    )
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder: Path, prompts: int, points: int = 2) -> Path:
    """A run folder of a sweep: `points` times `prompts` answers, and the base model's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    asked = [[{"role": "user", "content": f"question {n}"}] for n in range(prompts)]
    names = ["concise0.80-informative0.20", "concise0.20-informative0.80"][:points]
    for name in names:
        write_answers(folder / "points" / name, [(p, f"{name} {n}") for n, p in enumerate(asked)])
    write_answers(folder / "base", [(p, f"base {n}") for n, p in enumerate(asked)])
    return folder


def completion(text: str | None, **message: Any) -> bytes:
    """The body of a chat completion."""
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    return json.dumps(body).encode()


@dataclass
class Server:
    """What a server was asked, and how often it answered each prompt with a success."""

    url: str = ""
    requests: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paid: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """`answer` is told the request's number for this prompt; it replies by `send`."""

    server_state: Server
    answer: Callable[["Handler", dict[str, Any], int], None]
    seen: Counter[str]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        state = self.server_state
        with state.lock:
            state.requests += 1
            state.bodies.append(body)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            attempt = self.seen[body["messages"][-1]["content"]]
            self.seen[body["messages"][-1]["content"]] += 1
        try:
            type(self).answer(self, body, attempt)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def succeed(self, body: dict[str, Any], reply: bytes) -> None:
        """Send a success, and count it as paid for."""
        with self.server_state.lock:
            self.server_state.paid[body["messages"][-1]["content"]] += 1
        self.send(200, reply)

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def serving(answer: Callable[[Handler, dict[str, Any], int], None]) -> Iterator[Server]:
    state = Server()
    handler = type(
        "_Handler", (Handler,), {"answer": answer, "server_state": state, "seen": Counter()}
    )

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None: ...

    server = Quiet(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def serve() -> Callable[..., Any]:
    """``serving``."""
    return serving


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """``make_run`` below the test's own folder."""
    return lambda prompts, points=2: make_run(tmp_path / "run", prompts, points)


@pytest.fixture
def reply() -> Callable[..., bytes]:
    """``completion``."""
    return completion
