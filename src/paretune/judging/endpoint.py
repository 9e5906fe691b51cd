"""A judge behind an OpenAI-compatible endpoint: many requests at a time, patient and discreet.

Every reply is handed on the moment it is there. The retries are our own, since only so the rate
limit, the server's ``Retry-After`` and all requests under way can be reckoned together. The key
is sent to the endpoint and goes nowhere else: every text that came from the server is searched
for it before it is passed on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from paretune.errors import InputError
from paretune.extras import require
from paretune.judging.address import check_url, on_loopback
from paretune.judging.questions import REFUSAL, Failure, Outcome, Question, Receive, Reply
from paretune.names import MODEL_LENGTH, name_fault

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"

_REASON_LENGTH = 300
_LONGEST_WAIT = 32.0  # of our own, in units of `backoff`
_PATIENCE = 600.0  # a server that asks for a longer pause is given up, in units of `backoff`
_HOPELESS = 20  # failures in a row after which nothing more is sent
_FATAL = {
    401: "refuses the key",
    402: "asks for payment",
    404: "does not know the model or the address",
}
_TRANSIENT = (408, 409, 425, 429)
_GATEWAY_ERROR = "error"  # why a reply ended that a gateway broke off
_SECRETS = re.compile(
    r"(?i)\b(bearer\s+|(?:x-)?api[-_]?key\W{1,4}|authorization\W{1,4}(?:bearer\s+)?)[^\s\"',;}]+"
)


@dataclass
class EndpointJudge:
    """A chat model at `base_url`.

    Args:
        model: name that the endpoint knows.
        base_url: up to where ``/chat/completions`` follows; no user name, password or query.
        api_key: sent as a bearer token; None sends none worth the name, for local servers.
        temperature: None leaves it to the server.
        max_tokens: of an answer.
        options: more fields of the request's body, such as ``{"reasoning_effort": "none"}``.
        concurrency: requests under way at a time.
        per_minute: requests begun in a minute, at most; None is no limit.
        timeout: seconds for a request, from its start to the last byte of its reply.
        attempts: how often a question is tried.
        backoff: seconds before the second attempt; the wait doubles from one to the next.

    Raises:
        InputError: openai is not installed, a setting is out of range, or the URL is none or holds
            a secret.
    """

    model: str
    base_url: str = OPENAI_URL
    api_key: str | None = field(default=None, repr=False)
    temperature: float | None = 0.0
    max_tokens: int = 512
    options: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    per_minute: float | None = None
    timeout: float = 120.0
    attempts: int = 7
    backoff: float = 1.0

    def __post_init__(self) -> None:
        check_url(self.base_url)
        require("openai", "A judge at an endpoint")
        if fault := name_fault(self.model, MODEL_LENGTH):
            raise InputError(f"The judge's model: {fault}.")
        for name in ("concurrency", "attempts", "max_tokens", "timeout", "backoff"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0 and finite, not {getattr(self, name)}.")
        if self.temperature is not None and self.temperature < 0:
            raise InputError(f"temperature must be at least 0, not {self.temperature}.")
        if self.api_key and not re.fullmatch("[!-~]+", self.api_key):
            raise InputError(
                "The key has a character that no key has, such as a space, a line break or a "
                "typographic quote: set its environment variable anew."
            )
        sent = [self.base_url, self.model, self._settings()]
        try:
            written = json.dumps(sent, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise InputError("temperature and options must be finite: JSON has no nan.") from None
        if self.api_key and self.api_key in written:
            raise InputError("The key stands in the base URL, the model's name or an option.")
        if self.per_minute is not None and not 0 < self.per_minute < math.inf:
            raise InputError(f"per_minute must be above 0 and finite, not {self.per_minute}.")

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"base_url": self.base_url.rstrip("/"), "model": self.model, **self._settings()}

    @property
    def where(self) -> str:
        return self.base_url

    @property
    def paid(self) -> bool:
        return not on_loopback(self.base_url)

    def ask(self, questions: Sequence[Question], receive: Receive) -> None:
        """Put all questions; a reply or, after all attempts, a failure goes to `receive`.

        Ctrl-C sends nothing more, but takes in the replies to what was sent: they may be paid
        for. A second one does not wait for them.

        Raises:
            InputError: the endpoint refuses the key, wants payment, or does not know the model.
        """
        asyncio.run(_Session(self, receive).run(questions))

    def redact(self, text: str) -> str:
        """What came from the server, without the key should it be in there."""
        text = text.encode("utf-8", errors="replace").decode()  # half characters cannot be written
        if not self.api_key:
            return text
        key = re.escape(self.api_key).replace("/", r"\\*/")  # some JSON escapes the slash
        return re.sub(key, "[key]", text)

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = dict(self.options)
        if self.temperature is not None:
            settings.setdefault("temperature", self.temperature)
        if "max_completion_tokens" not in settings:  # the newer name: never both
            settings.setdefault("max_tokens", self.max_tokens)
        return settings


class _Retry(Exception):
    """The attempt came to nothing; `wait` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None, all_wait: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.all_wait = all_wait


