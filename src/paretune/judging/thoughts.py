"""What a reply says once its thoughts are taken out, for the marks of all families of models."""

import re

# Tags as `<think>`, `[THINK]`, `◁think▷`, `<seed:think>`; the channels of gpt-oss and Gemma 4;
# special tokens of Sky-T1, Command A and MedGemma.
_NAMES = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
_OPEN = re.compile(
    rf"<{_NAMES}>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>|<unused94>thought|"
    r"(?:<\|start\|>assistant)?<\|channel\|>\s*(?:analysis|commentary)[^<]*"
    r"(?:<\|constrain\|>[^<]*)?<\|message\|>|<\|channel>\s*thought\b",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"</{_NAMES}>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>|<unused95>|"
    r"(?:<\|end\|>)?\s*(?:<\|start\|>assistant)?<\|channel\|>\s*final[^<]*"
    r"(?:<\|constrain\|>[^<]*)?<\|message\|>|<channel\|>",
    re.IGNORECASE,
)
# Channels and thoughts whose special tokens were left out when the reply was decoded.
_BARE_OPEN = re.compile(r"analysis(?=[A-Z])|thought\n")
_BARE_CLOSE = re.compile(r"assistant\s?final")
_WRAPPING = re.compile(
    r"</?(?:answer|response|output|final|solution)>|\[/?ANSWER\]|"
    r"<\|(?:begin_of_solution|end_of_solution|START_RESPONSE|END_RESPONSE)\|>|"
    r"(?:<\|(?:im_end|eot_id|return|end|endoftext)\|>|</s>|<end_of_turn>)\s*\Z",
    re.IGNORECASE,
)


def readings(reply: str) -> list[str]:
    """What a reply may be saying, without its thoughts; nothing if it never ends to think.

    One text, except where marks stand in the midst of the reply: a mark may end a thought that
    the chat template had opened, or be quoted from what is judged. Then each reading counts, and
    only what all of them say is said.
    """
    text = reply.strip()
    while opened := _OPEN.match(text) or _BARE_OPEN.match(text):
        close = _BARE_CLOSE if opened.re is _BARE_OPEN else _CLOSE
        closed = close.search(text, opened.end())
        if closed is None:
            return []
        text = text[closed.end() :].strip()
    closes = list(_CLOSE.finditer(text))
    if not closes:
        return [_plain(text)]
    return [_plain(text), *(_plain(text[mark.end() :]) for mark in closes)]


def _plain(text: str) -> str:
    """Up to the first mark of a thought, without what merely wraps an answer."""
    ends = [mark.start() for mark in (_OPEN.search(text), _CLOSE.search(text)) if mark is not None]
    return _WRAPPING.sub("", text[: min(ends, default=len(text))]).strip()
