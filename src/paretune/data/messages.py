"""Prompts and responses as plain text or as messages, and dialogue text taken apart into turns."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from paretune.data.rows import Row
from paretune.data.sources import check_choice

Messages = list[dict[str, str]]
Text = str | Messages
Style = Literal["text", "chat", "dialogue"]
"""How a prompt that is a string is read.

``text``: it stays a string (TRL's standard form, no chat template). ``chat``: it is one user
message. ``dialogue``: it is "Human: ... Assistant: ..." text and is parsed into messages.
A prompt that is a list of messages already stays one.
"""

TOOLS, OPTIONS = "tools", "chat_template_kwargs"
"""Columns of what a chat template is given besides messages.

They become keys of the prompt's first message, as JSON text, and so go wherever the prompt goes.
"""

_ROLES = ("system", "user", "assistant", "tool")
_TOOL_CALLS = "tool_calls"
_MORE_TEXTS = ("reasoning_content", "reasoning", "thinking", "name", "tool_call_id")
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_CUE = "\n\nAssistant:"


@dataclass
class TextReader:
    """Reads the prompts and responses of one data set, all of them plain or all conversational."""

    style: Style = "text"
    _conversational: bool | None = None

    def __post_init__(self) -> None:
        check_choice("style", self.style, get_args(Style))

    def prompt(self, row: Row, field: str = "prompt") -> Text:
        """A prompt: a string (style "text"), or messages that end with the user's."""
        return self._uniform(row, field, _with_options(row, field, self._prompt(row, field)))

    def _uniform(self, row: Row, field: str, prompt: Text) -> Text:
        conversational = not isinstance(prompt, str)
        if self._conversational is None:
            self._conversational = conversational
        elif self._conversational != conversational:
            kinds = ("plain text", "a list of messages")
            raise row.error(
                field,
                f"is {kinds[conversational]} where earlier rows have {kinds[not conversational]}",
            )
        return prompt

    def response(self, row: Row, field: str, conversational: bool) -> Text:
        """A response: a string, or one assistant message if the prompt is conversational."""
        value = row.get(field)
        if isinstance(value, str):
            text = row.text(field)
            if self.style == "dialogue":
                if _TURN.search(text):
                    raise row.error(field, "holds a 'Human:' or 'Assistant:' turn of its own")
                text = text.strip()
            return assistant(text) if conversational else text
        messages = _read_messages(row, field)
        if not conversational:
            raise row.error(field, "is a list of messages where the prompt is plain text")
        if [message["role"] for message in messages] != ["assistant"]:
            raise row.error(field, "must be one assistant message")
        return messages

    def pair(self, row: Row, fields: tuple[str, str]) -> tuple[Text, Text, Text]:
        """The prompt and two different responses.

        Both responses may be whole conversations, which begin with the prompt; a field ``prompt``
        is then their first messages or the text of the user's last, or may be missing.
        """
        if all(_messages_in(row, field) > 1 for field in fields):
            return self._whole_conversations(row, fields)
        prompt = self.prompt(row)
        first, second = (self.response(row, f, not isinstance(prompt, str)) for f in fields)
        refuse_equal(row, fields, first, second)
        return prompt, first, second

    def _whole_conversations(self, row: Row, fields: tuple[str, str]) -> tuple[Text, Text, Text]:
        first, second = (_read_messages(row, field) for field in fields)
        for field, messages in zip(fields, (first, second), strict=True):
            if messages[-1]["role"] != "assistant" or messages[-2]["role"] == "assistant":
                raise row.error(field, "must end with one assistant message: the response")
        prompt, other = first[:-1], second[:-1]
        if prompt_key(prompt) != prompt_key(other):
            raise row.error(fields[1], f"differs from {fields[0]!r} before its last message")
        given = row.values.get("prompt")
        if given is not None:
            row.get("prompt")
            told = given if isinstance(given, str) else _read_messages(row, "prompt")
            last = prompt_key(prompt[-1]["content"])
            if prompt_key(told) not in (prompt_key(prompt), last):
                raise row.error("prompt", f"is not what {fields[0]!r} begins with")
        refuse_equal(row, fields, first[-1:], second[-1:])
        prompt_text = self._uniform(row, fields[0], _with_options(row, fields[0], prompt))
        return prompt_text, first[-1:], second[-1:]

    def _prompt(self, row: Row, field: str) -> Text:
        if not isinstance(row.get(field), str):
            messages = _read_messages(row, field)
        elif self.style == "text":
            return row.text(field)
        elif self.style == "chat":
            return user(row.text(field))
        else:
            messages = parse_dialogue(row, field, row.text(field).rstrip().removesuffix(_CUE))
        if messages[-1]["role"] == "assistant":
            raise row.error(field, "ends with an assistant turn, so there is nothing to answer")
        return messages


def user(text: str) -> Messages:
    """A conversation of one user message."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> Messages:
    """A response as a list of one assistant message."""
    return [{"role": "assistant", "content": text}]


def parse_dialogue(row: Row, field: str, text: str) -> Messages:
    """Take "Human: ... Assistant: ..." text apart at the markers that begin a paragraph.

    Turns lose the white space around them. Two turns in a row of one speaker become one, since
    many chat templates insist on alternating roles.
    """
    head, *parts = _TURN.split(text.strip())
    if head or not parts or parts[0] != "Human":
        raise row.error(field, "must be a dialogue that starts with 'Human:'")
    return join_turns(row, field, list(zip(parts[::2], parts[1::2], strict=True)))


def join_turns(row: Row, field: str, turns: Sequence[tuple[str, str]]) -> Messages:
    """Messages from (speaker, text) turns, the speaker being "Assistant" or anybody else."""
    messages: Messages = []
    for number, (speaker, text) in enumerate(turns, start=1):
        if not text.strip():
            raise row.error(field, f"has an empty turn (turn {number}, {speaker})")
        [message] = assistant(text.strip()) if speaker == "Assistant" else user(text.strip())
        if messages and messages[-1]["role"] == message["role"]:
            messages[-1]["content"] += "\n\n" + message["content"]
        else:
            messages.append(message)
    return messages


def refuse_equal(row: Row, fields: tuple[str, str], first: Text, second: Text) -> None:
    """A pair of equal responses expresses no preference: it is a bad row."""
    if response_key(first) == response_key(second):
        raise row.error(fields[1], f"is the same response as {fields[0]!r}")


def prompt_key(prompt: Text) -> str:
    """What identifies a prompt whatever its white space: copies may differ by a trailing space."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    return "\n".join(f"{turn['role']}: {_message_key(turn)}" for turn in prompt)


def distinct_prompts(prompts: Iterable[Text]) -> list[Text]:
    """The first of each, as `prompt_key` tells them apart, in their order."""
    found: dict[str, Text] = {}
    for prompt in prompts:
        found.setdefault(prompt_key(prompt), prompt)
    return list(found.values())


def response_key(response: Text) -> str:
    """What identifies a response; white space inside it counts (think of code)."""
    if isinstance(response, str):
        return response.strip()
    [message] = response
    return message["content"].strip() + _more(message)


def _message_key(message: Mapping[str, Any]) -> str:
    return prompt_key(message.get("content") or "") + _more(message)


def _more(message: Mapping[str, Any]) -> str:
    """Of a message, everything but role and content."""
    more = {k: v for k, v in message.items() if k not in ("role", "content") and v is not None}
    return f" {json.dumps(more, sort_keys=True)}" if more else ""


def _with_options(row: Row, field: str, prompt: Text) -> Text:
    """The prompt with its tools and template's options."""
    for name in (TOOLS, OPTIONS):
        value = row.values.get(name)
        if value in (None, "", [], {}):
            continue
        row.get(name)
        if isinstance(prompt, str):
            raise row.error(name, "needs a chat template: give messages, or style='chat'")
        prompt = with_option(prompt, name, value)
    return prompt


def with_option(prompt: Messages, name: str, value: Any) -> Messages:
    """The prompt with an option of its template, a value or JSON text, in its first message."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [{**prompt[0], name: text}, *prompt[1:]]


def _messages_in(row: Row, field: str) -> int:
    """How many messages a field holds; 0 if it is text or missing."""
    value = row.values.get(field)
    return len(value) if isinstance(value, Sequence) and not isinstance(value, str) else 0


def _read_messages(row: Row, field: str) -> Messages:
    value = row.get(field)
    if isinstance(value, str) or not isinstance(value, Sequence):
        kind = type(value).__name__
        raise row.error(field, f"must be text or a list of messages, not {kind}")
    messages = [_read_message(message) for message in row.nested(field)]
    if not messages:
        raise row.error(field, "is empty")
    return messages


def _read_message(message: Row) -> dict[str, str]:
    role = message.text("role")
    if role not in _ROLES:
        raise message.error("role", f"must be one of {', '.join(_ROLES)}, not {role!r}")
    calls = message.values.get(_TOOL_CALLS)
    found = {"role": role}
    if calls:
        found["content"] = str(message.values.get("content") or "")
        text = message.get(_TOOL_CALLS)
        found[_TOOL_CALLS] = text if isinstance(text, str) else json.dumps(text)
    else:
        found["content"] = message.text("content")
    for name in _MORE_TEXTS:
        if message.values.get(name) not in (None, ""):
            found[name] = message.text(name)
    message.leave(set(message.values) - found.keys() - {_TOOL_CALLS})
    return found
