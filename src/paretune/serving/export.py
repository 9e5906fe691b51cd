"""A run's adapters laid out for other programs: vLLM's multi-LoRA, PEFT, plain transformers.

The folder needs nothing of paretune: adapters that name a base model which is found from there, a
manifest with the checksum of every file, and a README with the commands.
"""

import hashlib
import shlex
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paretune._version import __version__
from paretune.errors import InputError
from paretune.experiment.weights import read_adapter, with_adapter
from paretune.files import move, read_json, sync_files, user_path, write_json, write_text
from paretune.models import EMBEDDED, load_model_and_tokenizer
from paretune.results.table import Table, left, numbers
from paretune.results.text import markdown_code, markdown_text
from paretune.results.weights import ADAPTER, check_weights
from paretune.serving.choose import Candidate, Choices
from paretune.serving.verify import check_same, logits, untie

_FORMAT = "paretune-export-1"
_TEXT = "The quick brown fox jumps over the lazy dog, and 1 + 1 = 2."
_CONFIG, _WEIGHTS = ADAPTER
_BASE, _ADAPTERS, _MODELS = "base", "adapters", "models"
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of those that vLLM's --max-lora-rank takes


@dataclass(frozen=True)
class Layout:
    """What an export holds.

    Attributes:
        choices: the run and its points.
        model: name of the base model; of a folder, its last part.
        base: where the base model is found: a path in the export, or an id on the hub.
        adapters: configuration of each adapter, by name; empty if the points are whole models.
        models: names of the points that are there as models by themselves.
    """

    choices: Choices
    model: str
    base: str
    adapters: Mapping[str, Mapping[str, Any]]
    models: tuple[str, ...]

    def serve_line(self) -> str:
        """The command that serves it with vLLM, to be given in the folder."""
        if not self.adapters:
            return f"vllm serve {_MODELS}/{self.models[0]}"
        rank = max(int(config["r"]) for config in self.adapters.values())
        fitting = [each for each in _VLLM_RANKS if each >= rank]
        return shlex.join(
            ["vllm", "serve", self.base, "--enable-lora"]
            + ["--max-lora-rank", str(fitting[0] if fitting else rank), "--lora-modules"]
            + [f"{name}={_ADAPTERS}/{name}" for name in self.adapters]
        )


