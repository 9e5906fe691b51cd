"""What must fit together before anything is scored: evaluations, measures, tokens and the model."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from paretune.data.tokenization import TokenSequence
from paretune.errors import InputError
from paretune.training.arguments import check_choice
from paretune.training.config import CommonConfig

_KINDS = ("loss", "accuracy", "margin", "perplexity")


def check_evaluation(
    args: CommonConfig,
    objectives: Iterable[str],
    data: bool,
    kinds: Sequence[str] = _KINDS,
    overall: Sequence[str] = ("chebyshev",),
) -> None:
    """Check that there is something to evaluate on, and that the best is told by a measure.

    Args:
        data: Whether there is an evaluation data set.
        kinds: The measures of each objective.
        overall: Those of all together.

    Raises:
        InputError: there is not.
    """
    if args.evaluates and not data:
        raise InputError(
            "Evaluations during training need an eval_dataset: give one, or set "
            "eval_strategy='no' and eval_on_start=False."
        )
    if args.metric_for_best_model is None:
        return
    names = [*overall, *(f"{name}_{kind}" for name in objectives for kind in kinds)]
    if args.metric_for_best_model.removeprefix("eval_") not in names:
        check_choice(
            "metric_for_best_model",
            args.metric_for_best_model,
            [f"eval_{name}" for name in names],
        )


def check_tokens(model: nn.Module, tokenizer: Any, sequences: Sequence[TokenSequence]) -> None:
    """Check that the model has an embedding for every token, padding included, and every position.

    Raises:
        InputError: it does not, naming the token.
    """
    embeddings: Any = model
    size = getattr(embeddings.get_input_embeddings(), "num_embeddings", None)
    if size is None:
        return
    largest = max(max(sequence.input_ids) for sequence in sequences)
    for token, what in ((tokenizer.pad_token_id, "padding token"), (largest, "token")):
        if token >= size:
            raise InputError(
                f"The tokenizer's {what} {tokenizer.convert_ids_to_tokens(token)!r} has the id "
                f"{token}, and the model has {size} embeddings: call model.resize_token_embeddings"
                f"({len(tokenizer)}), or give the tokenizer that belongs to the model."
            )
    longest = max(len(sequence.input_ids) for sequence in sequences)
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding) and ("wpe" in name or "position" in name)
        if table and module.num_embeddings < longest:
            raise InputError(
                f"The longest prompt and response have {longest} tokens, and the model has "
                f"{module.num_embeddings} positions: set max_length={module.num_embeddings}."
            )
