"""The reference of DPO and IPO: the model as it was given, whatever becomes of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from paretune.data.tokenization import TokenSequence
from paretune.errors import InputError
from paretune.logprobs import by_prompt
from paretune.training.reference_cache import ReferenceCache, model_digest

# Largest difference between two computations of the same log-probabilities, relative to their
# size: rounding in batches of other shapes.
_TOLERANCE, _LOOSEST = 1e-4, 0.03


class Reference:
    """Keeps what training changes, so that the model as given can be asked again later.

    Args:
        model: As given. The numbers to be trained are copied to the CPU, unless they are more than
            half of the model's and it has no adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.digest = model_digest(model)
        """Of the model as given (see `model_digest`)."""
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        total = sum(p.numel() for p in model.parameters())
        few = 2 * sum(p.numel() for p in trained.values()) <= total
        self._given: dict[str, Tensor] | None = None
        if few or hasattr(model, "peft_config"):
            self._given = {n: p.detach().to("cpu", copy=True) for n, p in trained.items()}

    @property
    def kept(self) -> bool:
        """Whether the model as given can be had after it was trained."""
        return self._given is not None

    @property
    def moved(self) -> bool:
        """Whether the model now is another than the one given, as far as that is known."""
        return self._given is not None and any(
            not torch.equal(p.detach().cpu(), self._given[n])
            for n, p in self._model.named_parameters()
            if n in self._given
        )

    @contextmanager
    def as_given(self) -> Iterator[None]:
        """Within, the model is the one that was given; afterwards it is as it was before."""
        if not self.moved:
            yield
            return
        assert self._given is not None
        now = dict(self._model.named_parameters())
        trained = {name: now[name].detach().clone() for name in self._given if name in now}
        try:
            self._load(self._given)
            yield
        finally:
            self._load(trained)

    @torch.no_grad()
    def _load(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            if name in values:
                parameter.copy_(values[name])

    def score(
        self,
        sequences: Sequence[TokenSequence],
        cache: ReferenceCache,
        score: Callable[[Sequence[TokenSequence], int], Tensor],
        share: Callable[[Any], Any],
        store: bool,
    ) -> Tensor:
        """Log-probabilities of all responses, ``(len(sequences),)`` float32, stored or computed.

        What is computed is stored part by part, so that a pass cut short is resumed.

        Args:
            score: Computes some, by all processes together, after so many others.
            share: Gives what the main process holds to all of them.
            store: Whether this is the main process.

        Raises:
            InputError: some are not finite.
        """
        order = by_prompt(sequences)
        result = torch.zeros(len(sequences))
        with self.as_given():
            for part in cache.parts():
                # All processes score or none does, whatever appears on disk meanwhile.
                logps = share(cache.load(part) if store else None)
                if logps is None:
                    with cache.alone(part) if store else nullcontext():
                        # Another process may have been at it.
                        logps = share(cache.load(part) if store else None)
                        if logps is None:
                            logps = score([sequences[i] for i in order[part]], part.start)
                            if store and bool(logps.isfinite().all()):
                                cache.store(part, logps)
                result[order[part]] = logps
        wrong = int((~result.isfinite()).sum())
        if wrong:
            raise InputError(
                f"The model gives {wrong} of {len(sequences)} responses log-probabilities that "
                "are NaN or infinite, so it cannot be a reference: load it in another dtype, or "
                "check its weights."
            )
        return result


def close(first: Tensor, second: Tensor, model: nn.Module, mixed: bool) -> bool:
    """Whether two computations of the same log-probabilities agree up to rounding.

    Args:
        mixed: Whether they were computed under autocast.
    """
    exact = not mixed and not torch.backends.cuda.matmul.allow_tf32
    exact = exact and all(parameter.dtype == torch.float32 for parameter in model.parameters())
    size = (1 + second.abs()).sum()
    return bool((first - second).abs().sum() <= (_TOLERANCE if exact else _LOOSEST) * size)


def turn_off_dropout(model: nn.Module) -> list[str]:
    """Turn off the dropout of a base model, not that of its adapters; where it was.

    With it the policy would differ from its reference before the first step. TRL's trainers do the
    same (``disable_dropout``); this also finds dropout that modules keep as a plain number.
    """
    adapters = {id(module) for module in adapter_modules(model)}
    found = []
    for name, module in model.named_modules():
        if id(module) in adapters:
            continue
        dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        for key, value in vars(module).items():
            if (
                (key == "p" if dropout else "drop" in key)
                and isinstance(value, float)
                and value > 0
            ):
                setattr(module, key, 0.0)
                found.append(f"{name}.{key}")
    return found


def adapter_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of PEFT's adapters, without the layers that they wrap."""
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer  # peft takes seconds to import

    return [
        module
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
        for name, module in layer.named_modules()
        if not name.startswith("base_layer")
    ]


@contextmanager
def without_adapter_dropout(model: nn.Module) -> Iterator[None]:
    """Within, a model in training has no dropout in its adapters."""
    training = [module for module in adapter_modules(model) if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
