"""A judge on this machine: any chat model that transformers loads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paretune.errors import InputError
from paretune.judging.questions import Failure, Question, Receive, Reply
from paretune.models import Dtype, gpu
from paretune.names import MODEL_LENGTH, name_fault
from paretune.results.answers import Answer


@dataclass
class LocalJudge:
    """A model by folder, hub id or as the embedded one; it answers with its likeliest tokens.

    Raises:
        InputError: a number that is not positive; later, a model that cannot be loaded.
    """

    model: str
    dtype: Dtype = "auto"
    max_tokens: int = 512
    batch_size: int = 8
    paid: bool = field(default=False, init=False)
    where: str = field(default="this machine", init=False)

    def __post_init__(self) -> None:
        if fault := name_fault(self.model, MODEL_LENGTH):
            raise InputError(f"The judge's model: {fault}.")
        if self.max_tokens < 1 or self.batch_size < 1:
            raise InputError("max_tokens and batch_size must be at least 1.")

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"local": self.model, "dtype": self.dtype, "max_tokens": self.max_tokens}

    def ask(self, questions: Sequence[Question], receive: Receive) -> None:
        """Answer the longest first; what does not fit into the context is a failure.

        Raises:
            InputError: the model cannot be loaded or has no chat template.
        """

        from paretune.evaluation.generation import encode_prompt, generate_answers
        from paretune.models import load_model_and_tokenizer

        device = gpu() or "cpu"
        model, tokenizer = load_model_and_tokenizer(self.model, self.dtype, device=device)
        context = getattr(model.config, "max_position_embeddings", None)
        fitting: list[tuple[int, Question]] = []
        for question in questions:
            length = len(encode_prompt(tokenizer, _messages(question)))
            if context is None or length + self.max_tokens <= context:
                fitting.append((length, question))
                continue
            wanted = f"{length} tokens and {self.max_tokens} for the answer"
            reason = f"{wanted} do not fit into a context of {context}"
            receive([(question, Failure(reason))])

        def ended(number: int, answer: Answer) -> None:
            length, question = fitting[number]
            tokens = len(tokenizer(answer.response, add_special_tokens=False)["input_ids"])
            finish = "stop" if answer.finished else "length"
            receive([(question, Reply(answer.response, finish, length, tokens))])

        generate_answers(
            model,
            tokenizer,
            [_messages(question) for _, question in fitting],
            max_new_tokens=self.max_tokens,
            temperature=0,
            batch_size=self.batch_size,
            ended=ended,
        )


def _messages(question: Question) -> list[dict[str, str]]:
    return [dict(message) for message in question.messages]
