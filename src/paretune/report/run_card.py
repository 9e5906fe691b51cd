"""The card of a repository that holds a run: its points in a table, and how to load one."""

import json
from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCardData

from paretune._version import __version__
from paretune.models import BUILT_IN
from paretune.report.model_card import MARK, header_text
from paretune.results.front import FrontPoint
from paretune.results.run_folder import Run
from paretune.results.table import Table, left, numbers
from paretune.results.text import markdown_code, markdown_text


def run_card(
    run: Run,
    method: str,
    points: Mapping[str, FrontPoint],
    repo: str,
    base: str | None,
    adapters: bool,
    picture: str | None,
) -> str:
    """The text: a YAML header and Markdown.

    Args:
        points: By the folder of each in the repository.
        repo: The repository's id.
        base: The base model's id on the hub.
        adapters: Whether the points are adapters, not whole models.
        picture: Name of the front's picture in the repository; None without one.
    """
    header = ModelCardData(
        base_model=base,
        library_name="peft" if adapters else "transformers",
        license="apache-2.0" if run.recipe["model"]["name"] in BUILT_IN else None,
        pipeline_tag="text-generation",
        tags=[
            *("paretune", "multi-objective", *(["lora"] if adapters else [])),
            *map(header_text, run.objectives),
        ],
        model_name=header_text(run.name),
    )
    what = "a LoRA adapter" if adapters else "a model"
    names = ", ".join(map(markdown_text, run.objectives))
    parts = [
        f"---\n{header.to_yaml()}\n---\n{MARK}",
        f"# {markdown_text(f'{run.name}: {method}')}",
        f"A front of trade-offs between {names}: each folder is {what} for one preference p, with "
        f"a card of its own. Made with paretune {__version__}.",
        *([f"![The front: {names}]({picture})"] if picture else []),
        _table(run, points),
        f"Losses are of the {run.split} split.",
        "## Use",
        f"```python\n{_code(repo, next(iter(points)), base, adapters)}\n```",
    ]
    if not run.recipe["model"].get("trust_remote_code"):
        return "\n\n".join(parts) + "\n"
    warning = f"The base {markdown_code(base or '')} needs code of its own (`trust_remote_code`)."
    return "\n\n".join([*parts, warning]) + "\n"


def _table(run: Run, points: Mapping[str, FrontPoint]) -> str:
    columns = [left("folder"), *numbers([f"p {name}" for name in run.objectives], ".3g")]
    columns += numbers([f"loss {name}" for name in run.objectives], ".4f")
    rows: Sequence[Sequence[object]] = [
        [name, *(point.preference[each] for each in run.objectives)]
        + [point.losses[each] for each in run.objectives]
        for name, point in points.items()
    ]
    return Table(columns, rows).to_markdown()


def _code(repo: str, folder: str, base: str | None, adapters: bool) -> str:
    place = f"{json.dumps(repo)}, subfolder={json.dumps(folder)}"
    base_id = json.dumps(base)
    if not adapters:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({place})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({place})"
        )
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base = AutoModelForCausalLM.from_pretrained({base_id}, dtype="auto")\n'
        f"model = PeftModel.from_pretrained(base, {place})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({base_id})"
    )
