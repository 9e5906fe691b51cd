"""Asking an endpoint from a process of its own, so that a killed run pays for nothing twice.

The process that asks (this module, run) is in a session of its own. When the one that started it
is gone, however it ended, it sends nothing more, takes in the replies to what it has sent, keeps
them, and ends. The job comes as a line on its standard input, which stays open for as long as it
is wanted; on its standard output it tells how it gets on.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.judging.endpoint import EndpointJudge
from paretune.judging.questions import Cache, Question, keep_replies
from paretune.progress import Count


def ask_detached(
    judge: EndpointJudge,
    questions: Sequence[Question],
    folder: Path,
    count: Count,
) -> None:
    """`keep_replies` in another process.

    Ctrl-C waits for the replies that are under way; a second one leaves them to the process.

    Raises:
        InputError: as `EndpointJudge.ask` does.
    """
    job = {
        "judge": asdict(judge),
        "folder": str(folder),
        "questions": [[question.key, list(question.messages)] for question in questions],
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "paretune.judging.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us
    )
    assert process.stdin is not None
    assert process.stdout is not None
    error: str | None = None
    try:
        with contextlib.suppress(BrokenPipeError):  # its exit code will tell
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            error = message.get("error")
            if error is None:
                count(message["done"], len(questions))
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.read()  # until it ends
        process.stdout.close()
        process.wait()
    if error is not None:
        raise InputError(error)
    if process.returncode:
        raise RuntimeError(f"The process that asks the judge ended with {process.returncode}.")


def main() -> None:
    """Do the job on standard input."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    job = json.loads(sys.stdin.readline())
    judge = EndpointJudge(**job["judge"])
    questions = [Question(key, tuple(messages)) for key, messages in job["questions"]]
    threading.Thread(target=_await_end, daemon=True).start()
    cache = Cache(Path(job["folder"]))
    try:
        keep_replies(judge, questions, cache, lambda done, total: _tell({"done": done}))
    except InputError as error:
        _tell({"error": str(error)})
    except KeyboardInterrupt:
        pass  # the replies under way are in


def _await_end() -> None:
    """When nobody is there any more, do as on Ctrl-C."""
    sys.stdin.read()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _tell(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
