"""Prompts and responses as plain text or as messages, and dialogue text taken apart into turns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

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

_ROLES = ("system", "user", "assistant", "tool")
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
        prompt = self._prompt(row, field)
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
        """The prompt and two different responses."""
        prompt = self.prompt(row)
        first, second = (self.response(row, f, not isinstance(prompt, str)) for f in fields)
        refuse_equal(row, fields, first, second)
        return prompt, first, second

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
    return "\n".join(f"{turn['role']}: {prompt_key(turn['content'])}" for turn in prompt)


def response_key(response: Text) -> str:
    """What identifies a response; white space inside it counts (think of code)."""
    text = response if isinstance(response, str) else response[0]["content"]
    return text.strip()


def _read_messages(row: Row, field: str) -> Messages:
    value = row.get(field)
    if isinstance(value, str) or not isinstance(value, Sequence):
        kind = type(value).__name__
        raise row.error(field, f"must be text or a list of messages, not {kind}")
    messages = []
    for message in row.nested(field):
        role = message.text("role")
        if role not in _ROLES:
            raise message.error("role", f"must be one of {', '.join(_ROLES)}, not {role!r}")
        messages.append({"role": role, "content": message.text("content")})
    if not messages:
        raise row.error(field, "is empty")
    return messages
