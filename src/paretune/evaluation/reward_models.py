"""Reward models: sequence classifiers that score an answer, whatever form of input they want."""

import contextlib
import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from paretune.data.encoding import Encoder
from paretune.data.messages import Text, user
from paretune.errors import InputError
from paretune.files import read_object, user_path
from paretune.models import Dtype, Quantization, load_model_and_tokenizer
from paretune.models.products import fast_products

logger = logging.getLogger(__name__)

InputKind = Literal["chat", "text", "pair"]
_PLACE = re.compile(r"\{(prompt|response|eos)\}")


@dataclass(frozen=True)
class RewardInput:
    """How a prompt and an answer become what a reward model reads.

    Attributes:
        kind: ``chat``: the conversation, the answer included, through the tokenizer's chat
            template. ``text``: one text, `template` filled in. ``pair``: two texts, `template`
            filled in and the answer, joined the tokenizer's way.
        template: Text in which ``{prompt}``, ``{response}`` and ``{eos}`` (the tokenizer's
            end-of-sequence token) are replaced and all else is left alone; by default
            ``{prompt}{response}``, and ``{prompt}`` for a pair.
        turns: Per role a text with ``{content}``, by which messages become ``{prompt}``; a plain
            prompt counts as one user message. Other roles than user are left out if they have
            no text here. By default a plain prompt stays as it is, and of a conversation the
            only user message is taken.

    Raises:
        InputError: a template without a place that the kind of input needs.
    """

    kind: InputKind = "chat"
    template: str | None = None
    turns: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.kind == "chat":
            if self.template is not None or self.turns is not None:
                raise InputError(
                    "A reward model with input 'chat' reads its own chat template: leave out "
                    "template and turns, or choose input 'text' or 'pair'."
                )
            return
        if self.template is not None:
            needed = ("{prompt}", "{response}") if self.kind == "text" else ("{prompt}",)
            for place in needed:
                if place not in self.template:
                    raise InputError(
                        f"The template of input {self.kind!r} must hold {place}; it is "
                        f"{self.template!r}."
                    )
            if self.kind == "pair" and "{response}" in self.template:
                raise InputError(
                    "The template of input 'pair' makes the first text only: leave {response} "
                    "out, or choose input 'text'."
                )
        if self.turns is not None:
            missing = [r for r, text in self.turns.items() if "{content}" not in text]
            if missing or "user" not in self.turns:
                raise InputError(
                    f"turns needs a text with {{content}} for {missing[0] if missing else 'user'}."
                )

    def encode(
        self, tokenizer: Any, prompt: Text, response: str, max_length: int | None = None
    ) -> dict[str, list[int]]:
        """The tokenizer's output for one answer, cut at its end to `max_length` tokens.

        Raises:
            InputError: a conversation that this form of input cannot express.
        """
        cut = {"truncation": max_length is not None, "max_length": max_length, "verbose": False}
        if self.kind == "chat":
            return _conversation(tokenizer, prompt, response, max_length)
        values = {
            "prompt": self._prompt(prompt),
            "response": response,
            "eos": tokenizer.eos_token or "",
        }
        default = "{prompt}{response}" if self.kind == "text" else "{prompt}"
        template = default if self.template is None else self.template
        text = _PLACE.sub(lambda place: values[place[1]], template)
        if self.kind == "pair":
            return dict(tokenizer(text, response, **cut))
        # A template may begin with the token that the tokenizer would add.
        special = not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
        return dict(tokenizer(text, add_special_tokens=special, **cut))

    def _prompt(self, prompt: Text) -> str:
        if self.turns is None:
            if isinstance(prompt, str):
                return prompt
            asked = [message for message in prompt if message["role"] != "system"]
            if len(asked) != 1:
                raise InputError(
                    "A conversation that is more than a question needs the reward model's turns: "
                    "say how a message of each role is written, with {content} in it."
                )
            return asked[0]["content"]
        messages = user(prompt) if isinstance(prompt, str) else prompt
        return "".join(
            self.turns[m["role"]].replace("{content}", m["content"])
            for m in messages
            if m["role"] in self.turns
        )


