"""What must fit together before anything is computed: evaluations, measures, tokens, weights."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from paretune.data.packing import pack
from paretune.data.sampling import PairRows
from paretune.data.tokenization import TokenizedPairs, TokenSequence
from paretune.errors import InputError
from paretune.training.arguments import check_choice
from paretune.training.config import CommonConfig

logger = logging.getLogger(__name__)

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


def check_tokens_per_batch(most: int | None, rows: PairRows, data: TokenizedPairs) -> None:
    """Warn of rows that alone have more tokens than a pass is to have."""
    if most is None:
        return
    longer = 0
    for number in range(len(rows)):
        used = set()
        for name, place in rows[number].items():
            used |= {data.pairs[name].chosen[place], data.pairs[name].rejected[place]}
        longer += pack([data.sequences[i] for i in used]).tokens > most
    if longer:
        logger.warning(
            "%d of %d rows have more than tokens_per_batch=%d tokens: each of them goes through "
            "the model by itself, with as many as it has.",
            longer,
            len(rows),
            most,
        )


def check_weights(model: nn.Module) -> None:
    """Check that a gradient of the model's trainable weights is what the trainers take it for.

    Raises:
        InputError: an adapter of virtual tokens, or a 4-bit base on a CPU.
    """
    for name, config in getattr(model, "peft_config", {}).items():
        if config.is_prompt_learning:
            raise InputError(
                f"The adapter {name!r} is {config.peft_type.value}, which puts virtual tokens "
                "before the prompt: the positions of the responses would be wrong. Use LoRA or "
                "another adapter of the layers."
            )
    for name, parameter in model.named_parameters():
        # Shown with bitsandbytes 0.50: the first evaluation repacks the weights for inference and
        # nothing unpacks them, so gradients after it are wrong, autograd's as well.
        if type(parameter).__name__ == "Params4bit" and parameter.device.type == "cpu":
            raise InputError(
                f"The model is quantised to 4 bits and on a CPU ({name!r}): bitsandbytes computes "
                "wrong gradients there. Use 8 bits, no quantisation, or a GPU."
            )


def check_ownership(
    model: nn.Module, optimizer: Any, filled: Sequence[nn.Parameter] | None = None
) -> None:
    """Check that the weights that are trained are whole and the same for trainer and optimiser.

    Args:
        optimizer: As it steps: after everything was wrapped.
        filled: Parameters to which a step writes gradients; default: the model's trainable ones.

    Raises:
        InputError: they are not, naming a weight.
    """
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and hasattr(parameter, "full_tensor"):
            raise InputError(
                f"The trainable weight {name!r} is split over processes: its gradients cannot be "
                "kept for each objective. Start without FSDP, tensor parallelism or DeepSpeed."
            )
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    owners = {"the optimiser": stepped}
    if filled is not None:
        owners["the trainer"] = {id(p) for p in filled}
    for owner, held in owners.items():
        if lacking := [name for key, name in trained.items() if key not in held]:
            raise InputError(
                f"{len(lacking)} of {len(trained)} trainable weights, {lacking[0]!r} for one, are "
                f"not among those that {owner} holds: freeze them (requires_grad_(False)), or make "
                "the optimiser and add adapters before the trainer."
            )
