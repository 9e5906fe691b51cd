"""Talking to the points of a run: one base model, with the run's adapters side by side in it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from transformers import TextStreamer

from paretune.errors import InputError
from paretune.evaluation.decoding import KeptPrefix
from paretune.evaluation.generation import encode_prompt, generate_answers
from paretune.experiment.weights import with_adapter
from paretune.models import gpu, load_model_and_tokenizer
from paretune.recipes import Recipe
from paretune.results.answers import Answer, Prompt, read_answers
from paretune.results.front import Score
from paretune.results.gates import read_gates
from paretune.results.weights import check_weights
from paretune.serving.choose import Candidate, Choices
from paretune.training.gated_adapter import GatedAdapter

OnText = Callable[[str], None]
"""Is given an answer piece by piece."""

_BASE = "__base__"  # PEFT's name for no adapter


class ChatModel:
    """A run's base model, which answers as it is or as any of the run's points.

    Adapters are loaded when they are first asked, and stay. Of points that are whole models one is
    held at a time.

    Raises:
        InputError: the base model cannot be loaded.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._device = gpu()
        self._base, self.tokenizer = self._load(recipe.model.name)
        self._adapted: PeftModel | None = None
        self._loaded: set[str] = set()
        self._gates: dict[str, GatedAdapter] = {}
        self._whole: tuple[str, Any] | None = None
        self._kept: tuple[Any, KeptPrefix] = (None, KeptPrefix())

    def answer(self, prompt: Prompt, by: Candidate | None, on_text: OnText | None = None) -> Answer:
        """The answer of a point, or of the base model (None), under the run's own settings.

        It is the answer that the run's ``answers.jsonl`` has for the prompt, if it has one.

        Raises:
            InputError: the prompt does not fit the model.
        """
        streamer = None if on_text is None else _Pieces(self.tokenizer, on_text)
        # A conversation begins with what was said in it before, as long as the same answers.
        speaks = None if by is None else (by.name, by.folder, by.position)
        if self._kept[0] != speaks:
            self._kept = speaks, KeptPrefix()
        return self._answers([prompt], by, streamer, self._kept[1])[0]

    def answers(
        self,
        prompts: Sequence[Prompt],
        by: Candidate | None,
        ended: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """`answer` to each of many prompts, in batches; `ended` is given each when it is there."""
        return self._answers(prompts, by, ended=ended)

    def answers_of(
        self, prompts: Sequence[Prompt], speakers: Sequence[Candidate | None]
    ) -> list[list[Answer]]:
        """`answers` of each of several: adapters and the base model answer in common batches."""
        distinct = [n for n, by in enumerate(speakers) if speakers.index(by) == n]
        sharing = [n for n in distinct if (by := speakers[n]) is None or by.stock]
        found: dict[int, list[Answer]] = {}
        if len(sharing) > 1:
            asked = [_asked(prompts, speakers[n]) for n in sharing]
            names = [self._adapter_name(speakers[n]) for n in sharing]
            every = [prompt for each in asked for prompt in each]
            of_each = [name for name in names for _ in prompts]
            made = iter(self._generate(self._adapted, every, adapters=of_each))
            found = {n: [next(made) for _ in prompts] for n in sharing}
        for n in distinct:
            if n not in found:
                found[n] = self.answers(prompts, speakers[n])
        return [found[speakers.index(by)] for by in speakers]

    def _answers(
        self,
        prompts: Sequence[Prompt],
        by: Candidate | None,
        streamer: TextStreamer | None = None,
        kept: KeptPrefix | None = None,
        ended: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        prompts = _asked(prompts, by)
        with self._speaking(by) as model:
            return self._generate(model, prompts, streamer=streamer, kept=kept, ended=ended)

    def _generate(self, model: Any, prompts: Sequence[Prompt], **more: Any) -> list[Answer]:
        for prompt in prompts:
            self._check_length(prompt)
        settings = self.recipe.evaluation
        return generate_answers(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            batch_size=settings.batch_size,
            **more,
        )

    def _check_length(self, prompt: Prompt) -> None:
        limit = getattr(self._base.config, "max_position_embeddings", None)
        room = self.recipe.evaluation.max_new_tokens
        count = len(encode_prompt(self.tokenizer, prompt))
        if limit is not None and count + room > limit:
            raise InputError(
                f"What the model is asked has {count} tokens, and with max_new_tokens={room} that "
                f"is more than its {limit}: ask for less, or begin a new conversation."
            )

    @contextmanager
    def _speaking(self, by: Candidate | None) -> Iterator[Any]:
        if by is None:
            if self._adapted is None:
                yield self._base
            else:
                with self._adapted.disable_adapter():
                    yield self._adapted
        elif by.whole:
            if self._whole is None or self._whole[0] != by.name:
                self._whole = None  # the memory first
                check_weights(by.folder)
                self._whole = (by.name, self._load(str(by.folder))[0])
            yield self._whole[1]
        else:
            yield self._with_adapter(by)

    def _with_adapter(self, by: Candidate) -> PeftModel:
        name = self._adapter_name(by)
        assert self._adapted is not None
        self._adapted.set_adapter(name)
        if by.position is not None:
            if name not in self._gates:
                gate, _, _ = read_gates(by.folder)
                self._gates[name] = GatedAdapter(self._adapted, gate)
            self._gates[name].set(by.position)
        return self._adapted

    def _adapter_name(self, by: Candidate | None) -> str:
        """The name of a point's adapter in the model, into which it is loaded if need be."""
        if by is None:
            return _BASE
        # Of a module, which may hold no dot; a conditioned adapter is one, wherever its gate is.
        name = (by.name if by.position is None else by.folder.name).replace(".", "_")
        if name not in self._loaded:  # ctrl-C may have left it there without its weights
            onto = self._base if self._adapted is None else self._adapted
            self._adapted = with_adapter(onto, by.folder, name)
            self._loaded.add(name)
        return name

    def _load(self, name: str) -> tuple[Any, Any]:
        options = {**self.recipe.model.model_dump(), "name": name}
        return load_model_and_tokenizer(**options, device=self._device)


def _asked(prompts: Sequence[Prompt], by: Candidate | None) -> list[Prompt]:
    """The prompts as a point is asked them."""
    return list(prompts if by is None or by.asked is None else map(by.asked.prompt, prompts))


class _Pieces(TextStreamer):
    """Hands on the words of an answer as they come."""

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


@dataclass
class Conversation:
    """What was said, in the form of the run's own prompts.

    Attributes:
        plain: prompts are text to go on from, without a chat template; each stands alone.
        system: the message a conversation opens with.
        messages: so far, without the system's.
    """

    plain: bool = False
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def like(cls, choices: Choices, system: str | None = None) -> "Conversation":
        """One that opens as the run's prompts do, unless `system` says otherwise."""
        prompts = asked_prompts(choices)
        first = prompts[0] if prompts else []
        if isinstance(first, str):
            if system:
                raise InputError("The run's prompts are plain text, which has no system message.")
            return cls(plain=True)
        if system is None and first and first[0]["role"] == "system":
            system = first[0]["content"]
        return cls(system=system or None)

    def prompt(self, text: str, first: bool = False) -> Prompt:
        """What to ask when the user says `text`; `first`: as if nothing had been said before."""
        if self.plain:
            return text
        opening = [{"role": "system", "content": self.system}] if self.system else []
        said = [] if first else self.messages
        return [*opening, *said, {"role": "user", "content": text}]

    def ask(self, speaker: ChatModel, by: Candidate | None, text: str, on_text: OnText) -> bool:
        """Ask, and remember the answer, or what there was of it when ctrl-C stopped it.

        Returns:
            Whether it ended by itself.
        """
        pieces: list[str] = []

        def hand_on(piece: str) -> None:
            pieces.append(piece)
            on_text(piece)

        try:
            answer = speaker.answer(self.prompt(text), by, hand_on)
            response, finished = answer.response, answer.finished
        except KeyboardInterrupt:
            response, finished = "".join(pieces), False
        if not self.plain:
            self.messages.append({"role": "user", "content": text})
            self.messages.append({"role": "assistant", "content": response})
        return finished

    def reset(self) -> None:
        """Forget what was said."""
        self.messages.clear()


def asked_prompts(choices: Choices) -> list[Prompt]:
    """The test prompts that the run's points answered; none if it was not to generate."""
    for candidate in choices.candidates:
        path = candidate.folder / "answers.jsonl"
        if path.exists():
            return [answer.prompt for answer in read_answers(path)]
    return []


def mean_words(
    speaker: ChatModel, speakers: Sequence[Candidate | None], prompts: Sequence[Prompt]
) -> list[Score]:
    """Mean number of words (between spaces) of each one's answers to the prompts."""
    return [
        Score.of([float(len(answer.response.split())) for answer in answers])
        for answers in speaker.answers_of(prompts, speakers)
    ]