def export_run(
    choices: Choices,
    target: Path,
    *,
    merge: bool = False,
    base: bool | None = None,
    report: Callable[[str], None] = lambda what: None,
) -> Layout:
    """Write the points of a run to a folder of their own, whole or not at all.

    Args:
        target: a folder that is not there yet, or one of an earlier export, which is replaced.
        merge: also write each point as a model by itself, with the tokenizer.
        base: also write the base model and its tokenizer; None does if it has no name on the hub.
        report: is told what is being written.

    Raises:
        InputError: the target is something else, the base model cannot be loaded, an adapter is
            damaged, or what was written, read back, is another model than the run's.
    """
    target = target.resolve()
    if target.exists() and not _replaceable(target):
        raise InputError(f"'{target}' holds something else: give another folder with --to.")
    name = choices.recipe.model.name
    on_hub = name != EMBEDDED and not user_path(name).is_dir()
    adapters = [candidate for candidate in choices.candidates if not candidate.whole]
    with_base = bool(adapters) and (not on_hub if base is None else base)
    layout = Layout(
        choices=choices,
        model=name if on_hub else Path(name).name,
        base=_BASE if with_base or not on_hub else name,
        adapters={each.name: read_json(each.folder / _CONFIG) for each in adapters},
        models=tuple(each.name for each in choices.candidates if each.whole or merge),
    )
    _check(choices)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_models(layout, partial, with_base, report)
        write_text(partial / "README.md", _readme(layout))
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
    layout: Layout, folder: Path, with_base: bool, report: Callable[[str], None]
) -> None:
    """Write base, adapters and models; each is read back, and must compute what the run's does."""
    choices = layout.choices
    base: Any = None
    if layout.adapters:
        base, tokenizer = _load(choices)
        ids = _probe(tokenizer)
        dtype = base.dtype
        if with_base:
            report("the base model")
            wanted = logits(base, ids)
            _save(base, tokenizer, folder / _BASE)
            base, _ = _load(choices, folder / _BASE)
            check_same(logits(base, ids), wanted, dtype, "the base model")
    for candidate in choices.candidates:
        report(candidate.name)
        if candidate.whole:
            _write_whole(choices, candidate, folder / _MODELS / candidate.name)
            continue
        model = with_adapter(base, candidate.folder)
        wanted = logits(model, ids)
        base = model.unload()
        exported = folder / _ADAPTERS / candidate.name
        exported.mkdir(parents=True)
        config = layout.adapters[candidate.name]
        write_json(exported / _CONFIG, {**config, "base_model_name_or_path": layout.base})
        shutil.copyfile(candidate.folder / _WEIGHTS, exported / _WEIGHTS)
        model = with_adapter(base, exported)
        check_same(logits(model, ids), wanted, dtype, candidate.name)
        base = model.unload()
        if candidate.name in layout.models:
            merged = folder / _MODELS / candidate.name
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
        path = _MODELS if candidate.whole else _ADAPTERS
        point = candidate.point
        points.append(
            {
                "name": candidate.name,
                "path": f"{path}/{candidate.name}",
                "preference": point.preference,
                "seed": point.seed,
                "split": choices.split,
                "metrics": {name: vars(values) for name, values in point.metrics.items()},
                "chebyshev": point.chebyshev,
                "nondominated": point.nondominated,
                "prompt_scores": candidate.scores,
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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readme(layout: Layout) -> str:
    choices = layout.choices
    names = choices.recipe.data.objectives
    columns = [left("point"), *numbers(names, ".3g")]
    columns += numbers([f"loss {name}" for name in names], ".4f")
    rows = [
        [candidate.name, *(candidate.point.preference[name] for name in names)]
        + [candidate.point.losses[name] for name in names]
        for candidate in choices.candidates
    ]
    parts = [
        f"# {markdown_text(f'{choices.recipe.name}: {choices.method}')}",
        f"Weight of each objective in training, and losses on the {choices.split} split; "
        "`manifest.json` has all figures and the checksum of every file.",
        Table(columns, rows).to_markdown(),
        "All paths are relative to this folder: give the commands here.",
    ]
    if layout.adapters:
        first = next(iter(layout.adapters))
        parts += [
            "## vLLM",
            _code(layout.serve_line(), "sh"),
            "A request chooses the point by its name, as `model`.",
            "## PEFT",
            _code(
                "from peft import PeftModel\n"
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f'tokenizer = AutoTokenizer.from_pretrained("{layout.base}")\n'
                f'base = AutoModelForCausalLM.from_pretrained("{layout.base}")\n'
                f'model = PeftModel.from_pretrained(base, "{_ADAPTERS}/{first}")',
                "python",
            ),
        ]
    if layout.models:
        parts += [
            "## Models by themselves",
            f"Each folder of `{_MODELS}/` is a whole model with its tokenizer:",
            _code(f"vllm serve {_MODELS}/{layout.models[0]}", "sh"),
        ]
    return "\n\n".join([*parts, *_warnings(layout)]) + "\n"


def _warnings(layout: Layout) -> list[str]:
    """What a user of the export has to know besides."""
    model, found = layout.choices.recipe.model, []
    if layout.base == _BASE and layout.adapters:
        found.append(f"`{_BASE}/` is the base model, {markdown_code(layout.model)}.")
    if model.quantization and layout.adapters:
        found.append(
            f"The adapters were trained over the base model in {model.quantization}; over the "
            "model in full precision, answers differ slightly."
        )
    if model.template_variables and layout.base != _BASE:
        found.append(
            f"The chat template was used with {model.template_variables}: pass them to it "
            "(`chat_template_kwargs`)."
        )
    if any(candidate.scores for candidate in layout.choices.candidates):
        found.append(
            "The points differ in what their prompts ask for, not in their weights: end the "
            "user's words with `<NAME_score> VALUE` for each of `prompt_scores` in the manifest."
        )
    return ["## Note", *found] if found else []


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
