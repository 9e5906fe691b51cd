"""`paretune judge` against `transformers serve`, a real server, on the loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paretune import cli
from paretune.models import built_in_folder

SERVE = "from transformers.cli.transformers import main; main()"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The base URL of a server that serves what it is asked for."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    port = free_port()
    command = [sys.executable, "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    log = (tmp_path / "server.log").open("wb")
    process = subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


@pytest.mark.slow
def test_every_question_gets_a_reply_that_is_kept(
    server: str, run_folder: Any, tmp_path: Path
) -> None:
    model = tmp_path / "judge"
    shutil.copytree(built_in_folder("paretune-toy"), model)
    run = run_folder(2, points=1)
    command = ["judge", str(run), "--model", str(model), "--base-url", server]
    command += ["--aspect", "helpfulness", "--max-tokens", "8", "--concurrency", "2"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    assert "4 questions for" in result.output
    (replies,) = run.glob("judge/*/replies.jsonl")
    rows = [json.loads(line) for line in replies.read_text().splitlines()]
    assert len(rows) == 4
    again = CliRunner().invoke(cli.app, command)
    assert "; 0 asked now." in again.output
    assert len(replies.read_text().splitlines()) == 4
