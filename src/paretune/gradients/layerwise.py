"""The Gramian and the combined gradient without M gradients of all weights: layer by layer.

The M signals go down through the model side by side. Where they have passed a layer, the M
gradients of its weights are there, go into the Gramian and are dropped. Once the weights λ are
known, the signal of the weighted sum goes down the same graph for the combined gradient. So it
takes one forward and M + 1 backward passes, and memory for M gradients of the largest layer in
place of ``M·d``; the graph of the whole step must be there until λ is known.

The model is cut at the hidden states that its decoder layers and its head take: copies of them are
leaves of what follows. What lies between cuts is read off autograd's graph, so that ways past a cut
count, and weights used in several places (tied embeddings) are held until the last of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from paretune.gradients.bank import add_products, device_of
from paretune.gradients.objectives import Batch, all_shared, cotangents, restrict
from paretune.logprobs import PackedPass, current_stage, output_embeddings, sequence_logps
from paretune.logprobs.attention import PromptStage
from paretune.losses import PreferenceLoss
from paretune.models import is_sharded
from paretune.models.products import fast_products


def layerwise_obstacle(model: nn.Module) -> str | None:
    """Why a model's gradients cannot be taken layer by layer; None if they can."""
    if is_sharded(model):
        return "the base model is split over processes"
    if not any(isinstance(module, GradientCheckpointingLayer) for module in model.modules()):
        return "the model's layers are not those of transformers"
    return None


