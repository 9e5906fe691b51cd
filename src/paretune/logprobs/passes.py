"""Log-probabilities of a batch's responses, of padded sequences or of packed ones."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from paretune.data.packing import PackedBatch
from paretune.logprobs.attention import (
    PromptStage,
    ResponseStage,
    Stage,
    UnpackableError,
    running,
)
from paretune.logprobs.head import token_logps, without_logits
from paretune.models import is_sharded


def sequence_logps(model: nn.Module, batch: Mapping[str, Any], chunked: bool = True) -> Tensor:
    """``log π(y|x)`` summed over response tokens, ``(N,)`` float32, differentiable.

    The padded sequences are run, whether the batch is packed or not. The vocabulary projection
    sees the K positions that predict a response token, through the model's own ``forward`` (so
    that logit scaling and soft-capping apply): logits are never ``(N, L, V)``.

    Args:
        batch: As from `pad_sequences`.
        chunked: As in `token_logps`.
    """
    input_ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
    positions = torch.zeros_like(batch["completion_mask"])
    positions[:, :-1] = mask

    def run() -> Any:
        return model(input_ids=input_ids, attention_mask=batch["attention_mask"], use_cache=False)

    tokens = token_logps(
        model, run, lambda hidden: hidden[positions], input_ids[:, 1:][mask], chunked
    )
    return torch.zeros_like(mask, dtype=tokens.dtype).masked_scatter(mask, tokens).sum(1)


class PackedPass:
    """The forward pass of a packed batch, and its backward pass in two parts.

    Backward, the signal goes from the log-probabilities through the responses to copies of the
    prompts' keys and values, one copy a response; combined to one for each prompt, it goes on
    through the prompts. Autograd alone, from `logps`, knows the first part only: use the methods.

    Args:
        model: The policy, in training or evaluation.
        batch: On the model's device.

    Raises:
        UnpackableError: the model's attention cannot be told what attends to what.
    """

    def __init__(self, model: nn.Module, batch: PackedBatch) -> None:
        self._model, self.batch = model, batch
        self._prompts = PromptStage(batch)
        self._responses = ResponseStage(batch, self._prompts)
        self._end: Tensor | None = None
        if batch.prompts.tokens:
            with running(model, self._prompts):
                end = without_logits(model, lambda: self._run(self._prompts))
            # FSDP gathers weights when a signal reaches a module's output, and none reaches that of
            # the last layer and of the model.
            self._end = end if is_sharded(model) and end.requires_grad else None
            if not self._prompts.kept:
                raise UnpackableError(
                    "the model's attention does not go through transformers' interface"
                )
        with running(model, self._responses):
            tokens = token_logps(
                model, lambda: self._run(self._responses), lambda hidden: hidden[0], batch.targets
            )
        if self._responses.leaves.keys() != self._prompts.kept.keys():
            raise UnpackableError("the model's attention layers differ from one pass to the next")
        self.logps = torch.stack([part.sum() for part in tokens.split(batch.responses.lengths)])
        """``(N,)``, as `sequence_logps` gives them."""

    def _run(self, stage: Stage) -> Any:
        row = stage.row
        return self._model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False)

    def backward_responses(self, scale: float) -> None:
        """A unit signal times `scale` into every log-probability, as far as the prompts."""
        with running(self._model, self._responses):
            torch.autograd.backward(self.logps.sum() * scale)

    def backward_prompts(self, coefficients: Tensor, retain_graph: bool) -> None:
        """Through the prompts, the responses' signals combined by `coefficients` ``(N,)``."""
        signals = [leaf.grad for _, leaf in self.joints()]
        self._through_prompts(signals, coefficients, retain_graph, None)

    def gradients(
        self, value: Tensor, parameters: Sequence[nn.Parameter], retain_graph: bool
    ) -> list[Tensor | None]:
        """The gradient of a function of `logps`; None for parameters it does not depend on."""
        leaves = [leaf for _, leaf in self.joints()]
        with running(self._model, self._responses):
            found = torch.autograd.grad(
                value, [*parameters, *leaves], retain_graph=retain_graph, allow_unused=True
            )
        first, signals = found[: len(parameters)], found[len(parameters) :]
        ones = torch.ones(len(self.batch.sequences), device=value.device)
        second = self._through_prompts(signals, ones, retain_graph, parameters)
        return [
            b if a is None else a if b is None else a + b
            for a, b in zip(first, second, strict=True)
        ]

    def joints(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of the first stage, with their copies in the second."""
        for module, leaves in self._responses.leaves.items():
            for root, leaf in zip(self._prompts.kept[module], leaves, strict=True):
                if root.requires_grad:
                    yield root, leaf

    def stage(self, prompts: bool) -> AbstractContextManager[None]:
        """Within, the model runs, or recomputes, over the prompts or over the responses."""
        return running(self._model, self._prompts if prompts else self._responses)

    def joined(self, root: Tensor, signal: Tensor, factors: Tensor | None = None) -> Tensor:
        """The responses' signals at copies of keys or values, added up to one for each prompt.

        Args:
            factors: ``(E, 1)``, what each copied position's signal is multiplied by.
        """
        added = signal if factors is None else signal * factors
        # In float32 at least: factors are.
        return torch.zeros_like(root).index_add_(2, self.batch.source, added.to(root.dtype))

    def _through_prompts(
        self,
        signals: Sequence[Tensor | None],
        coefficients: Tensor,
        retain_graph: bool,
        parameters: Sequence[nn.Parameter] | None,
    ) -> Sequence[Tensor | None]:
        """Gradients of `parameters`; without any, the signal passes and nothing is returned."""
        batch = self.batch
        counts = torch.tensor(batch.source_lengths, device=coefficients.device)
        factors = coefficients.repeat_interleave(counts, output_size=len(batch.source))[:, None]
        roots, cotangents = [], []
        for (root, _), signal in zip(self.joints(), signals, strict=True):
            if signal is None:
                continue
            roots.append(root)
            cotangents.append(self.joined(root, signal, factors))
        if self._end is not None:
            roots.append(self._end)
            cotangents.append(torch.zeros_like(self._end))
        if not roots:
            return [None] * len(parameters or ())
        with running(self._model, self._prompts):
            if parameters is None:
                torch.autograd.backward(roots, cotangents, retain_graph=retain_graph)
                return []
            return torch.autograd.grad(
                roots, parameters, cotangents, retain_graph=retain_graph, allow_unused=True
            )
