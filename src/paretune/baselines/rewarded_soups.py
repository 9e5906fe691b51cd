"""Rewarded Soups (Ramé et al., 2023): adapters of single objectives, averaged with weights p.

Exact: the change of every weight is ``Σ_k p_k s_k B_k A_k``, which is one adapter of rank Σ_k r_k:
the A's stacked, and the ``p_k s_k B_k`` side by side. So a soup is a gated adapter whose gate is p,
and what p means can be calibrated. ``raw`` averages the A's and the B's as the authors' code does,
which is another model as soon as two adapters differ.
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paretune.baselines.context import Context, Watch
from paretune.baselines.dial import Dial
from paretune.baselines.morlhf import Morlhf
from paretune.baselines.single_objective import single_objective
from paretune.errors import InputError
from paretune.files import main_process, read_json, write_json
from paretune.moo.gates import Gate
from paretune.moo.preference import Preference
from paretune.recipes.section import Positive
from paretune.results.gates import write_gates
from paretune.results.weights import check_weights

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class RewardedSoups(Dial):
    """Rewarded Soups (Ramé et al., 2023): adapters of single objectives, averaged by p.

    As published, the averages have the weights p: `calibrate: none`.
    """

    adapters: Literal["preference", "ppo"] = "preference"
    """How the adapters are trained: on preference pairs, or by `ppo` as in the paper."""
    average: Literal["exact", "raw"] = "exact"
    """What is averaged: the changes of the weights, B A, or `raw` B and A each, as the authors
    do."""
    steps: Positive | None = None
    """Optimiser steps of each adapter trained on pairs; null is what the recipe's `train` says."""
    ppo: Morlhf = Morlhf()
    """Settings of the PPO, for those adapters."""

    @property
    def steerable(self) -> bool:
        return self.calibrate != "none"

    @property
    def divisible(self) -> bool:
        return self.adapters == "preference"

    @classmethod
    def earlier(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Before there was a calibration, there was none."""
        return {"calibrate": "none", **settings}

    def check_recipe(self, recipe: "Recipe") -> None:
        if self.steps is not None and self.adapters == "ppo":
            raise InputError("steps is for adapters: preference; PPO has a budget of its own.")
        if len(recipe.data.objectives) < 2 and self.steerable:
            raise InputError("One objective has nothing to calibrate: set calibrate: none.")
        if self.average == "raw" and self.steerable:
            raise InputError(
                "average: raw cannot be calibrated, since its soups are not on one line: set "
                "calibrate: none, or average: exact."
            )

    def train(self, context: Context, preferences: Sequence[Preference]) -> None:
        """Train the adapters of single objectives that are missing, and merge them for every p.

        Raises:
            InputError: the recipe trains all weights, or adapters that cannot be merged.
        """
        if context.recipe.lora is None:
            raise InputError("Rewarded Soups merge adapters: the recipe needs a lora section.")
        self.check_recipe(context.recipe)
        objectives = context.recipe.data.objectives
        if self.steerable:
            if context.untrained(preferences):
                sources = [_adapter(context, name, self) for name in objectives]
                self.turn(
                    context,
                    preferences,
                    lambda folder: stack_adapters(sources, folder, objectives),
                    sorted(_keys(sources)),
                )
            return
        for preference in context.untrained(preferences):
            folder = context.point(preference)
            parts = {_adapter(context, name, self): preference[name] for name in preference.live}
            watch = Watch()
            if main_process():
                merge_adapters(parts, folder, self.average)
            context.finish(folder, steps=0, spend=watch.spend(), shared=_keys(parts))


def _adapter(context: Context, objective: str, options: RewardedSoups) -> Path:
    """The folder, below `Context.shared`, of an objective's adapter, trained if need be."""
    if options.adapters == "preference":
        return context.shared / single_objective(context, objective, options.steps)
    from paretune.baselines import morlhf

    return morlhf.single_objective(context, objective, options.ppo)


def _keys(sources: Collection[Path]) -> set[str]:
    """The keys of adapters below `Context.shared`, and of what these needed (reward models)."""
    needed = (read_json(source / "training.json").get("shared", []) for source in sources)
    return {source.name for source in sources} | {key for keys in needed for key in keys}


def stack_adapters(sources: Sequence[Path], target: Path, objectives: Sequence[str]) -> None:
    """Write the adapters, in the objectives' order, as a gated one: the gate is the weight of each.

    Raises:
        InputError: as `merge_adapters` does, or adapters of different ranks.
    """
    ranks = [_plain_config(source)["r"] for source in sources]
    if len(set(ranks)) > 1:
        raise InputError(f"A gate needs adapters of one rank, not of {ranks}.")
    merge_adapters(dict.fromkeys(sources, 1.0), target)
    write_gates(target, Gate(len(objectives), "objectives"), objectives)


def merge_adapters(
    sources: Mapping[Path, float], target: Path, average: Literal["exact", "raw"] = "exact"
) -> None:
    """Write the weighted mean of LoRA adapters to the folder `target`.

    Args:
        sources: weight of the adapter in each folder; those of weight 0 are left out.

    Raises:
        InputError: adapters of which there is no exact mean (DoRA, biases or whole modules trained
            along, ranks that differ from layer to layer), or of different layers.
    """
    weights = {source: weight for source, weight in sources.items() if weight != 0}
    configs = [_plain_config(source) for source in weights]
    target.mkdir(parents=True, exist_ok=True)
    if list(weights.values()) == [1.0]:
        (source,) = weights
        for name in (_CONFIG, _WEIGHTS):
            shutil.copyfile(source / name, target / name)
        return
    states = [load_file(source / _WEIGHTS) for source in weights]
    for source, config, state in zip(weights, configs, states, strict=True):
        _check_alike(source, config, configs[0], state, states[0], average)
    shares = list(weights.values())
    merged: dict[str, Tensor] = {}
    for name, first in states[0].items():
        tensors = [state[name].float() for state in states]
        if average == "raw":
            mean = sum(w * t for w, t in zip(shares, tensors, strict=True))
        elif name.endswith(".lora_A.weight"):
            mean = torch.cat(tensors, dim=0)
        else:
            scaled = zip(shares, configs, tensors, strict=True)
            mean = torch.cat([w * _scale(config) * t for w, config, t in scaled], dim=1)
        assert isinstance(mean, Tensor)
        merged[name] = mean.to(first.dtype).contiguous()
    config = configs[0]
    if average == "exact":  # the scales are in the B's
        rank = sum(int(config["r"]) for config in configs)
        config = {**config, "r": rank, "lora_alpha": rank, "use_rslora": False}
    save_file(merged, target / _WEIGHTS, metadata={"format": "pt"})
    write_json(target / _CONFIG, config)


def _scale(config: Mapping[str, Any]) -> float:
    """By what PEFT multiplies B A."""
    rank = config["r"]
    return float(config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank))


