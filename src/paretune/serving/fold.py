"""Adapters made for an export: of a dial's any position, and of a lower rank."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paretune.errors import InputError
from paretune.files import read_json, write_json
from paretune.moo.preference import Preference, das_dennis
from paretune.results.gates import read_gates
from paretune.results.weights import ADAPTER
from paretune.serving.choose import Candidate, Choices
from paretune.serving.verify import logits
from paretune.training.gated_adapter import GatedAdapter, fold_adapter

_CONFIG, _WEIGHTS = ADAPTER
_B = ".lora_B."


def at_preferences(
    choices: Choices, wanted: Sequence[Mapping[str, float]], points: int | None = None
) -> Choices:
    """The run with other candidates: those that serve these preferences, and an even grid.

    Of a run with one adapter for all preferences each is a position of its gate; of others the
    trained points that are chosen for them, each once.

    Args:
        points: Preferences along an edge of the simplex; they need a dial.

    Raises:
        InputError: weights that are no preference, or a grid for a run without a dial.
    """
    preferences = [choices.preference(weights) for weights in wanted]
    if points is not None:
        if choices.dial is None:
            raise InputError(
                f"'{choices.run}' has an adapter for each of its points, none for all preferences: "
                "--points needs a conditioned run, or soups that are calibrated."
            )
        names = choices.recipe.data.objectives
        grid = das_dennis(len(names), points - 1)
        preferences += [Preference.of(dict(zip(names, each, strict=True))) for each in grid]
    if not preferences:
        return choices
    found = {best.name: best for best in (choices.choose(p).best for p in preferences)}
    return replace(choices, candidates=tuple(found.values()))


def folded(
    choices: Choices,
    scratch: Path,
    rank: int | None = None,
    report: Callable[[str], None] = lambda what: None,
) -> Choices:
    """The run with stock adapters in `scratch` for the positions of a gate, and of a lower rank.

    Args:
        rank: Largest rank; by default every adapter keeps its own.
        report: Is told what a lower rank costs.
    """
    made = []
    for candidate in choices.candidates:
        if candidate.whole or (candidate.position is None and rank is None):
            made.append(candidate)
            continue
        folder = scratch / candidate.name
        if candidate.position is not None:
            fold_adapter(candidate.folder, folder, candidate.position)
        else:
            folder.mkdir(parents=True)
            for name in ADAPTER:
                shutil.copyfile(candidate.folder / name, folder / name)
        if rank is not None:
            error = lower_rank(folder, rank)
            report(
                f"{candidate.name} at rank {rank}: its change of the weights is off by {error:.2%}"
            )
        made.append(replace(candidate, folder=folder))
    return replace(choices, candidates=tuple(made))


def gated_logits(model: Any, source: Candidate, ids: Tensor) -> Tensor:
    """Logits with the gate at a candidate's position, of a model with the adapter that has one."""
    gate, _, _ = read_gates(source.folder)
    GatedAdapter(model, gate).set(source.position)
    return logits(model, ids)


def lower_rank(folder: Path, rank: int) -> float:
    """Make the adapter in a folder one of at most this rank: the nearest, by its layers' SVD.

    Returns:
        ‖Δ − Δ'‖ / ‖Δ‖ over all layers, Δ the changes of the weights: 0 where nothing is lost.

    Raises:
        InputError: the rank is below 1, or the adapter is not plain LoRA.
    """
    if rank < 1:
        raise InputError(f"--rank must be at least 1, not {rank}.")
    config, state = read_json(folder / _CONFIG), load_file(folder / _WEIGHTS)
    own = int(config["r"])
    if config.get("rank_pattern") or config.get("alpha_pattern") or config.get("use_dora"):
        raise InputError(f"The adapter in '{folder}' has no one rank that could be lowered.")
    if rank >= own:
        return 0.0
    lost = total = 0.0
    for name in [name for name in state if _B in name]:
        other = name.replace(_B, ".lora_A.")
        # Of B A, from the small factors of B = Q R and Aᵀ = P S alone.
        q, r = torch.linalg.qr(state[name].double())
        p, s = torch.linalg.qr(state[other].double().T)
        left, values, right = torch.linalg.svd(r @ s.T)
        root = values[:rank].sqrt()
        dtypes = state[name].dtype, state[other].dtype
        state[name] = (q @ left[:, :rank] * root).to(dtypes[0]).contiguous()
        state[other] = (root[:, None] * (right[:rank] @ p.T)).to(dtypes[1]).contiguous()
        lost += float(values[rank:].square().sum())
        total += float(values.square().sum())
    shrink = rank / own
    alpha = config["lora_alpha"] * (math.sqrt(shrink) if config.get("use_rslora") else shrink)
    save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
    shown = int(alpha) if float(alpha).is_integer() else alpha
    write_json(folder / _CONFIG, {**config, "r": rank, "lora_alpha": shown})
    return math.sqrt(lost / total) if total > 0 else 0.0


def ends(choices: Choices) -> list[Candidate] | None:
    """Of candidates at positions of a gate, those of which all others are mixtures, if so.

    They are the ones that are nearest to the corners of the simplex, one an objective.
    """
    candidates = choices.candidates
    if not all(candidate.position for candidate in candidates):
        return None
    chosen = []
    for name in choices.recipe.data.objectives:
        shares = [candidate.point.preference[name] for candidate in candidates]
        chosen.append(candidates[shares.index(max(shares))])
    # Where the calibration has several preferences at one position, they make no line.
    spread = np.linalg.det(np.array([candidate.position for candidate in chosen]))
    return chosen if abs(spread) > 1e-3 else None


def mixture(position: Sequence[float], corners: Sequence[Candidate]) -> list[float]:
    """With what scales the corners' adapters add up to the one at a position, exactly.

    The gate is affine in the position, so the change of the weights is, too.
    """
    matrix = np.array([corner.position for corner in corners], dtype=np.float64)
    return [float(x) for x in np.linalg.solve(matrix.T, np.asarray(position, dtype=np.float64))]