def _conversation(
    tokenizer: Any, prompt: Text, response: str, max_length: int | None
) -> dict[str, list[int]]:
    if tokenizer.chat_template is None:
        raise InputError(
            "The reward model's tokenizer has no chat template: choose input 'text' or 'pair' and "
            "give the template the model was trained with."
        )
    try:
        ids = Encoder(tokenizer).conversation(prompt, response, "an answer to be scored")
    except InputError as error:
        raise InputError(
            f"{error} (a reward model's: choose input 'text' and give a template and turns)."
        ) from error
    if max_length is not None and len(ids) > max_length:
        ids = ids[-max_length:] if tokenizer.truncation_side == "left" else ids[:max_length]
    fields = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
    return {name: fields[name] for name in tokenizer.model_input_names if name in fields}


class Outputs:
    """What a model put out for the last lists of inputs, for all scorers that share it.

    The outputs of a model with several, one for each objective, are read once; so are those of the
    training answers, which are scored to be normalised and again by Rewards-in-Context. Only whole
    lists are kept: other batches would round otherwise.
    """

    _MOST = 4

    def __init__(self) -> None:
        self._kept: dict[bytes, torch.Tensor] = {}

    def of(self, key: bytes, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """All outputs, (inputs, outputs), read if they are not kept."""
        values = self._kept.pop(key, None)
        self._kept[key] = read() if values is None else values
        while len(self._kept) > self._MOST:
            del self._kept[next(iter(self._kept))]
        return self._kept[key]


class RewardModelScorer:
    """A sequence classifier as a `Scorer`: the chosen output of the model, no sigmoid or softmax.

    Answers are scored in batches of similar length, padded on the right. Which batch an answer
    falls into does not change its score but for rounding.

    Args:
        model: Any ``AutoModelForSequenceClassification``, also with a PEFT adapter; it is set to
            evaluation mode.
        tokenizer: Its tokenizer.
        name: For tables and messages.
        input: What the model reads.
        label: Which output is the score, by number or by name; may be left out if there is one.
        lower_is_better: The output is a cost, the score is minus the output.
        max_length: Longest input in tokens; longer ones are cut, at their end unless the
            tokenizer says otherwise, which is counted in `truncated` and logged. By default the
            model's own limit.
        batch_size: Answers to a forward pass.
        device: Where the model is while it scores; between that it is on the CPU. By default it
            stays where it is.
        outputs: Shared by scorers of the same model.

    Attributes:
        tokens: Tokens read so far, without padding; what is kept in `outputs` is not read again.
        truncated: Inputs cut so far.

    Raises:
        InputError: a label that is missing or does not exist.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        input: RewardInput | None = None,
        label: int | str | None = None,
        lower_is_better: bool = False,
        max_length: int | None = None,
        batch_size: int = 16,
        device: str | torch.device | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self._device, self._outputs = device, outputs or Outputs()
        self.input = input or RewardInput()
        self.max_length = max_length or _limit(model.config, tokenizer)
        self.tokens = self.truncated = 0
        self._label = _label(model.config, label, name)
        self._sign = -1.0 if lower_is_better else 1.0
        self._batch_size = batch_size

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], responses: Sequence[str]) -> list[float]:
        """One number for each answer.

        Raises:
            InputError: a prompt the model's input cannot express, or a score that is not finite.
        """
        rows, cut = self._encode(prompts, responses)
        key = hashlib.sha256(json.dumps([self._batch_size, rows]).encode()).digest()

        def read() -> torch.Tensor:
            self._tell(rows, cut)
            with self._at_work():
                return self._read(rows)

        values = self._sign * self._outputs.of(key, read)[:, self._label]
        if not values.isfinite().all():
            raise InputError(
                f"The reward model '{self.name}' gave a score that is not finite: try dtype "
                "float32."
            )
        scores: list[float] = values.tolist()
        return scores

    @fast_products()
    def _read(self, rows: Sequence[Mapping[str, list[int]]]) -> torch.Tensor:
        """All outputs of the model for each row, float64 on the CPU."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        found = torch.empty(len(rows), self.model.config.num_labels, dtype=torch.float64)
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            logits = self.model(**self._pad([rows[i] for i in batch])).logits
            found[batch] = logits.double().cpu()
        return found

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """The model on its device, which it leaves again: the policy needs the room."""
        if self._device is None:
            yield
            return
        self.model.to(self._device)
        try:
            yield
        finally:
            self.model.to("cpu")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _encode(
        self, prompts: Sequence[Text], responses: Sequence[str]
    ) -> tuple[list[dict[str, list[int]]], int]:
        """What the model reads, and how many of these had to be cut."""
        rows, cut = [], 0
        for prompt, response in zip(prompts, responses, strict=True):
            row = self.input.encode(self.tokenizer, prompt, response)
            if self.max_length is not None and len(row["input_ids"]) > self.max_length:
                row = self.input.encode(self.tokenizer, prompt, response, self.max_length)
                cut += 1
            if not row["input_ids"]:
                raise InputError(f"The reward model '{self.name}' has nothing to read: empty text.")
            rows.append(row)
        return rows, cut

    def _tell(self, rows: Sequence[Mapping[str, list[int]]], cut: int) -> None:
        if cut:
            logger.warning(
                "%s: %d of %d inputs were longer than %d tokens and were cut",
                self.name,
                cut,
                len(rows),
                self.max_length,
            )
        self.truncated += cut
        self.tokens += sum(len(row["input_ids"]) for row in rows)

    def _pad(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        # Decoders score the last token that is not the padding of their own configuration.
        padding = {"input_ids": self.model.config.pad_token_id or 0}
        width = max(len(row["input_ids"]) for row in rows)
        return {
            key: torch.tensor(
                [row[key] + [padding.get(key, 0)] * (width - len(row[key])) for row in rows],
                device=self.model.device,
            )
            for key in rows[0]
        }


def load_reward_model(
    name: str | Path,
    *,
    dtype: Dtype = "auto",
    quantization: Quantization | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A reward model and its tokenizer, from the hub, a folder, or a folder with an adapter.

    An adapter is put on the base that its folder names.

    Raises:
        InputError: there is no such model, it has no score head, or an adapter that is not whole.
    """
    adapter = user_path(name) / "adapter_config.json"
    base = _base_of(adapter) if adapter.exists() else str(name)
    model: Any
    model, tokenizer = load_model_and_tokenizer(
        base,
        dtype=dtype,
        quantization=quantization,
        device=device,
        trust_remote_code=trust_remote_code,
        head="new_score" if adapter.exists() else "score",
    )
    return (_with_adapter(model, adapter.parent) if adapter.exists() else model), tokenizer


def _base_of(config: Path) -> str:
    """The base model that an adapter's configuration names."""
    settings = read_object(config)
    base = settings.get("base_model_name_or_path")
    # PEFT imports the module that megatron_core names.
    if not isinstance(base, str) or not base or settings.get("megatron_config"):
        raise InputError(f"'{config}' is not the configuration of a reward model's adapter.")
    return base


def _with_adapter(model: Any, folder: Path) -> Any:
    """PEFT's model; it only warns of weights that are not in the file, which stay random."""
    from peft import PeftModel  # peft takes seconds to import

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(model, str(folder))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise _not_whole(folder, error) from error
    for each in told:
        if "missing adapter keys" in str(each.message):
            raise _not_whole(folder, each.message)
    return model


def _not_whole(folder: Path, reason: object) -> InputError:
    return InputError(
        f"The reward model '{folder}' is not whole ({' '.join(str(reason).split())[:200]}): "
        "restore its adapter's files."
    )


def _limit(config: Any, tokenizer: Any) -> int | None:
    """The longest input a model can read; tokenizers without a limit give an absurd number."""
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min((limit for limit in limits if limit and limit < 10**9), default=None)


def _label(config: Any, label: int | str | None, name: str) -> int:
    names = {str(text): int(number) for number, text in config.id2label.items()}
    if label is None and config.num_labels == 1:
        return 0
    if isinstance(label, int) and 0 <= label < config.num_labels:
        return label
    if isinstance(label, str) and label in names:
        return names[label]
    problem = "say which is the score" if label is None else f"label {label!r} is none of them"
    raise InputError(
        f"The reward model '{name}' has {config.num_labels} outputs ({', '.join(names)}): "
        f"{problem}{'' if label is None else '; give its number or its name'}."
    )