class LayerwiseGradients:
    """In place of a `GradientBank`, for steps of one micro-batch.

    Args:
        model: The policy.
        parameters: Its d trainable numbers, all on one device.
        n_objectives: M.
    """

    def __init__(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], n_objectives: int
    ) -> None:
        self._device = device_of(parameters)
        self._model, self.parameters, self.n_objectives = model, list(parameters), n_objectives
        self.losses = torch.zeros(n_objectives, dtype=torch.float64)
        """Sums of weighted losses; mean losses after `finish`."""
        self.totals = torch.zeros(n_objectives, dtype=torch.float64)
        """Sums of the pairs' weights."""
        self._runs: list[_Run] = []
        # MPS has no float64.
        place = "cpu" if self._device.type == "mps" else self._device
        self._gramian = torch.zeros(n_objectives, n_objectives, dtype=torch.float64, device=place)
        self._reduce: Callable[[Tensor], Tensor] | None = None

    def zero(self) -> None:
        """Start a new step."""
        self._runs.clear()
        self.losses.zero_()
        self.totals.zero_()

    def hold(self) -> None:
        """As of a `GradientBank` before the first micro-batch: there is nothing."""

    def restore(self, held: object) -> None:
        """As `zero`."""
        self.zero()

    def accumulate(
        self, batch: Batch, losses: Mapping[str, PreferenceLoss], scale: float = 1.0
    ) -> int:
        """Run the step's batch forward; returns how many passes the step takes.

        Objectives that do not share their sequences have forward passes of their own.
        """
        assert not self._runs, "a step of one micro-batch"
        names = list(losses)
        groups = [names] if all_shared(batch, names) or "row" in batch else [[n] for n in names]
        sums, totals = [], []
        for group in groups:
            part = batch if len(groups) == 1 else restrict(batch, group[0])
            run = _Run(self._model, part, {name: losses[name] for name in group}, scale)
            self._runs.append(run)
            sums.append(run.sums)
            totals.append(run.totals)
        self.losses += torch.cat(sums).to("cpu", torch.float64)
        self.totals += torch.cat(totals).detach().to("cpu", torch.float64)
        return len(groups) + self.n_objectives + len(groups)

    def finish(self, reduce_sum: Callable[[Tensor], Tensor] | None = None) -> None:
        """Turn sums into means over all processes, and compute the Gramian."""
        self._reduce = reduce_sum
        if reduce_sum is not None:
            scalars = torch.stack([self.losses, self.totals]).float().to(self._device)
            self.losses, self.totals = reduce_sum(scalars).cpu().double()
        self.losses /= self._divisors
        self._gramian.zero_()
        passes = [_Descent(run, run.weights * run.scale) for run in self._runs]
        unscale = torch.cat([torch.full((len(r.weights),), 1 / r.scale) for r in self._runs])
        factors = unscale.double() / self._divisors
        for parameter, block in self._layers(passes, self.n_objectives):
            given = block if reduce_sum is None else reduce_sum(block)
            shape = (-1, *(1,) * parameter.dim())
            add_products(
                given.mul_(factors.to(given.device, given.dtype).view(shape)), self._gramian
            )

    @property
    def _divisors(self) -> Tensor:
        return torch.where(self.totals == 0, 1.0, self.totals)

    def gramian(self) -> Tensor:
        """``G Gᵀ``, ``(M, M)`` float64 on the CPU."""
        return self._gramian.cpu().clone()

    @fast_products()
    def combine(self, weights: Tensor, scale: float = 1.0) -> None:
        """Write ``scale · Σ_m weights_m g^m`` to the parameters' ``.grad``; the graph is gone."""
        factors = weights / self._divisors * scale
        passes, first = [], 0
        for run in self._runs:
            own = factors[first : first + len(run.weights)]
            own = own.to(run.weights.device, run.weights.dtype)
            first += len(run.weights)
            passes.append(_Descent(run, (own @ run.weights)[None]))
        for parameter in self.parameters:
            parameter.grad = None
        for parameter, block in self._layers(passes, 1):
            whole = block if self._reduce is None else self._reduce(block)
            parameter.grad = whole[0].to(parameter.dtype)
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._runs.clear()

    def _layers(
        self, passes: "Sequence[_Descent]", count: int
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its gradients ``(count, ...)``, once the last part of them is there.

        All processes see the parameters in the same order.
        """
        ends: dict[int, int] = {}
        for descent in passes:
            for k, (_, _, used) in enumerate(descent.run.cuts):
                for parameter in used:
                    ends[id(parameter)] = min(k, ends.get(id(parameter), k))
        blocks: dict[int, Tensor] = {}
        for k in range(len(passes[0].run.cuts) - 1, -1, -1):
            first = 0
            for descent in passes:
                for c, parameter, gradient in descent.through(k):
                    kind = torch.promote_types(parameter.dtype, torch.float32)
                    if id(parameter) not in blocks:
                        shape = (count, *parameter.shape)
                        blocks[id(parameter)] = torch.zeros(shape, dtype=kind, device=self._device)
                    place = c if count == 1 else first + c
                    blocks[id(parameter)][place] += gradient.to(kind)
                first += len(descent.cotangents)
            for parameter in self.parameters:
                if ends.get(id(parameter)) == k and id(parameter) in blocks:
                    yield parameter, blocks.pop(id(parameter))


@dataclass(frozen=True)
class _Cut:
    """A hidden state as it was made, and the leaf that was used in its place, if it has a graph."""

    made: Tensor
    leaf: Tensor | None


def _below(roots: Iterable[Tensor], cuts: Sequence[_Cut]) -> tuple[list[int], list[Tensor]]:
    """The cuts, and the other leaves, that signals into the roots reach."""
    places = {id(cut.leaf): j for j, cut in enumerate(cuts) if cut.leaf is not None}
    found: set[int] = set()
    leaves: dict[int, Tensor] = {}
    todo: list[Any] = [root.grad_fn for root in roots]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if not hasattr(node, "variable"):
            todo.extend(following for following, _ in node.next_functions)
        elif id(node.variable) in places:
            found.add(places[id(node.variable)])
        else:
            leaves[id(node.variable)] = node.variable
    return sorted(found), list(leaves.values())


class _Run:
    """A forward pass over some objectives' sequences, with its graph.

    Attributes:
        weights: W, ``(M, N)``; see `cotangents`.
        cuts: From the lowest on, of what lies below each cut and above the next: how signals go
            through the responses (or padded sequences) and through the prompts, and its parameters.
    """

    def __init__(
        self, model: nn.Module, batch: Batch, losses: Mapping[str, PreferenceLoss], scale: float
    ) -> None:
        self.scale = scale
        self.packed: PackedPass | None = None
        with _cutting(model) as (rows, prompts):
            if "packed" in batch:
                self.packed = PackedPass(model, batch["packed"])
                self.logps = self.packed.logps
            else:
                self.logps = sequence_logps(model, batch)
        self.rows, self.prompts = rows, prompts
        self.weights, sums, self.totals = cotangents(self.logps, batch, losses)
        self.sums = sums.detach()
        joints = [] if self.packed is None else list(self.packed.joints())
        roots = {id(leaf): (root, leaf) for root, leaf in joints}
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        self.cuts: list[tuple[_Way, _Way | None, list[Tensor]]] = []
        for k in range(len(rows) + 1):
            out = self.logps if k == len(rows) else rows[k].made
            lower, leaves = _below([out], rows)
            weights = [leaf for leaf in leaves if id(leaf) in trained]
            pairs = [roots[id(leaf)] for leaf in leaves if id(leaf) in roots]
            way = _Way(k, lower, weights, pairs)
            own = {id(p): p for p in weights}
            before = None
            if prompts:
                outs = [root for root, _ in pairs] + [cut.made for cut in prompts[k : k + 1]]
                lower, leaves = _below(outs, prompts)
                weights = [leaf for leaf in leaves if id(leaf) in trained]
                before = _Way(k, lower, weights, pairs)
                own |= {id(p): p for p in weights}
            self.cuts.append((way, before, list(own.values())))


class _Way:
    """From a cut down: the cuts it reaches, the weights between, and the joints of the stages."""

    def __init__(
        self,
        start: int,
        lower: list[int],
        weights: list[Tensor],
        joints: list[tuple[Tensor, Tensor]],
    ) -> None:
        self.start, self.lower, self.weights, self.joints = start, lower, weights, joints


class _Descent:
    """Signals on their way down a run.

    Args:
        cotangents: ``(C, N)``, of the log-probabilities.
    """

    def __init__(self, run: _Run, cotangents: Tensor) -> None:
        self.run, self.cotangents = run, cotangents
        self._rows: list[dict[int, Tensor]] = [{} for _ in cotangents]
        self._prompts: list[dict[int, Tensor]] = [{} for _ in cotangents]

    def through(self, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Send the signals from cut k to the ones below; yields (c, parameter, its gradient)."""
        run = self.run
        way, before, _ = run.cuts[k]
        leaves = [leaf for _, leaf in way.joints]
        for c, cotangent in enumerate(self.cotangents):
            top = k == len(run.rows)
            signal = cotangent if top else self._rows[c].pop(k, None)
            outs: list[Tensor] = []
            signals: list[Tensor] = []
            if signal is not None:
                cuts = _leaves(run.rows, way.lower)
                out = run.logps if top else run.rows[k].made
                given = self._grad(
                    [out], [*cuts, *leaves, *way.weights], [signal], run.packed, prompts=False
                )
                _add(self._rows[c], way.lower, given)
                own = given[len(cuts) : len(cuts) + len(leaves)]
                for (root, _), arrived in zip(way.joints, own, strict=True):
                    if arrived is not None:
                        assert run.packed is not None
                        outs.append(root)
                        signals.append(run.packed.joined(root, arrived))
                yield from _found(c, way.weights, given)
            if before is None:
                continue
            if (waiting := self._prompts[c].pop(k, None)) is not None:
                outs.append(run.prompts[k].made)
                signals.append(waiting)
            if outs:
                cuts = _leaves(run.prompts, before.lower)
                given = self._grad(outs, [*cuts, *before.weights], signals, run.packed, True)
                _add(self._prompts[c], before.lower, given)
                yield from _found(c, before.weights, given)

    def _grad(
        self,
        outs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        signals: Sequence[Tensor],
        packed: PackedPass | None,
        prompts: bool,
    ) -> Sequence[Tensor | None]:
        if not inputs:
            return []
        where: AbstractContextManager[None] = nullcontext()
        if packed is not None:
            where = packed.stage(prompts)
        with where:
            return torch.autograd.grad(outs, inputs, signals, retain_graph=True, allow_unused=True)


def _add(held: dict[int, Tensor], places: Sequence[int], given: Sequence[Tensor | None]) -> None:
    for place, signal in zip(places, given, strict=False):
        if signal is not None:
            held[place] = held[place] + signal if place in held else signal


def _found(
    c: int, weights: Sequence[Tensor], given: Sequence[Tensor | None]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    for weight, gradient in zip(weights, given[len(given) - len(weights) :], strict=True):
        if gradient is not None:
            yield c, weight, gradient


def _leaves(cuts: Sequence[_Cut], places: Iterable[int]) -> list[Tensor]:
    leaves = [cuts[j].leaf for j in places]
    return [leaf for leaf in leaves if leaf is not None]


@contextmanager
def _cutting(model: nn.Module) -> Iterator[tuple[list[_Cut], list[_Cut]]]:
    """Within, layers and head take leaves; gives the cuts in responses (or rows) and in prompts."""
    rows: list[_Cut] = []
    prompts: list[_Cut] = []

    def cut(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        hidden = args[0] if args else named.get("hidden_states")
        if not (torch.is_grad_enabled() and isinstance(hidden, Tensor)):
            return None
        leaf = hidden.detach().requires_grad_() if hidden.requires_grad else None
        stage = current_stage()
        (prompts if isinstance(stage, PromptStage) else rows).append(_Cut(hidden, leaf))
        if leaf is None:
            return None
        return ((leaf, *args[1:]), named) if args else (args, named | {"hidden_states": leaf})

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    handles = [
        module.register_forward_pre_hook(cut, with_kwargs=True)
        for module in (*layers, output_embeddings(model))
    ]
    try:
        yield rows, prompts
    finally:
        for handle in handles:
            handle.remove()
