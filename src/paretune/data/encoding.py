"""Prompts and responses as tokens: one way for training, scoring, generation, chat and judging.

The prompt's tokens are the same with and without a response after them. A plain prompt stands
behind the tokenizer's own beginning (BOS), once; a conversation is what `ChatTemplate` makes of it.
Text of messages that reads like a special token is tokenised as plain text, so that only the
template writes special tokens; a plain prompt may be templated by hand, so there they are special.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from paretune.data.chat_template import MARK, ChatPrompt, ChatTemplate, check_text
from paretune.data.messages import Text, user
from paretune.errors import InputError

# What may stand before a text for it to be tokenised as one that goes on.
_ANCHORS = ("", "\n", ".", "]")


def _letters(text: str) -> str:
    return "".join(text.split())


class Wanted(NamedTuple):
    """A prompt and a response to encode, and what to call them in messages."""

    prompt: Text
    response: Text
    where: str


class _Written(NamedTuple):
    """A prompt and the response to it as marked text; `plain` without a chat template."""

    prompt: str
    response: str
    plain: bool
    where: str


class Encoder:
    """Makes tokens of texts and conversations with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.template = ChatTemplate(tokenizer)
        self._tokenizer = tokenizer
        self._last: tuple[Any, ChatPrompt] | None = None  # both sides of a pair share it
        self._known: dict[str, list[int]] = {}  # tokens of the batch that is being encoded

    def prompt(self, prompt: Text, where: str) -> list[int]:
        """Token ids up to where the response starts.

        Args:
            where: What to call the prompt in messages, such as "row 3 of the 'a' pairs".

        Raises:
            InputError: see `ChatTemplate.prompt`.
        """
        if not isinstance(prompt, str):
            return self._pieces(self._chat(prompt, where).text, where)
        check_text(prompt, where)
        return self._from_start(self._ids(prompt))

    def response(self, prompt: Text, response: Text, where: str) -> tuple[list[int], list[int]]:
        """Token ids of the prompt and of the response, which ends with one end of turn.

        Raises:
            InputError: see `ChatTemplate.prompt` and `ChatTemplate.response`.
        """
        [ids] = self.responses([Wanted(prompt, response, where)])
        return ids

    def responses(self, wanted: Sequence[Wanted]) -> Iterator[tuple[list[int], list[int]]]:
        """`response` of each of many; the tokenizer is called once, with each distinct text.

        Raises:
            InputError: as `response` does for the first that cannot be encoded.
        """
        written: list[_Written] = []
        failure: InputError | None = None
        for each in wanted:
            try:
                written.append(self._write(*each))
            except InputError as error:  # after what may be wrong with those before
                failure = error
                break
        texts = list(dict.fromkeys(text for each in written for text in _texts(each)))
        try:
            self._known = dict(zip(texts, self._batch(texts), strict=True))
            yield from map(self._encode, written)
        finally:
            self._known = {}
        if failure is not None:
            raise failure

    def _write(self, prompt: Text, response: Text, where: str) -> _Written:
        if isinstance(prompt, str) and isinstance(response, str):
            check_text(prompt, where)
            check_text(response, where)
            return _Written(prompt, response, True, where)
        if isinstance(prompt, str) or isinstance(response, str):
            raise InputError(
                f"In {where}, prompt and response must both be strings or both be lists of "
                "messages."
            )
        chat = self._chat(prompt, where)
        return _Written(chat.text, self.template.response(chat, response, where), False, where)

    def _encode(self, written: _Written) -> tuple[list[int], list[int]]:
        prompt, response, plain, where = written
        ids = self._pieces(prompt, where)
        after = self._pieces(response, where, ids, prompt.replace(MARK, ""))[len(ids) :]
        if not plain:
            return ids, after if self.template.end else [*after, self.end_id]
        end = self._tokenizer.eos_token_id
        whole = end is None or after[-1:] == [end]
        return self._from_start(ids), after if whole else [*after, end]

    def conversation(self, prompt: Text, response: str, where: str) -> list[int]:
        """Token ids of a conversation as its template gives it, for models that score it.

        A plain prompt counts as one user message.
        """
        chat = self._chat(user(prompt) if isinstance(prompt, str) else prompt, where)
        return self._pieces(self.template.conversation(chat, response, where), where)

    @cached_property
    def end_id(self) -> int:
        """The token that ends a response of a conversation.

        Raises:
            InputError: neither the template nor the tokenizer has one.
        """
        if self.template.end:
            return self._ids(self.template.end)[-1]
        if self._tokenizer.eos_token_id is None:
            raise InputError(
                f"No token ends a response: neither {self.template.name} writes one, nor does the "
                "tokenizer have one; set `tokenizer.eos_token`."
            )
        return int(self._tokenizer.eos_token_id)

    def _from_start(self, ids: list[int]) -> list[int]:
        """A plain text's tokens behind the tokenizer's own beginning.

        A prompt that was templated by hand may begin with what the tokenizer would add.
        """
        return ids if ids[: len(self._start)] == self._start else self._start + ids

    @cached_property
    def _start(self) -> list[int]:
        """What the tokenizer puts before a text; what it puts behind one is not wanted."""
        bare, whole = self._ids("a"), list(self._tokenizer("a")["input_ids"])
        place = (i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[: next(place, 0)]

    def _chat(self, prompt: Sequence[Any], where: str) -> ChatPrompt:
        if self._last is None or self._last[0] != prompt:
            self._last = (prompt, self.template.prompt(prompt, where))
        return self._last[1]

    def _pieces(
        self, text: str, where: str, ids: Sequence[int] = (), so_far: str = ""
    ) -> list[int]:
        """The tokens of marked text, behind those of `so_far`."""
        found = list(ids)
        for piece in text.split(MARK):
            found = self._extend(found, so_far, piece, where)
            so_far += piece
        return found

    def _extend(self, ids: list[int], so_far: str, more: str, where: str) -> list[int]:
        """The tokens of both texts that begin with those of the first, and read the same."""
        if not more:
            return ids
        joint = self._ids(so_far + more)
        if joint[: len(ids)] == ids:
            return joint
        # A token goes over the border: the second text is tokenised by itself.
        candidates = []
        for anchor in _ANCHORS:
            before, both = self._ids(anchor), self._ids(anchor + more)
            if both[: len(before)] == before:
                candidates.append(ids + both[len(before) :])
        texts = [self._read(candidate) for candidate in candidates]
        for wanted, reading in ((self._read(joint), str), (so_far + more, _letters)):
            for candidate, text in zip(candidates, texts, strict=True):
                if reading(text) == reading(wanted):
                    return candidate
        raise InputError(
            f"In {where}, the tokenizer cannot write {more[:40]!r} by itself after "
            f"{so_far[-40:]!r}: put white space between them, or leave out what reads like a "
            "special token."
        )

    def _ids(self, text: str) -> list[int]:
        found = self._known.get(text)
        return self._batch([text])[0] if found is None else found

    def _batch(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        made = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return list(made["input_ids"])

    def _read(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _texts(written: _Written) -> Iterable[str]:
    """What `Encoder._encode` tokenises, unless a token goes over the border of two texts."""
    so_far = ""
    for piece in (*written.prompt.split(MARK), *written.response.split(MARK)):
        if piece:
            so_far += piece
            yield so_far
