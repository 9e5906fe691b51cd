"""A run's adapters laid out for other programs: vLLM's multi-LoRA, PEFT, plain transformers.

The folder needs nothing of paretune: adapters that name a base model which is found from there, a
manifest with the checksum of every file, and a README with the commands.
"""

import hashlib
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune._version import __version__
from paretune.errors import InputError
from paretune.files import move, read_json, sync_files, user_path, write_json, write_text
from paretune.models import EMBEDDED
from paretune.results.table import Table, left, numbers
from paretune.results.text import markdown_code, markdown_text
from paretune.results.weights import check_weights
from paretune.serving.choose import Candidate, Choices

_FORMAT = "paretune-export-1"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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
        InputError: the target is something else, or the base model cannot be loaded.
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
    if with_base:
        report("the base model")
        _save_model(choices, None, partial / _BASE)
    for candidate in choices.candidates:
        report(candidate.name)
        if not candidate.whole:
            folder = partial / _ADAPTERS / candidate.name
            folder.mkdir(parents=True)
            config = layout.adapters[candidate.name]
            write_json(folder / _CONFIG, {**config, "base_model_name_or_path": layout.base})
            shutil.copyfile(candidate.folder / _WEIGHTS, folder / _WEIGHTS)
        if candidate.name in layout.models:
            _save_model(choices, candidate, partial / _MODELS / candidate.name)
    write_text(partial / "README.md", _readme(layout))
    for folder in (path for path in partial.rglob("*") if path.is_dir()):
        sync_files(folder)
    write_json(partial / "manifest.json", _manifest(layout, partial))
    if target.exists():
        shutil.rmtree(target)
    move(partial, target)
    return layout


def _check(choices: Choices) -> None:
    """See that every point's weights are whole, before anything is written.

    Raises:
        InputError: naming the file that is not.
    """
    from paretune.experiment.weights import read_adapter

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


def _save_model(choices: Choices, candidate: Candidate | None, folder: Path) -> None:
    """Save the base model, or what it is with a point's weights, and the tokenizer."""
    from paretune.experiment.weights import with_adapter
    from paretune.models import load_model_and_tokenizer

    # What was trained over a quantised base is added to the unquantised one.
    options = {**choices.recipe.model.model_dump(), "quantization": None}
    if candidate is not None and candidate.whole:
        options["name"] = str(candidate.folder)
    model, tokenizer = load_model_and_tokenizer(**options)
    saved: Any = model
    if candidate is not None and not candidate.whole:
        saved = with_adapter(model, candidate.folder).merge_and_unload()
    saved.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
