"""Judging through servers that misbehave: everything accounted for, nothing paid for twice."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from paretune.errors import InputError
from paretune.judging.address import on_loopback
from paretune.judging.endpoint import EndpointJudge, retry_after
from paretune.judging.questions import Failure, Outcome, Question, Reply
from paretune.judging.session import Wanted
from paretune.runs.judge import Forecast, judge_run

KEY = "sk-very-secret-0123456789abcdef"
TWO = Wanted(aspects=("helpfulness", "honesty"))  # 125 prompts, base and one point: 500 questions


def judge(url: str, **settings: Any) -> EndpointJudge:
    defaults = {"api_key": KEY, "backoff": 0.01, "timeout": 20.0, "concurrency": 16}
    return EndpointJudge("some/judge", url, **{**defaults, **settings})


def ask(judge: EndpointJudge, count: int = 1) -> list[Reply | Failure]:
    outcomes: list[Reply | Failure] = []
    questions = [
        Question(str(n), ({"role": "user", "content": f"question {n}"},)) for n in range(count)
    ]
    judge.ask(questions, lambda rows: outcomes.extend(outcome for _, outcome in rows))
    return outcomes


class Misbehaving:
    """Its ways by number of the question; those not named here are plain ratings."""

    def __init__(self, reply: Callable[..., bytes]) -> None:
        self.reply = reply
        self.mended = False
        self.numbers: dict[str, int] = {}
        self.lock = threading.Lock()

    def __call__(self, handler: Any, body: dict[str, Any], attempt: int) -> None:
        text = body["messages"][-1]["content"]
        with self.lock:
            number = self.numbers.setdefault(text, len(self.numbers))
        echo = json.dumps({"error": {"message": f"saw {dict(handler.headers)}"}}).encode()
        way = number % 50
        if way in (40, 41, 42, 43) and not self.mended:
            return self.fail(handler, way, echo)
        if attempt == 0 and self.stumble(handler, way, number, echo):
            return None
        words = {
            30: "Rating: N/A\nRationale: a poem.",
            31: "A fine answer, I would say.",
            32: "I'm sorry, but I can't rate this.",
            33: "",
            34: "Rating: 9",
            35: f"Rating: 2\nRationale: your key is {KEY}.",
            36: "Rating: 3\nRationale: half a character: \ud83d",
        }
        if way == 37:
            return handler.succeed(body, self.reply(None, refusal="No."))
        return handler.succeed(body, self.reply(words.get(way, f"Rating: {1 + number % 5}")))

    def fail(self, handler: Any, way: int, echo: bytes) -> None:
        if way == 40:
            handler.send(500, echo)
        elif way == 41:
            handler.send(400, echo)
        elif way == 42:
            handler.send(429, echo, {"Retry-After": "86400"})
        else:
            handler.send(200, b"")

    def stumble(self, handler: Any, way: int, number: int, echo: bytes) -> bool:
        """What goes wrong the first time; whether anything does."""
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
        errors: dict[int, tuple[int, bytes, dict[str, str]]] = {
            1: (429, echo, {"Retry-After": "0"}),
            2: (429, echo, {"Retry-After": "0.05"}),
            3: (429, b"", {}),
            4: (429, echo, {"Retry-After": soon if number < 50 else "soon"}),
            5: (500, b"<html>oops</html>", {"Content-Type": "text/html"}),
            6: (503, b"", {"Retry-After": "0"}),
            7: (200, b"", {}),
            8: (200, b"{", {}),
            9: (200, b"null", {}),
            10: (200, b'{"choices": []}', {}),
            11: (200, b'{"error": {"message": "overloaded"}}', {}),
            12: (200, b'{"choices": [{"message": {"content": 4}}]}', {}),
            13: (200, b"\xff\xfe", {}),
            14: (200, b"<html>busy</html>", {"Content-Type": "text/html"}),
            15: (529, echo, {}),
        }
        if way in errors:
            handler.send(*errors[way])
        elif way == 16:  # cut before anything is said
            handler.close_connection = True
        elif way == 17:  # cut in the middle of the body
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.close_connection = True
        elif number == 18:  # silent
            time.sleep(4)
            handler.close_connection = True
        elif number == 19:  # one byte at a time, never done
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            for _ in range(40):
                handler.wfile.write(b" ")
                time.sleep(0.1)
            handler.close_connection = True
        else:
            return False
        return True


@pytest.mark.slow
def test_every_rating_is_accounted_for(
    serve: Any,
    run_folder: Any,
    reply: Any,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "paretune.judging.endpoint")
    run = run_folder(125, points=1)
    ways = Misbehaving(reply)
    with serve(ways) as server:
        first = judge_run(run, judge(server.url, timeout=3.0), TWO)
        assert first is not None
        assert first.questions == first.asked == 500 == sum(first.counts.values())
        # Ten questions of each way: 125 prompts twice, in two aspects.
        assert first.counts == {
            "rated": 400,
            "not_applicable": 10,
            "refused": 20,
            "unparsable": 30,
            "failed": 40,
        }
        assert sum(first.failures.values()) == 40
        reasons = sorted({why.split(":")[0] for why in first.failures})
        assert reasons == ["HTTP 200 with", "HTTP 400", "HTTP 429", "HTTP 500"]
        # Two time-outs are the server's doing; on a busy machine more replies may come too late.
        late = caplog.text.count("no complete reply within 3 s") - 2
        assert late >= 0
        assert server.paid.total() - 460 <= late
        assert len(server.paid) == 460
        paid, before = Counter(server.paid), server.requests

        ways.mended = True
        second = judge_run(run, judge(server.url), TWO)
        assert second is not None
        assert second.asked == 40
        assert second.counts["rated"] == 440
        assert "failed" not in second.counts
        assert server.requests == before + 40  # failures only, not what could not be parsed
        assert (server.paid - paid).keys().isdisjoint(paid)

        third = judge_run(run, judge(server.url), TWO)
        assert third is not None
        assert third.asked == 0
        assert server.requests == before + 40
        assert third.to_json() == {**second.to_json(), "asked": 0}

    assert all(h["authorization"] == f"Bearer {KEY}" for h in server.headers)
    assert_no_key(run, caplog.text, *capfd.readouterr())


def assert_no_key(run: Path, *printed: str) -> None:
    written = [path for path in run.rglob("*") if path.is_file()]
    assert len(written) > 5
    for text in [*(path.read_bytes() for path in written), *(text.encode() for text in printed)]:
        assert KEY.encode() not in text
        assert b"secret" not in text


def start(run: Path, url: str, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "paretune", "judge", str(run), "--model", "some/judge"]
    command += ["--base-url", url, "--backoff", "0.01", "--api-key-env", "OUR_KEY", *options]
    return subprocess.Popen(
        command,
        env={**os.environ, "OUR_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where the tests run in the background SIGINT may be ignored, which would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


class Gate:
    """Answers like `Misbehaving`, but from the `most`-th request on only once it is opened."""

    def __init__(self, ways: Misbehaving, most: int) -> None:
        self.ways, self.most = ways, most
        self.asked = 0
        self.held = threading.Semaphore(0)
        self.opened = threading.Event()
        self.lock = threading.Lock()
        ways.numbers = dict.fromkeys(map(str, range(20)), -1)  # nobody is number 18: no time-outs

    def __call__(self, handler: Any, body: dict[str, Any], attempt: int) -> None:
        with self.lock:
            self.asked += 1
            wait = self.asked > self.most
        if wait:
            self.held.release()
            self.opened.wait()
        self.ways(handler, body, attempt)


def kept(run: Path) -> int:
    path = run / "judge" / "some-judge" / "replies.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_killed_run_pays_for_nothing_twice(serve: Any, run_folder: Any, reply: Any) -> None:
    run = run_folder(125, points=1)
    gate = Gate(Misbehaving(reply), most=300)
    with serve(gate) as server:
        process = start(run, server.url, *("--aspect", "helpfulness", "--aspect", "honesty"))
        for _ in range(8):
            gate.held.acquire()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        before = server.paid.total()
        assert 150 < before < 300
        gate.opened.set()  # eight replies come when nobody is there to take them
        summary = judge_run(run, judge(server.url, max_tokens=512), TWO)
        printed = process.communicate()[0]
        assert server.paid.total() > before
        assert summary is not None
        assert sum(summary.counts.values()) == 500
        assert max(server.paid.values()) == 1
        assert server.paid.total() == 500 - summary.counts["failed"] == kept(run)
    assert_no_key(run, printed)


@pytest.mark.slow
def test_ctrl_c_takes_in_what_is_paid_for(serve: Any, run_folder: Any, reply: Any) -> None:
    run = run_folder(60, points=1)
    gate = Gate(Misbehaving(reply), most=20)
    with serve(gate) as server:
        process = start(run, server.url, "--concurrency", "4")
        for _ in range(4):
            gate.held.acquire()
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        gate.opened.set()
        printed = process.communicate(timeout=60)[0]
        assert process.returncode == 130, printed
        assert "to go on: paretune judge" in printed
        assert kept(run) == server.paid.total() < 40
    assert_no_key(run, printed)


@pytest.mark.slow
def test_unparsable_replies_are_asked_again_on_demand(
    serve: Any, run_folder: Any, reply: Any
) -> None:
    words = ["Rating: 4", "Hm.", "I cannot rate this.", "Rating: N/A"]
    honesty = Wanted(aspects=("honesty",))
    run = run_folder(4, points=1)

    def answer(handler: Any, body: dict[str, Any], attempt: int) -> None:
        number = int(body["messages"][-1]["content"].partition("question ")[2][0])
        handler.succeed(body, reply(words[number]))

    with serve(answer) as server:
        first = judge_run(run, judge(server.url), honesty)
        words[1:3] = ["Rating: 1", "Still not."]
        assert judge_run(run, judge(server.url), honesty) == replace(first, asked=0)
        assert server.requests == 8
        again = judge_run(run, judge(server.url), replace(honesty, again=True))
    assert again is not None
    assert server.requests == 12
    assert again.counts == {"rated": 4, "unparsable": 2, "not_applicable": 2}
    assert kept(run) == 12  # earlier replies stay in the file, the last one counts


@pytest.mark.slow
def test_the_key_is_refused(serve: Any, run_folder: Any) -> None:
    def refuse(handler: Any, body: dict[str, Any], attempt: int) -> None:
        text = f"Incorrect API key provided: {KEY} {handler.headers['Authorization']}"
        handler.send(401, json.dumps({"error": {"message": text}}).encode())

    run = run_folder(20)
    with serve(refuse) as server:
        with pytest.raises(InputError, match="refuses the key") as caught:
            judge_run(run, judge(server.url), Wanted())
        assert server.requests <= 16  # those under way
        assert "secret" not in str(caught.value)
        printed = start(run, server.url).communicate(timeout=60)[0]
        assert printed.splitlines()[-1].startswith("error: ")
        assert KEY not in printed


def test_a_dead_server_is_given_up(run_folder: Any) -> None:
    run = run_folder(50)
    summary = judge_run(run, judge("http://127.0.0.1:9/v1", attempts=2), Wanted())
    assert summary is not None
    assert summary.counts == {"failed": 450}
    assert summary.rows[0].aspects["honesty"].percent is None
    assert sum(n for why, n in summary.failures.items() if why.startswith("not sent")) > 400


def test_a_broken_disk_stops_everything(serve: Any, reply: Any) -> None:
    def receive(outcomes: Sequence[Outcome]) -> None:
        raise OSError("no space left")

    questions = [Question(str(n), ({"role": "user", "content": str(n)},)) for n in range(99)]
    with serve(lambda h, body, attempt: h.succeed(body, reply("Rating: 1"))) as server:
        with pytest.raises(OSError, match="no space left"):
            judge(server.url, concurrency=2).ask(questions, receive)
        assert server.requests <= 8


def test_what_is_sent(serve: Any, reply: Any) -> None:
    with serve(lambda h, body, attempt: h.succeed(body, reply("Rating: 1"))) as server:
        ask(judge(server.url, options={"reasoning_effort": "none"}))
        ask(judge(server.url, temperature=None, options={"max_completion_tokens": 9}))
        ask(judge(server.url, api_key=None))
    common = {"messages": [{"role": "user", "content": "question 0"}], "model": "some/judge"}
    assert server.bodies[0] == {
        **common,
        "temperature": 0.0,
        "max_tokens": 512,
        "reasoning_effort": "none",
    }
    assert server.bodies[1] == {**common, "max_completion_tokens": 9}
    assert "sk-" not in server.headers[2]["authorization"]


def test_replies_of_other_shapes(serve: Any, reply: Any) -> None:
    parts = [{"type": "text", "text": "Rating: "}, {"type": "image"}, {"type": "text", "text": "2"}]
    with serve(lambda h, body, attempt: h.succeed(body, reply(parts))) as server:
        (outcome,) = ask(judge(server.url))
    assert outcome == Reply("Rating: 2", "stop", 10, 5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\x1b[31mred\r\nalert\x07", "HTTP 400: [31mred alert"),
        (b'{"error": {"message": "\\u001bno sk-very/secret"}}', "HTTP 400: no [key]"),
        (b'{"detail": "no \\"sk-very\\\\/secret\\""}', "HTTP 400: {'detail': 'no \"[key]\"'}"),
        (b"Authorization: Bearer abcdef", "HTTP 400: Authorization: Bearer [key]"),
        (b"x" * 1000, "HTTP 400: " + "x" * 290),
        (b"", "HTTP 400"),
    ],
)
def test_reasons_are_short_plain_and_without_keys(serve: Any, body: bytes, reason: str) -> None:
    with serve(lambda h, _, attempt: h.send(400, body)) as server:
        (outcome,) = ask(judge(server.url, api_key="sk-very/secret"))
    assert outcome == Failure(reason)


def test_whose_account_it_is_is_nobody_elses_business(
    serve: Any, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    with serve(lambda handler, body, attempt: handler.succeed(body, reply("4"))) as server:
        ask(judge(server.url))
    (headers,) = server.headers
    assert not any("mine" in value for value in headers.values())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(serve: Any, reply: Any, status: int) -> None:
    with serve(lambda handler, body, attempt: handler.succeed(body, reply("Rating: 4"))) as other:

        def redirect(handler: Any, body: dict[str, Any], attempt: int) -> None:
            where = f"{other.url}/chat/completions?key={KEY}"
            handler.send(status, b"", {"Location": where})

        with serve(redirect) as server:
            (outcome,) = ask(judge(server.url))
        assert server.requests == 1
        assert other.requests == 0
    assert isinstance(outcome, Failure)
    assert f"HTTP {status}, a redirect to: {other.url}" in outcome.reason
    assert "give it as --base-url" in outcome.reason
    assert KEY not in outcome.reason


@pytest.mark.parametrize(
    ("body", "found", "requests"),
    [
        ({"choices": None, "error": {"code": 429, "message": "later"}}, "HTTP 429: later", 3),
        ({"error": {"code": 502, "message": "upstream"}}, "HTTP 502: upstream", 3),
        ({"error": {"code": 403, "message": "flagged"}}, "HTTP 403: flagged", 1),
        ({"error": {"message": "what?"}, "choices": []}, "HTTP 502: what?", 3),
        ({"choices": []}, "HTTP 200 with: a malformed body", 3),
        ({"choices": [{"finish_reason": "stop", "message": None}]}, "a malformed body", 3),
        ({"choices": [{"finish_reason": "error", "message": {"content": "Rating: 4"}}]}, "502", 3),
        ({"choices": [{"finish_reason": "SAFETY"}]}, Reply("", "SAFETY"), 1),
        ({"choices": [{"finish_reason": "content_filter", "message": None}]}, "", 1),
        ({"choices": [{"message": {"content": None, "reasoning": "Rating: 4"}}]}, Reply(""), 1),
        (
            {
                "choices": [
                    {
                        "message": {
                            "content": [
                                {"type": "thinking", "thinking": [{"text": "Rating: 2"}]},
                                {"type": "reasoning", "text": "Rating: 2"},
                                {"type": "text", "text": "Rating: 4"},
                            ]
                        }
                    }
                ]
            },
            Reply("Rating: 4"),
            1,
        ),
    ],
)
def test_bodies_of_gateways(serve: Any, body: Any, found: str | Reply, requests: int) -> None:
    sent = json.dumps(body).encode()
    with serve(lambda handler, asked, attempt: handler.send(200, sent)) as server:
        (outcome,) = ask(judge(server.url, attempts=3))
    assert server.requests == requests
    if isinstance(outcome, Failure):
        assert isinstance(found, str)
        assert found in outcome.reason
    else:
        assert outcome == (found or Reply("", "content_filter"))


def test_the_rate_limit_holds(serve: Any, reply: Any) -> None:
    times = []

    def answer(handler: Any, body: dict[str, Any], attempt: int) -> None:
        times.append(time.monotonic())
        handler.succeed(body, reply("Rating: 1"))

    with serve(answer) as server:
        ask(judge(server.url, per_minute=1200), count=12)
    assert times[-1] - times[0] >= 11 * 0.05 - 0.04


def test_all_requests_heed_a_429(serve: Any, reply: Any) -> None:
    times = []

    def answer(handler: Any, body: dict[str, Any], attempt: int) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            handler.send(429, b"", {"Retry-After": "0.4"})
        else:
            handler.succeed(body, reply("Rating: 1"))

    with serve(answer) as server:
        outcomes = ask(judge(server.url, concurrency=1), count=3)
    assert times[1] - times[0] >= 0.39
    assert all(isinstance(outcome, Reply) for outcome in outcomes)


def test_paid_calls_are_confirmed(run_folder: Any) -> None:
    run = run_folder(4)
    seen: list[Forecast] = []

    def refuse(forecast: Forecast) -> bool:
        seen.append(forecast)
        return False

    assert judge_run(run, judge("https://judge.example/v1"), Wanted(), confirm=refuse) is None
    assert (seen[0].questions, seen[0].kept, seen[0].cost) == (36, 0, None)
    assert seen[0].output_tokens == 36 * 512
    assert 36 * 250 < seen[0].input_tokens < 36 * 700
    printed = start(run, "https://judge.example/v1").communicate(timeout=60)[0]
    assert "cost unknown" in printed
    assert "give --yes" in printed


def test_mistakes_are_one_sentence() -> None:
    for url in ("judge.example/v1", "ftp://x/v1", "https://u:p@x/v1", "https://x/v1?key=1"):
        with pytest.raises(InputError) as caught:
            judge(url)
        assert "u:p" not in str(caught.value)
        assert "key=1" not in str(caught.value)
    with pytest.raises(InputError, match="key stands in"):
        judge("http://localhost/v1", options={"api_key": KEY})
    for url in ("http://[::1", "http://x:99999/v1", "http://x:port/v1", "http://a host/v1"):
        with pytest.raises(InputError, match="must look like"):
            judge(url)
    for key in ("sk-\u201cvery\u201d", "sk-very\n", "sk very"):  # as pasted
        with pytest.raises(InputError, match="character that no key has") as caught:
            judge("http://localhost/v1", api_key=key)
        assert "very" not in str(caught.value)
    for wrong in ({"temperature": math.nan}, {"options": {"seed": math.inf}}):
        with pytest.raises(InputError, match="must be finite"):
            judge("http://localhost/v1", **wrong)
    with pytest.raises(InputError, match="concurrency"):
        judge("http://localhost/v1", concurrency=0)
    with pytest.raises(InputError, match="no aspect 'kindness'"):
        Wanted(aspects=("kindness",))
    assert KEY not in repr(judge("http://localhost/v1"))


def test_which_addresses_are_of_this_machine() -> None:
    local = ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:80/v1"]
    other = ["https://api.openai.com/v1", "http://192.168.0.2/v1", "http://localhost.evil.org/v1"]
    assert [on_loopback(url) for url in local + other] == [True] * 3 + [False] * 3


def test_retry_after() -> None:
    assert retry_after({}) is None
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after-ms": "50", "retry-after": "2"}) == 0.05
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "nan"}) == 0
    assert retry_after({"retry-after": "in a while"}) is None
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (retry_after({"retry-after": date}) or 0) <= 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Name the judge"),
        (("--model", "m", "--local", "--timeout", "9"), "--timeout is for an endpoint"),
        (("--model", "m", "--api-key-env", "NO_SUCH_KEY"), "needs a key"),
        (("--model", "m", "--price-in", "1"), "Give both prices"),
        (("--model", "m", "--option", "seed"), "takes KEY=VALUE"),
        (("--model", "m", "--aspect", "none"), "Nothing to judge"),
    ],
)
def test_what_the_command_refuses(
    options: tuple[str, ...], message: str, run_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from paretune.cli import app

    for name in ("PARETUNE_JUDGE_MODEL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    result = CliRunner().invoke(app, ["judge", str(run_folder(2)), *options])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
