"""What a chat template makes of a prompt and of the response to it, as text.

The prompt is what ``apply_chat_template(prompt, add_generation_prompt=True)`` gives; the response
is what the template writes after that, up to and with the token that ends the turn.
"""

import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from paretune.data.messages import OPTIONS, TOOLS, response_fault
from paretune.data.rows import is_whole
from paretune.errors import InputError

logger = logging.getLogger(__name__)

MARK = "\ufdd0"
"""Set into text that reads like a special token; Unicode keeps this noncharacter out of texts."""

_PROBE = "xyzzy"  # a response that is easily found in a rendering
_OPENED = re.compile(r"<(?:think|thinking|thought|reasoning)>\s*\Z", re.IGNORECASE)
_OPENING = re.compile(r"\A\s*<(?:think|thinking|thought|reasoning)>\s*", re.IGNORECASE)
_CLOSED = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")

Message = dict[str, Any]


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt's messages and options as the template is given them, and what it makes of them."""

    messages: list[Message]
    options: dict[str, Any]
    text: str


@dataclass(frozen=True)
class _Turn:
    """How a template writes a response: between the generation prompt and the response's words,
    after them, and that up to the token that ends the turn. `closed` says whether there is one."""

    glue: str | None
    tail: str
    end: str
    closed: bool


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.told: dict[str, str] = {}  # warnings that were logged, each once, by their kind
        added = list(tokenizer.added_tokens_decoder.values())
        special = {str(t.content) for t in added if t.special} | set(tokenizer.all_special_tokens)
        self._ends = special | {str(token.content) for token in added}
        # A token of one character cannot be taken apart.
        words = sorted((re.escape(t) for t in special if len(t) > 1), key=len, reverse=True)
        self._special = re.compile("|".join(words)) if words else None

    @property
    def name(self) -> str:
        """What to call it in messages."""
        name = getattr(self._tokenizer, "name_or_path", "")
        return f"the chat template of '{name}'" if name else "the tokenizer's chat template"

    def prompt(self, prompt: Sequence[Message], where: str) -> ChatPrompt:
        """Render a prompt, which ends with what is to be answered.

        Args:
            where: What to call it in messages, such as "row 3 of the 'a' pairs".

        Raises:
            InputError: there is no template, it refuses the conversation, or leaves some of it out.
        """
        if self._tokenizer.chat_template is None:
            raise InputError(
                f"In {where}, the prompt is a list of messages, and the tokenizer has no chat "
                "template: use a chat model, or give prompts and responses as plain strings."
            )
        messages = [self._message(message, where) for message in prompt]
        if not messages:
            raise InputError(f"In {where}, the prompt is an empty list of messages.")
        if messages[-1]["role"] == "assistant":
            raise InputError(
                f"In {where}, the prompt ends with an assistant message, so there is nothing to "
                "answer: put that message at the start of the response."
            )
        options = self._options(messages, where)
        text = self._render(messages, options, where, add_generation_prompt=True)
        if lost := _missing(messages, text, response=False):
            raise InputError(
                f"In {where}, {self.name} does not write {lost}: leave it out, or use a model "
                "whose template does."
            )
        named = [str(m["name"]) for m in messages if m.get("name") and m["role"] != "tool"]
        if any(name not in text for name in named):
            self._tell("%s does not write the names of who speaks, such as in %s", where)
        if options.get(TOOLS):
            fewer = {key: value for key, value in options.items() if key != TOOLS}
            if text == self._render(messages, fewer, where, add_generation_prompt=True):
                raise InputError(
                    f"In {where}, {self.name} does not write the tools: leave them out, or use a "
                    "model whose template does."
                )
        return ChatPrompt(messages, options, text)

    def response(self, prompt: ChatPrompt, response: Sequence[Message], where: str) -> str:
        """What the template writes after the prompt for a response, with the end of the turn.

        Where a template writes the conversation in another way once it is answered (Mistral's
        moves the system prompt, DeepSeek's strips thoughts), the response's part is taken from the
        end of that, or its words are written as the template writes other responses.

        Raises:
            InputError: it is no response of the assistant, or the template does not write it whole.
        """
        answers = self._answer(response, where)
        full = self._render([*prompt.messages, *answers], prompt.options, where)
        text = full[len(prompt.text) :] if full.startswith(prompt.text) else ""
        if not text or _missing(answers[-1:], text, response=True):
            text = self._apart(prompt, answers, full, where)
        if lost := _missing(answers[:-1], text, response=False):
            raise InputError(f"In {where}, {self.name} does not write {lost}: leave it out.")
        if _OPENED.search(prompt.text) and not _CLOSED.search(text):
            self._tell("%s opens a thought, and responses such as %s do not close it", where)
        turn = self._turn
        if text.endswith(turn.tail):
            return text[: len(text) - len(turn.tail)] + turn.end
        # A call of a tool may have an end of its own.
        stripped = text.rstrip()
        if any(stripped.endswith(token) for token in self._ends):
            return stripped
        raise InputError(f"In {where}, {self.name} ends the response in a way of its own.")

    def conversation(self, prompt: ChatPrompt, response: str, where: str) -> str:
        """The whole conversation as the template writes it, for models that score one."""
        answer = {"role": "assistant", "content": response}
        messages = [*prompt.messages, self._message(answer, where)]
        text = self._render(messages, prompt.options, where)
        if not _missing(prompt.messages, text, response=False):
            return text
        return prompt.text + self.response(prompt, [answer], where)

    @cached_property
    def end(self) -> str:
        """The token that the template ends a response with; empty if it has none."""
        turn = self._turn
        return max((t for t in self._ends if turn.end.endswith(t)), key=len) if turn.closed else ""

    @cached_property
    def _turn(self) -> _Turn:
        asked = [{"role": "user", "content": "?"}]
        where = "a conversation of one question"
        try:
            before = self._render(asked, {}, where, add_generation_prompt=True)
        except InputError:
            asked = [{"role": "system", "content": "!"}, *asked]  # some insist on one
            before = self._render(asked, {}, where, add_generation_prompt=True)
        full = self._render([*asked, {"role": "assistant", "content": _PROBE}], {}, where)
        place = full.rfind(_PROBE)
        if place < 0:
            raise InputError(f"In {where}, {self.name} does not write responses.")
        opened = _OPENED.search(before)
        start = before[: opened.start()] if opened and not full.startswith(before) else before
        glue = full[len(start) : place] if full.startswith(start) else None
        tail = full[place + len(_PROBE) :]
        if glue and glue.strip():
            self._tell("%s begins every response with text of its own, which is trained: %r", glue)
        reach = self._reach(asked, tail, before)
        if reach:
            return _Turn(glue, tail, tail[:reach], True)
        self._tell("%s writes no token that ends a response, so the tokenizer's is added")
        opening = before[before.rfind("?") + 1 :]  # some write it whether asked or not
        return _Turn(glue, tail, tail.removesuffix(opening).rstrip(), False)

    def _reach(self, asked: Sequence[Message], tail: str, before: str) -> int:
        """How much of what stands after the last response belongs to it; 0 if no token ends it.

        That is what stands there where the conversation goes on, too, up to its first token, or
        through several that stand together. Some close the last turn in a way of its own.
        """
        more = [*asked, {"role": "assistant", "content": _PROBE}, {"role": "user", "content": "?"}]
        try:
            longer = self._render(more, {}, "a conversation of two questions")
        except InputError:
            longer = _PROBE + tail
        both = zip(tail, longer[longer.rfind(_PROBE) + len(_PROBE) :], strict=False)
        shared = tail[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))]
        first, last = self._tokens_of(shared)
        if first:
            return last if not tail[last:].strip() else first
        opening = before[before.rfind("?") + 1 :]
        first, _ = self._tokens_of(tail)
        return 0 if any(tail[:first].endswith(t) for t in self._ends if t in opening) else first

    def _tokens_of(self, text: str) -> tuple[int, int]:
        """Where the first token in a text ends, and the last that follows it directly."""
        found = [(text.find(token), -len(token)) for token in self._ends if token in text]
        if not found:
            return 0, 0
        position, length = min(found)
        first = last = position - length
        while following := [len(t) for t in self._ends if text.startswith(t, last)]:
            last += max(following)
        return first, last

    def _apart(self, prompt: ChatPrompt, answers: Sequence[Message], full: str, where: str) -> str:
        """The response of a conversation that is not the prompt's rendering and some more."""
        answer, opened = answers[-1], _OPENED.search(prompt.text)
        turn, content = self._turn, str(answer["content"])
        before = prompt.text[: opened.start()] if opened else prompt.text
        if opened and full.startswith(before):  # it opens the thought again, or not at all
            text = _OPENING.sub("", full[len(before) :])
            said = {**answer, "content": _OPENING.sub("", content)}
            if text and not _missing([said], text, response=True):
                return text
        if len(answers) == 1 and turn.glue is not None and set(answer) == {"role", "content"}:
            for words in (content, content.strip()):
                if full.endswith(turn.glue + words + turn.tail):
                    return turn.glue + words + turn.tail
            *thoughts, words = _CLOSED.split(content)
            if thoughts and full.endswith(words.strip() + turn.tail):  # they were stripped
                if opened:
                    content = _OPENING.sub("", content)
                glue = "" if _CLOSED.search(turn.glue) else turn.glue
                return glue + content + turn.tail
        rest = full[len(before) :] if full.startswith(before) else full
        lost = _missing([answer], rest, response=True) or "what stands before the response"
        raise InputError(
            f"In {where}, {self.name} leaves out or changes {lost} when it writes the response: "
            "change the row, or use a model with another template."
        )

    def _answer(self, response: Sequence[Message], where: str) -> list[Message]:
        messages = [self._message(message, where) for message in response]
        if fault := response_fault(messages):
            raise InputError(f"In {where}, a response {fault}.")
        if len(messages) > 1:
            self._tell(
                "With %s, responses of several messages, such as %s, are trained as a whole: what "
                "tools answered counts, too",
                where,
            )
        return messages

    def _message(self, message: Any, where: str) -> Message:
        """A message without empty keys, text that reads like a special token being marked."""
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"In {where}, a message needs a role and content, not {message!r}.")
        found = {key: value for key, value in message.items() if value is not None}
        if found.get("tool_calls"):
            found["tool_calls"] = _decoded(found["tool_calls"], "tool_calls", where)
        else:
            found.pop("tool_calls", None)
        if not isinstance(found.setdefault("content", ""), str):
            kind = type(found["content"]).__name__
            raise InputError(f"In {where}, the content of a message must be text, not {kind}.")
        return {key: self._marked(value, where) for key, value in found.items()}

    def _options(self, messages: list[Message], where: str) -> dict[str, Any]:
        """Take from the first message what the template is given besides messages."""
        tools, more = messages[0].pop(TOOLS, None), messages[0].pop(OPTIONS, None)
        options: dict[str, Any] = _decoded(more, OPTIONS, where) if more else {}
        if not isinstance(options, dict):
            raise InputError(f"In {where}, {OPTIONS!r} must be a record of the template's options.")
        tools = _decoded(tools, TOOLS, where) if tools else None
        if options:
            source = self._tokenizer.get_chat_template(tools=tools)
            reserved = inspect.signature(self._tokenizer.apply_chat_template).parameters
        for name in options:
            if name in reserved or not re.search(rf"\b{re.escape(name)}\b", source):
                raise InputError(f"In {where}, {self.name} has no option {name!r} ({OPTIONS!r}).")
        return {**options, **({TOOLS: tools} if tools else {})}

    def _marked(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            check_text(value, where)
            if self._special is None:
                return value
            return self._special.sub(lambda token: token[0][0] + MARK + token[0][1:], value)
        if isinstance(value, Mapping):
            return {key: self._marked(each, where) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(each, where) for each in value]
        return value

    def _render(
        self,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        where: str,
        add_generation_prompt: bool = False,
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **options,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            problem = f"{self.name} refuses the conversation: {error}"
            raise InputError(f"In {where}, {problem}{_advice(messages, options)}") from error

    def _tell(self, sentence: str, *more: str) -> None:
        if sentence not in self.told:
            self.told[sentence] = sentence % (self.name, *more)
            logger.warning("%s", self.told[sentence])


def _advice(messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    """What to do about a conversation that a template refuses."""
    roles = [message["role"] for message in messages]
    if "system" in roles:
        return (
            ". If it knows no system messages, system='merge' of the loader (data.system in a "
            "recipe) puts them before the user's, and 'drop' leaves them out."
        )
    if "tool" in roles or options.get(TOOLS) or any(m.get("tool_calls") for m in messages):
        return ". If it knows no tools, leave them out, or use a model whose template does."
    return ""


def check_text(text: str, where: str) -> None:
    """Refuse a text that no tokenizer takes.

    Raises:
        InputError: it holds what is no character.
    """
    if not is_whole(text):
        raise InputError(f"In {where}, a text holds half of a character (a lone surrogate).")
    if MARK in text:
        raise InputError(f"In {where}, a text holds U+FDD0, which is no character.")


def _decoded(value: Any, name: str, where: str) -> Any:
    """A value that may be JSON text, without the nulls that a table's columns bring with them."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"In {where}, {name!r} is not valid JSON ({error}).") from error
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list | tuple) else value


def _missing(messages: Sequence[Message], text: str, *, response: bool) -> str | None:
    """What a rendering does not hold of the messages, white space aside.

    Thoughts of a response count; of earlier answers, which templates strip, they do not.
    """
    bare = _bare(text)
    spoken = [_spoken(message, response) for message in messages]
    plain = [_bare(w) for m, w in zip(messages, spoken, strict=True) if m["role"] != "tool"]
    for message, words in zip(messages, spoken, strict=True):
        if not (sought := _bare(words)):
            continue
        # What two messages say must stand there twice.
        wanted = max(1, sum(each.count(sought) for each in plain))
        if sum(bare.count(_bare(each)) for each in _spellings(words)) < wanted:
            return f"the {message['role']} message {_short(words)}"
        for key in _THOUGHTS if response else ():
            if _bare(message.get(key, "")) not in bare:
                return f"the response's {key!r}"
        for call in message.get("tool_calls", ()):
            name = call.get("function", call).get("name", "") if isinstance(call, dict) else ""
            if not isinstance(name, str) or _bare(name) not in bare:
                return f"the call of the tool {name!r}"
    return None


def _spoken(message: Message, response: bool) -> str:
    """What a rendering must hold of a message's content."""
    words: str = message["content"]
    if message["role"] == "assistant" and not response:
        return _CLOSED.split(words)[-1]
    return words


def _spellings(text: str) -> set[str]:
    """As it is, and as it stands inside of JSON."""
    return {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}


def _bare(text: str) -> str:
    return "".join(text.split())


def _short(text: str, limit: int = 40) -> str:
    text = text.replace(MARK, "")
    return repr(text if len(text) <= limit else text[:limit] + "…")