class _Refused(Exception):
    """Trying again would not help."""


class _Session:
    """The requests of one call of `ask`."""

    def __init__(self, judge: EndpointJudge, receive: Receive) -> None:
        self._judge = judge
        self._receive = receive
        self._stop = asyncio.Event()
        self._outcomes: asyncio.Queue[Outcome | None] = asyncio.Queue()
        self._fatal: str | None = None
        self._in_a_row = 0  # failures since the last reply
        self._not_before = 0.0  # no request begins before this time

    async def run(self, questions: Sequence[Question]) -> None:
        judge = self._judge
        async with _client(judge) as client:
            todo = iter(questions)
            writer = asyncio.create_task(self._write())
            workers = [
                asyncio.create_task(self._work(client, todo)) for _ in range(judge.concurrency)
            ]
            try:
                await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            finally:  # also on Ctrl-C
                self._stop.set()
                await asyncio.wait(workers)
                self._outcomes.put_nowait(None)
                await writer
            for worker in workers:
                worker.result()
        if self._fatal is not None:
            raise InputError(self._fatal)

    async def _write(self) -> None:
        """Hand on what came, in a thread: a slow disk must not make replies late."""
        ended = False
        try:
            while not ended:
                batch = [await self._outcomes.get()]
                while not self._outcomes.empty():
                    batch.append(self._outcomes.get_nowait())
                outcomes = [outcome for outcome in batch if outcome is not None]
                ended = len(outcomes) < len(batch)
                if outcomes:
                    await asyncio.to_thread(self._receive, outcomes)
        finally:  # nothing is asked that cannot be kept
            self._stop.set()

    async def _work(self, client: AsyncOpenAI, todo: Iterator[Question]) -> None:
        for question in todo:
            if self._in_a_row >= _HOPELESS:
                failure = Failure(f"not sent: {_HOPELESS} requests in a row failed")
                self._outcomes.put_nowait((question, failure))
                continue
            outcome = await self._ask(client, question)
            if outcome is not None:
                self._in_a_row = self._in_a_row + 1 if isinstance(outcome, Failure) else 0
                self._outcomes.put_nowait((question, outcome))
            if self._stop.is_set():
                return

    async def _ask(self, client: AsyncOpenAI, question: Question) -> Reply | Failure | None:
        """None if the question was dropped because everything stops."""
        judge, reason = self._judge, ""
        for attempt in range(judge.attempts):
            if not await self._turn():
                return None
            try:
                return await self._attempt(client, question)
            except _Refused as error:
                return Failure(str(error))
            except _Retry as error:
                reason = str(error)
                logger.info("attempt %d of %d: %s", attempt + 1, judge.attempts, reason)
                own = judge.backoff * min(2.0**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
                wait = own if error.wait is None else error.wait
                if wait > _PATIENCE * judge.backoff:
                    return Failure(f"{reason}; asked to wait {wait:.0f} s")
                if error.all_wait:
                    self._not_before = max(self._not_before, time.monotonic() + wait)
                elif attempt + 1 < judge.attempts and not await self._sleep(wait):
                    return None
        return Failure(f"{reason} ({judge.attempts} attempts)")

    async def _turn(self) -> bool:
        """Wait for the rate limit and for pauses the server asked for; False if all stops."""
        gap = 0.0 if self._judge.per_minute is None else 60 / self._judge.per_minute
        while (wait := self._not_before - time.monotonic()) > 0:
            if not await self._sleep(wait):
                return False
        self._not_before = max(self._not_before, time.monotonic()) + gap
        return not self._stop.is_set()

    async def _sleep(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return True
        return False

    async def _attempt(self, client: AsyncOpenAI, question: Question) -> Reply:
        import openai

        judge = self._judge
        try:
            async with asyncio.timeout(judge.timeout):
                raw = await client.chat.completions.with_raw_response.create(
                    model=judge.model,
                    messages=[dict(message) for message in question.messages],  # type: ignore[misc]
                    extra_body=judge._settings(),
                )
        except openai.APIStatusError as error:
            status = 402 if error.code == "insufficient_quota" else error.status_code
            said = error.message.partition(" - ")[2] or error.body or ""
            raise self._status(status, error.response.headers, said) from None
        except (TimeoutError, openai.APITimeoutError):
            raise _Retry(f"no complete reply within {judge.timeout:g} s") from None
        except openai.APIConnectionError as error:
            raise _Retry(self._reason("no connection", repr(error.__cause__ or error))) from None
        except openai.OpenAIError as error:
            raise _Refused(self._reason("the client refused", error)) from None
        return self._read(raw.http_response.text)

    def _status(self, status: int, headers: Mapping[str, str], said: object) -> Exception:
        """What to make of an HTTP status that is no success."""
        judge = self._judge
        if 300 <= status < 400:
            where = self._reason("a redirect to", headers.get("location", "nowhere"))
            return _Refused(
                f"HTTP {status}, {where}, which was not followed: prompts, answers and the key go "
                "to the base URL only. If that is where the judge is, give it as --base-url"
            )
        reason = self._reason(f"HTTP {status}", said)
        if status in _FATAL:
            self._fatal = (
                f"{judge.base_url} {_FATAL[status]} ({reason}): see base URL, model "
                f"'{judge.model}' and key. What was answered is kept."
            )
            self._stop.set()
            return _Refused(reason)
        if status in _TRANSIENT or status >= 500:
            return _Retry(reason, retry_after(headers), all_wait=status == 429)
        return _Refused(reason)

    def _read(self, body: str) -> Reply:
        """The reply in the body of a success."""
        try:
            value = json.loads(body)
            if not value.get("choices") and isinstance(error := value.get("error"), dict):
                raise self._status(_code(error), {}, error.get("message") or error)
            choice = value["choices"][0]
            finish = choice.get("finish_reason")
            finish = finish if isinstance(finish, str) else None
            text, declined = _words(choice.get("message"), Reply("", finish).blocked)
            if finish == _GATEWAY_ERROR:
                raise self._status(502, {}, choice.get("error") or "the reply was broken off")
            usage = value.get("usage") or {}
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = "an empty body" if not body.strip() else f"a malformed body ({error!r}): {body}"
            raise _Retry(self._reason("HTTP 200 with", what)) from None
        finish = REFUSAL if declined else finish
        return Reply(
            self._judge.redact(text),
            None if finish is None else self._judge.redact(finish),
            *(count if isinstance(count, int) else None for count in counts),
        )

    def _reason(self, what: str, detail: object) -> str:
        """One line; the key is taken out before the text is cut, which could leave half of it."""
        text = "".join(c if c.isprintable() else " " for c in str(detail))
        text = _SECRETS.sub(r"\1[key]", self._judge.redact(" ".join(text.split())))
        return (f"{what}: {text}" if text else what)[:_REASON_LENGTH]


def _words(message: Any, blocked: bool) -> tuple[str, bool]:
    """What a message says without its thoughts, and whether it declines.

    Raises:
        TypeError, LookupError, AttributeError: it is no message.
    """
    if message is None and blocked:
        return "", False
    text = message.get("content") or ""
    if isinstance(text, list):  # in parts, of which thoughts are some
        parts = (part for part in text if part.get("type", "text") in ("text", "output_text"))
        text = "".join(part["text"] for part in parts)
    if not isinstance(text, str):
        raise TypeError("the content is no text")
    if not text and isinstance(refusal := message.get("refusal"), str) and refusal:
        return refusal, True
    return text, False


def _code(error: Mapping[str, Any]) -> int:
    """The status in the body of a gateway; 502 where it names none."""
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def _client(judge: EndpointJudge) -> AsyncOpenAI:
    import openai

    # A local server is asked directly, whatever proxy the environment names; nobody is sent on.
    http = openai.DefaultAsyncHttpxClient(trust_env=judge.paid, follow_redirects=False)
    client = openai.AsyncOpenAI(
        api_key=judge.api_key or "none",
        base_url=judge.base_url,
        max_retries=0,
        timeout=judge.timeout,
        http_client=http,
    )
    if judge.base_url.rstrip("/") != OPENAI_URL:  # from the environment, and nobody else's business
        client.organization = client.project = None
    _ = client.chat.completions.with_raw_response  # imports much: not in the time of a request
    return client


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: ``retry-after-ms``, or seconds or a date in
    ``Retry-After``; None if it asks nothing that can be read."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(headers["retry-after"]))
    except KeyError:
        return None
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
