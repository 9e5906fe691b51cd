"""Prompts and responses as plain text or as messages, and dialogue text taken apart into turns."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
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

System = Literal["merge", "drop", "error"]
"""What becomes of system messages, which some chat templates refuse.

``merge``: they stand before the next user message, with a blank line between. ``drop``: they are
left out. ``error``: they stay, and a template that refuses them is an error.
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
    system: System = "error"
    _conversational: bool | None = None

    def __post_init__(self) -> None:
        check_choice("style", self.style, get_args(Style))
        check_choice("system", self.system, get_args(System))

    def prompt(self, row: Row, field: str = "prompt") -> Text:
        """A prompt: a string (style "text"), or messages that end with the user's."""
        return self._uniform(row, field, self._asked(row, field, self._prompt(row, field)))

    def _asked(self, row: Row, field: str, prompt: Text) -> Text:
        """The prompt with its system message and the template's options where they belong."""
        if not isinstance(prompt, str):
            prompt = without_system(prompt, self.system)
            if not prompt:
                raise row.error(field, "holds nothing but a system message")
        return _with_options(row, field, prompt)

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
        """A response: a string or, if the prompt is conversational, the assistant's message (or
        several, with those of tools between)."""
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
        if fault := response_fault(messages):
            raise row.error(field, fault)
        return messages

    def pair(self, row: Row, fields: tuple[str, str]) -> tuple[Text, Text, Text]:
        """The prompt and two different responses.

        Both responses may be whole conversations, which begin with the prompt; a field ``prompt``
        is then their first messages or the text of the user's last, or may be missing. Where it is
        missing they may be whole texts, too.
        """
        values = [row.values.get(field) for field in fields]
        if all(is_conversation(value) for value in values):
            one, other = (_read_messages(row, field) for field in fields)
            return self._whole_conversations(row, fields, one, other)
        if row.values.get("prompt") is None and all(isinstance(v, str) for v in values):
            return self._whole_texts(row, fields)
        prompt = self.prompt(row)
        first, second = (self.response(row, f, not isinstance(prompt, str)) for f in fields)
        refuse_equal(row, fields, first, second)
        return prompt, first, second

    def _whole_conversations(
        self, row: Row, fields: tuple[str, str], first: Messages, second: Messages
    ) -> tuple[Text, Text, Text]:
        for field, messages in zip(fields, (first, second), strict=True):
            if messages[-1]["role"] != "assistant":
                raise row.error(field, "must end with an assistant message: the response")
        refuse_equal(row, fields, first, second)
        split = split_conversations(first, second)
        if split is None:
            raise row.error(fields[1], f"differs from {fields[0]!r} before its last message")
        prompt, chosen, rejected = split
        given = row.values.get("prompt")
        if given is not None:
            row.get("prompt")
            told = given if isinstance(given, str) else _read_messages(row, "prompt")
            if not _is_start(told, prompt):
                raise row.error("prompt", f"is not what {fields[0]!r} begins with")
        return self._uniform(row, fields[0], self._asked(row, fields[0], prompt)), chosen, rejected

    def _whole_texts(self, row: Row, fields: tuple[str, str]) -> tuple[Text, Text, Text]:
        first, second = (row.text(field) for field in fields)
        if self.style == "dialogue":
            one, other = (parse_dialogue(row, field, row.values[field]) for field in fields)
            return self._whole_conversations(row, fields, one, other)
        refuse_equal(row, fields, first, second)
        split = split_texts(first, second)
        if split is None:
            raise row.missing("prompt")
        prompt, chosen, rejected = split
        if self.style == "text":
            return self._uniform(row, fields[0], prompt), chosen, rejected
        asked = self._uniform(row, fields[0], self._asked(row, fields[0], user(prompt.strip())))
        return asked, assistant(chosen.strip()), assistant(rejected.strip())

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


def without_system(messages: Messages, system: System) -> Messages:
    """The messages with those of the system merged into the next user's, or dropped."""
    if system == "error":
        return messages
    found: Messages = []
    held = ""
    for message in messages:
        if message["role"] == "system":
            held += message["content"] + "\n\n" if system == "merge" else ""
        elif held and message["role"] == "user":
            found.append({**message, "content": held + message["content"]})
            held = ""
        else:
            found.append(message)
    return found if not held else [*found, *user(held.strip())]


def is_conversation(value: Any) -> bool:
    """Whether it is a list of messages with more in it than a response has."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) < 2:
        return False
    return all(map(_is_message, value)) and response_fault(value) is not None


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    return isinstance(value.get("content"), str | None)


def response_fault(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Why messages are no response: the assistant's, with answers of tools between."""
    roles = [message.get("role") for message in messages]
    if roles == ["assistant"]:
        return None
    turns = [role for role, _ in groupby(roles)]
    twice = roles.count("assistant") > turns.count("assistant")
    if twice or turns[1::2] != ["tool"] * (len(turns) // 2) or {*turns[::2]} != {"assistant"}:
        return "must be one assistant message, or several with answers of tools between"
    return None


def split_texts(first: str, second: str) -> tuple[str, str, str] | None:
    """What two texts have in common before they part, and the rest of each.

    They are split at white space, so that no word is cut, and only where the common start has a
    line of its own: two responses may begin alike by chance. None: they have no such start.
    """
    common = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    cut = max((i + 1 for i in range(common) if first[i].isspace()), default=0)
    if "\n" not in first[:cut].strip(" "):
        return None
    cut -= first[cut - 1] == " "  # it is the response's, as in TRL
    parts = first[:cut], first[cut:], second[cut:]
    return parts if all(map(str.strip, parts)) else None


def split_conversations(
    first: Messages, second: Messages
) -> tuple[Messages, Messages, Messages] | None:
    """What two conversations have in common before the responses they end with, and these.

    None: they have no common start, or something else than responses behind it.
    """
    common = 0
    for one, other in zip(first[:-1], second[:-1], strict=False):
        if prompt_key([one]) != prompt_key([other]):
            break
        common += 1
    while common and first[common - 1]["role"] == "assistant":
        common -= 1
    parts = first[:common], first[common:], second[common:]
    return None if not common or any(map(response_fault, parts[1:])) else parts


def with_prompt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of pairs with the prompt split off that stands in both responses (TRL: an implicit
    prompt); a row that has its own as it is."""
    given, chosen, rejected = (row.get(key) for key in ("prompt", "chosen", "rejected"))
    split: Sequence[Text] | None = None
    if is_conversation(chosen) and is_conversation(rejected):
        split = split_conversations(chosen, rejected)  # type: ignore[arg-type]
        if split is not None and given is not None and not _is_start(given, split[0]):
            return row
    elif given is None and isinstance(chosen, str) and isinstance(rejected, str):
        split = split_texts(chosen, rejected)
    if split is None:
        return row
    return {**row, **dict(zip(("prompt", "chosen", "rejected"), split, strict=True))}


def _is_start(given: Text, prompt: Text) -> bool:
    """Whether a row's own prompt is what its conversations begin with, or the user's last text."""
    if isinstance(given, str) and not isinstance(prompt, str):
        texts = [message["content"] for message in prompt if message["role"] == "user"]
        return bool(texts) and prompt_key(given) == prompt_key(texts[-1])
    return bool(given) and prompt_key(given) == prompt_key(prompt[: len(given)])


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
    if len(response) == 1:
        return response[0]["content"].strip() + _more(response[0])
    return "\n".join(f"{m['role']}: {m['content'].strip()}{_more(m)}" for m in response)


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
