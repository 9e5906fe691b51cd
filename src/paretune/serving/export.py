"""A run's adapters laid out for other programs: vLLM's multi-LoRA, PEFT, plain transformers.

The folder needs nothing of paretune: adapters that name a base model which is found from there, a
manifest with the checksum of every file, and a README with the commands.
"""

import hashlib
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from paretune._version import __version__
from paretune.errors import InputError
from paretune.experiment.weights import read_adapter, with_adapter
from paretune.files import move, read_json, sync_files, user_path, write_json, write_text
from paretune.models import BUILT_IN, load_model_and_tokenizer
from paretune.results.front import ObjectiveMetrics
from paretune.results.weights import ADAPTER, check_weights
from paretune.serving.choose import Candidate, Choices
from paretune.serving.fold import folded, gated_logits
from paretune.serving.gguf_lora import family_of, write_lora
from paretune.serving.layout import ADAPTERS, BASE, GGUF, MODELS, Layout, readme
from paretune.serving.verify import check_same, logits, untie

_FORMAT = "paretune-export-1"
_TEXT = "The quick brown fox jumps over the lazy dog, and 1 + 1 = 2."
_CONFIG, _WEIGHTS = ADAPTER


def export_run(
    choices: Choices,
    target: Path,
    *,
    merge: bool = False,
    base: bool | None = None,
    rank: int | None = None,
    gguf: bool = False,
    report: Callable[[str], None] = lambda what: None,
) -> Layout:
    """Write the points of a run to a folder of their own, whole or not at all.

    Points at positions of a gate are folded into adapters of their own.

    Args:
        target: a folder that is not there yet, or one of an earlier export, which is replaced.
        merge: also write each point as a model by itself, with the tokenizer.
        base: also write the base model and its tokenizer; None does if it has no name on the hub.
        rank: largest rank of an adapter; by default its own.
        gguf: also write the adapters as llama.cpp reads them.
        report: is told what is being written.

    Raises:
        InputError: the target is something else, the base model cannot be loaded, an adapter is
            damaged, or what was written, read back, is another model than the run's.
    """
    target = target.resolve()
    if target.exists() and not _replaceable(target):
        raise InputError(f"'{target}' holds something else: give another folder with --to.")
    name = choices.recipe.model.name
    on_hub = name not in BUILT_IN and not user_path(name).is_dir()
    adapters = [candidate for candidate in choices.candidates if not candidate.whole]
    with_base = bool(adapters) and (not on_hub if base is None else base)
    if (gguf or rank is not None) and not adapters:
        raise InputError(f"'{choices.run}' has whole models, no adapters: leave --gguf and --rank.")
    _check(choices)
    sources = {each.name: each for each in choices.candidates}
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            choices = folded(choices, Path(scratch), rank, report)
            layout = Layout(
                choices=choices,
                model=name if on_hub else Path(name).name,
                base=BASE if with_base or not on_hub else name,
                adapters={
                    each.name: read_json(each.folder / _CONFIG)
                    for each in choices.candidates
                    if not each.whole
                },
                models=tuple(each.name for each in choices.candidates if each.whole or merge),
                gguf=gguf,
            )
            exact = sources if rank is None else {}
            _write_models(layout, partial, with_base, exact, report)
        write_text(partial / "README.md", readme(layout))
        for folder in (path for path in partial.rglob("*") if path.is_dir()):
            sync_files(folder)
        write_json(partial / "manifest.json", _manifest(layout, partial))
        if target.exists():
            shutil.rmtree(target)
        move(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return layout


def _write_models(
    layout: Layout,
    folder: Path,
    with_base: bool,
    sources: Mapping[str, Candidate],
    report: Callable[[str], None],
) -> None:
    """Write base, adapters and models; each is read back, and must compute what the run's does.

    Args:
        sources: candidates by name, of which those of `layout` were folded exactly.
    """
    choices = layout.choices
    base: Any = None
    if layout.adapters:
        base, tokenizer = _load(choices)
        ids = _probe(tokenizer)
        dtype = base.dtype
        if layout.gguf:
            family_of(base.config)  # raises before anything is written
        if with_base:
            report("the base model")
            wanted = logits(base, ids)
            _save(base, tokenizer, folder / BASE)
            base, _ = _load(choices, folder / BASE)
            check_same(logits(base, ids), wanted, dtype, "the base model")
    for candidate in choices.candidates:
        report(candidate.name)
        if candidate.whole:
            _write_whole(choices, candidate, folder / MODELS / candidate.name)
            continue
        model = with_adapter(base, candidate.folder)
        wanted = logits(model, ids)
        base = model.unload()
        source = sources.get(candidate.name)
        if source is not None and source.position is not None:
            model = with_adapter(base, source.folder)
            check_same(wanted, gated_logits(model, source, ids), dtype, candidate.name)
            base = model.unload()
        exported = folder / ADAPTERS / candidate.name
        exported.mkdir(parents=True)
        config = layout.adapters[candidate.name]
        write_json(exported / _CONFIG, {**config, "base_model_name_or_path": layout.base})
        shutil.copyfile(candidate.folder / _WEIGHTS, exported / _WEIGHTS)
        model = with_adapter(base, exported)
        check_same(logits(model, ids), wanted, dtype, candidate.name)
        base = model.unload()
        if layout.gguf:
            write_lora(exported, folder / GGUF / f"{candidate.name}.gguf", base.config)
        if candidate.name in layout.models:
            merged = folder / MODELS / candidate.name
            _write_merged(choices, candidate, merged)
            check_same(logits(_load(choices, merged)[0], ids), wanted, dtype, candidate.name)


def _write_whole(choices: Choices, candidate: Candidate, folder: Path) -> None:
    model, tokenizer = _load(choices, candidate.folder)
    ids = _probe(tokenizer)
    wanted, dtype = logits(model, ids), model.dtype
    _save(model, tokenizer, folder)
    del model
    check_same(logits(_load(choices, folder)[0], ids), wanted, dtype, candidate.name)


def _write_merged(choices: Choices, candidate: Candidate, folder: Path) -> None:
    plain, tokenizer = _load(choices)
    model = with_adapter(plain, candidate.folder)
    untie(model)
    with warnings.catch_warnings():  # that weights which were tied no longer are
        warnings.simplefilter("ignore", UserWarning)
        merged = model.merge_and_unload()
    _save(merged, tokenizer, folder)


def _load(choices: Choices, folder: Path | None = None) -> tuple[Any, Any]:
    """The run's base model and tokenizer, or those in a folder, on the CPU and not quantised.

    What was trained over a quantised base is added to the unquantised one.
    """
    options = {**choices.recipe.model.model_dump(), "quantization": None}
    if folder is not None:
        options["name"] = str(folder)
    return load_model_and_tokenizer(**options)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _probe(tokenizer: Any) -> torch.Tensor:
    """Token ids of a short text, shape (1, tokens)."""
    ids: torch.Tensor = tokenizer(_TEXT, return_tensors="pt")["input_ids"]
    return ids


def _check(choices: Choices) -> None:
    """See that every point's weights are whole, before anything is written.

    Raises:
        InputError: naming the file that is not.
    """
    for candidate in choices.candidates:
        if candidate.whole:
            check_weights(candidate.folder)
        else:
            read_adapter(candidate.folder)


def _replaceable(target: Path) -> bool:
    if not target.is_dir():
        return False
    manifest = target / "manifest.json"
    if manifest.exists():
        return bool(read_json(manifest).get("format") == _FORMAT)
    return not any(target.iterdir())


def _manifest(layout: Layout, folder: Path) -> dict[str, Any]:
    choices = layout.choices
    recipe = choices.recipe
    points = []
    for candidate in choices.candidates:
        path = MODELS if candidate.whole else ADAPTERS
        point = candidate.point
        points.append(
            {
                "name": candidate.name,
                "path": f"{path}/{candidate.name}",
                "position": candidate.position,
                "preference": point.preference,
                "seed": point.seed,
                "split": choices.split,
                "metrics": {name: _measured(values) for name, values in point.metrics.items()},
                "chebyshev": point.chebyshev,
                "nondominated": point.nondominated,
                "prompt_scores": candidate.asked and candidate.asked.scores,
            }
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": _FORMAT,
        "paretune": __version__,
        "recipe": recipe.name,
        "method": choices.method,
        "objectives": recipe.data.objectives,
        "base_model": {
            **recipe.model.model_dump(mode="json"),
            "name": layout.model,
            "path": layout.base,
        },
        "points": points,
        "models": list(layout.models),
        "sha256": {path.relative_to(folder).as_posix(): _digest(path) for path in files},
    }


def _measured(metrics: ObjectiveMetrics) -> dict[str, float | None]:
    """The metrics; null where there is none, as of a position that was not measured itself."""
    return {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in vars(metrics).items()
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
