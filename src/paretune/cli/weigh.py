"""``paretune weigh``."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from paretune.cli.arguments import Fresh, Overrides, TrustRemoteCode, resumable
from paretune.cli.output import echo
from paretune.cli.workers import Job, Ray, Workers, shared_out

if TYPE_CHECKING:
    from paretune.recipes.data_weighting import WeighRecipe
    from paretune.recipes.mixture import MixtureRecipe
    from paretune.recipes.schema import Model
    from paretune.runs.folder import RunFolder

Only = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Run only the cells whose names match, e.g. 'moml-*' or '*-seed0'; may be repeated.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="A shipped recipe by name, or a path to your own; none with --data.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE ...",
        help="Training sets to weigh, without a recipe: files or hub ids, or NAME=FILE.",
    ),
]
Criteria = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE ...", help="With --data: validation rows, a file a criterion."),
]
Test = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE ...", help="With --data: test rows, a file a criterion."),
]
Prefer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=WEIGHT ...",
        help="With --data: how much each criterion matters, e.g. --prefer x=7 y=3.",
    ),
]
_MANY = ("--data", "--criteria", "--test", "--prefer")


class ManyValues(TyperCommand):
    """A command whose options above take all words up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(words: list[str]) -> list[str]:
    """``--data a b`` as ``--data a --data b``.

    >>> spread(["--data", "a", "b", "--fresh"])
    ['--data', 'a', '--data', 'b', '--fresh']
    """
    found: list[str] = []
    option: str | None = None
    for word in words:
        if word.startswith("-"):
            option = word if word in _MANY else None
            if option is None:
                found.append(word)
        elif option is not None:
            found += [option, word]
        else:
            found.append(word)
    return found


def weigh(
    recipe: Recipe = None,
    overrides: Overrides = None,
    data: Data = None,
    criteria: Criteria = None,
    test: Test = None,
    prefer: Prefer = None,
    only: Only = None,
    workers: Workers = None,
    ray: Ray = None,
    fresh: Fresh = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Learn how much each training set should weigh, by a recipe or for files of your own.

    A run that was stopped resumes when the same command is given again; several processes may
    share a run folder (--workers), each with cells of its own.
    """
    with resumable():
        from paretune.cli.progress import console_progress
        from paretune.errors import InputError
        from paretune.recipes.data_weighting import load_weigh_recipe
        from paretune.recipes.language_model import LanguageModelTask
        from paretune.recipes.mixture import MixtureRecipe

        def folder() -> "RunFolder":
            from paretune.data_weighting.run import weigh_folder

            return weigh_folder(loaded)

        if data or criteria or test or prefer:
            given = [*([recipe] if recipe else []), *(overrides or [])]
            loaded: WeighRecipe | MixtureRecipe = _own(given, data, criteria, test, prefer)
        elif recipe is None:
            raise InputError(
                "Name a recipe (`paretune recipes` lists them), or give --data and --criteria."
            )
        else:
            loaded = load_weigh_recipe(recipe, overrides or [])
        given = [recipe] if recipe else []
        for name, values in zip(_MANY, (data, criteria, test, prefer), strict=True):
            given += [word for value in values or [] for word in (name, value)]
        job = Job(
            ["weigh", *given, *(overrides or []), *(f"--only={each}" for each in only or [])],
            folder,
            loaded.run,
            len(loaded.methods) * len(loaded.points) * len(loaded.seeds),
            fresh,
        )
        if shared_out(job, workers, ray):
            return
        model: Model | None = None
        if isinstance(loaded, MixtureRecipe):
            model = loaded.model
        elif isinstance(loaded.task, LanguageModelTask):
            model = loaded.task.model
        results = Path(loaded.output_dir).glob("cells/*/result.json")
        if model is not None and (fresh or len(list(results)) < job.pieces):
            model.check_place()  # at once, and torch takes seconds
        with console_progress(None if model is None else model.name) as progress:
            from paretune.data_weighting.run import run_weighing

            summary = run_weighing(loaded, only=only or [], fresh=fresh, progress=progress)
        failed = f", {len(summary.failed)} failed" if summary.failed else ""
        missing = f", {summary.missing} still to run" if summary.missing else ""
        echo(f"{len(summary.done)} cells done{failed}{missing}.")
        echo(f"In {loaded.output_dir}: weigh.md, weigh.json, weigh_*.png, cells/")
        for line in summary.lines():
            echo(line)


def _own(
    changes: list[str],
    data: list[str] | None,
    criteria: list[str] | None,
    test: list[str] | None,
    prefer: list[str] | None,
) -> "MixtureRecipe":
    """A recipe of the files that were named."""
    from paretune import yaml_syntax
    from paretune.errors import InputError
    from paretune.names import shown
    from paretune.recipes.mixture import MixtureRecipe, named_files, read_mixture

    for item in changes:
        if "=" not in item:
            raise InputError(
                f"{shown(item)} is a recipe, which --data takes the place of: drop one."
            )
    if not data or not criteria:
        raise InputError(
            "--data, the training sets, and --criteria, the validation rows, go together."
        )
    files = {"sets": named_files(data, "--data"), "criteria": named_files(criteria, "--criteria")}
    for option, found in zip(("--data", "--criteria"), files.values(), strict=True):
        if len(found) < 2:
            raise InputError(
                f"{option} names {shown(*found)} alone; sets are weighed against each other, and "
                "criteria too: name two files or more."
            )
    if test:
        files["test"] = named_files(test, "--test")
    weights: dict[str, float] = {}
    for item in prefer or []:
        name, _, value = item.partition("=")
        if name not in files["criteria"] and name.split(".")[0] in MixtureRecipe.model_fields:
            changes.append(item)
            continue
        try:
            weights[name] = float(value)
        except ValueError:
            raise InputError(
                f"{shown(item)} is not a weight: write NAME=WEIGHT, for example x=0.7."
            ) from None
        if not (math.isfinite(weights[name]) and weights[name] >= 0):
            raise InputError(f"The weight of {shown(name)} must be finite and at least 0.")
    largest = max(weights.values(), default=0.0)
    if weights and not largest:
        raise InputError("--prefer needs a weight above 0.")
    count = len(files["criteria"])
    total = math.fsum(value / largest for value in weights.values())
    point: Any = {name: value / largest / total for name, value in weights.items()}
    text = yaml_syntax.dump(
        {
            "task": {"name": "sets", **files},
            "preferences": [point or [1 / count] * count],
            "retrain_steps": 30,
        }
    )
    return read_mixture(text, "the command", "weigh", changes)