def _plain_config(source: Path) -> dict[str, Any]:
    """The configuration of an adapter that is nothing but A's and B's."""
    if not (source / _CONFIG).exists() and not (source / _WEIGHTS).exists():
        raise InputError(f"There is no adapter in '{source}'.")
    check_weights(source)
    config: dict[str, Any] = read_json(source / _CONFIG)
    obstacles = {
        "is not LoRA": config.get("peft_type") != "LORA",
        "is DoRA, whose magnitudes have no exact mean": config.get("use_dora"),
        "trains biases along": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "trains whole modules along (modules_to_save)": config.get("modules_to_save"),
        "trains tokens along": config.get("trainable_token_indices"),
        "has ranks or scales that differ between layers": config.get("rank_pattern")
        or config.get("alpha_pattern"),
        "shares layers with others (layer_replication)": config.get("layer_replication"),
    }
    for problem, found in obstacles.items():
        if found:
            raise InputError(f"The adapter in '{source}' cannot be merged: it {problem}.")
    return config


def _check_alike(
    source: Path,
    config: Mapping[str, Any],
    first: Mapping[str, Any],
    state: Mapping[str, Tensor],
    first_state: Mapping[str, Tensor],
    average: str,
) -> None:
    for key in ("base_model_name_or_path", "fan_in_fan_out"):
        if config.get(key) != first.get(key):
            raise InputError(
                f"The adapter in '{source}' cannot be merged with the others: its {key} is "
                f"{config.get(key)!r}, not {first.get(key)!r}."
            )
    if set(state) != set(first_state):
        raise InputError(f"The adapter in '{source}' is of other layers than the first one.")
    for name, tensor in state.items():
        if not name.endswith((".lora_A.weight", ".lora_B.weight")) or tensor.dim() != 2:
            raise InputError(
                f"The adapter in '{source}' cannot be merged: {name} is not a linear layer's."
            )
    alike = all(config[key] == first[key] for key in ("r", "lora_alpha"))
    if average == "raw" and not (alike and _scale(config) == _scale(first)):
        raise InputError("average=raw needs adapters of the same rank and scale.")
