"""Whether an export is the run's model: read back, it gives the same logits."""

import math
from typing import Any

import torch

from paretune.errors import InputError


def untie(model: Any) -> None:
    """Give the head weights of its own where an adapter changes it or the embeddings alone.

    Merged into weights that both share, its update would be in both.
    """
    base = model.get_base_model()
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or not any(hasattr(each, "base_layer") for each in (embeddings, head)):
        return
    inner, outer = (getattr(each, "base_layer", each) for each in (embeddings, head))
    if inner.weight.data_ptr() != outer.weight.data_ptr():
        return
    outer.weight = torch.nn.Parameter(outer.weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one sequence, shape (tokens, vocabulary), float32 on the CPU."""
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(ids.to(model.device)).logits[0].float().cpu()
    return found


# Rounding of merged weights, per unit of the largest logit.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_same(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, what: str) -> None:
    """Raise InputError unless an export computes what the run's model does, up to rounding."""
    scale = max(1.0, float(wanted.abs().max()))
    gap = math.inf if found.shape != wanted.shape else float((found - wanted).abs().max())
    if not gap <= _TOLERANCE.get(dtype, 1e-4) * scale:
        raise InputError(
            f"The export of {what} would be another model than the run's: read back, its logits "
            f"differ by {gap:.2g}. Nothing was kept of it; export without --merge, or report this "
            "with the model's name."
        )
