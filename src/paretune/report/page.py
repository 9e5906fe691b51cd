"""The report: one HTML file that needs nothing else, with figures and model cards beside it."""

import base64
import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from paretune._version import __version__
from paretune.errors import InputError
from paretune.extras import require
from paretune.files import write_text
from paretune.names import printable
from paretune.report import tables
from paretune.report.comparison import draw_comparison
from paretune.report.diagnostics import draw_steps, panels
from paretune.report.figures import PlotPoint, dial_curve, draw_front
from paretune.report.judges import judge_tables, read_judges
from paretune.report.model_card import write_model_card
from paretune.report.page_data import embedded_json, page_data, run_names, shown_points
from paretune.report.scores_along import draw_scores_along
from paretune.results.damage import warn_of_damage
from paretune.results.run_folder import Run, point_slug, read_runs
from paretune.results.text import preference_text

PAGE = "report.html"
FIGURES = "figures"
_PARTS = ("common", "dial", "front", "details", "steps", "start")
_SUFFIXES = (".png", ".svg")


def write_report(paths: Sequence[Path], tell: Callable[[str], None] = lambda message: None) -> Path:
    """Write the page of one or several run folders, and each run's figures and model cards.

    Args:
        paths: Folders of `paretune sweep` or `paretune compare` with the same objectives. The
            page goes into the first one.
        tell: Is told what is being written.

    Returns:
        The page.

    Raises:
        InputError: plotly is missing; see `paretune.results.run_folder.read_runs`; or a folder
            cannot be written.
    """
    runs = read_runs(paths)
    for run in runs:
        warn_of_damage(run.path)
    target = runs[0].path / PAGE
    try:
        write_text(target, render(runs))
        tell(str(target))
        for run in runs:
            cards = [write_model_card(run, title, point) for title, point in run.points]
            tell(f"{run.path}: {sum(card is not None for card in cards)} model cards")
            tell(f"{run.path / FIGURES}: {len(write_figures(run))} files")
    except OSError as error:
        raise InputError(f"The report cannot be written: {error}.") from error
    return target


def render(runs: Sequence[Run]) -> str:
    """The page's HTML.

    Everything from a run is escaped: by Jinja2 where it is written out, by `embedded_json` where
    the script reads it.

    Raises:
        InputError: plotly is not installed.
    """
    require("plotly", "The report's page")
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("paretune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plotly, script = get_plotlyjs(), _script()
    data = page_data(runs)
    return environment.get_template("report.html.j2").render(
        policy=_policy([plotly, script]),
        style=Markup(_source("report.css")),
        plotly=Markup(plotly),
        script=Markup(script),
        data=Markup(embedded_json(data)),
        **_context(runs, data),
    )


def _printable(value: Any) -> Any:
    """What is written out, without control characters: HTML has no place for them."""
    return printable(value) if type(value) is str else value


def write_figures(run: Run) -> list[Path]:
    """Draw the run's figures as PNG and SVG: its front, and the steps of every point."""
    folder = run.path / FIGURES

    def both(name: str) -> list[Path]:
        return [folder / f"{name}{suffix}" for suffix in _SUFFIXES]

    written = both("front") if len(run.objectives) > 1 else []
    if len(run.objectives) > 1 and run.comparison is not None:
        written += both("scores")
        for losses, scores in zip(both("front"), both("scores"), strict=True):
            draw_comparison(run.comparison, losses, scores)
    elif len(run.objectives) > 1:
        _draw_sweep(run, both("front"))
        if draw_scores_along(run.series, run.objectives, both("scores"), title=run.name):
            written += both("scores")
    for title, point in run.points:
        found = panels(run.log(point), run.objectives)
        if found:
            paths = both(f"steps_{point_slug(point)}")
            label = (
                f"{title}, p = {preference_text(point.preference, names=False)}, seed {point.seed}"
            )
            draw_steps(found, run.objectives, paths, title=f"{run.name}: {label}")
            written += paths
    return [path for path in written if path.exists()]


def _draw_sweep(run: Run, paths: Sequence[Path]) -> None:
    reference = None if run.base is None else PlotPoint(run.base.losses, "base")
    series = {
        title: [PlotPoint(p.losses, preference_text(p.preference, names=False)) for p in points]
        for title, points in run.series.items()
    }
    calibrations = map(run.calibration, run.series)
    curves = [dial_curve(each, run.objectives) for each in calibrations if each is not None]
    for path in paths:
        draw_front(
            series,
            run.objectives,
            path,
            title=run.name,
            reference=reference,
            curves=curves[0] if curves else None,
            quantity=f"{run.split} loss",
        )


def _script() -> str:
    """The page's own script: its parts in one scope."""
    parts = "\n".join(_source(f"{name}.js") for name in _PARTS)
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _source(name: str) -> str:
    return (files("paretune.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded, and no script runs but the page's own.

    Styles may stand in the page because plotly writes its own there; under `default-src 'none'`
    they can fetch nothing. `data:` and `blob:` are for saving a picture of a plot.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _context(runs: Sequence[Run], data: Mapping[str, Any]) -> dict[str, Any]:
    """What the template writes out: everything that is to be read without a script too."""
    points = shown_points(runs)
    rows = [
        {
            "title": shown.title,
            "base": shown.base,
            "best": entry["best"]["loss"],
            "texts": {(fact.group, fact.name): fact.text for fact in shown.facts},
        }
        for shown, entry in zip(points, data["points"], strict=True)
    ]
    names = run_names(runs)
    shown_runs = [_run_context(run, name) for run, name in zip(runs, names, strict=True)]
    return {
        "title": ", ".join(dict.fromkeys(run.name for run in runs)),
        "objectives": runs[0].objectives,
        "split": runs[0].split,
        "columns": tables.columns(shown.facts for shown in points),
        "rows": rows,
        "runs": shown_runs,
        "judged": any(run["judged"] for run in shown_runs),
        "has_dial": data["dial"] is not None,
        "has_answers": bool(data["prompts"]),
        "has_steps": any(entry["steps"] for entry in data["points"]),
        "n_points": sum(not row["base"] for row in rows),
        "n_best": sum(row["best"] for row in rows),
        "version": __version__,
    }


def _run_context(run: Run, name: str) -> dict[str, Any]:
    comparison, front = run.comparison, run.front
    command = "sweep" if comparison is None else "compare"
    reference = None
    if (found := comparison or front) is not None and found.reference_point is not None:
        reference = ", ".join(tables.signed(value) for value in found.reference_point)
    counts = run.manifest.get("data", {})
    calibrations = {title: run.calibration(title) for title in run.series}
    return {
        "name": name,
        "path": str(run.path),
        "description": str(run.recipe.get("description") or ""),
        "settings": tables.settings(run.recipe),
        "volume": None if front is None else tables.signed(front.hypervolume, ".4g"),
        "reference": reference,
        "methods": None if comparison is None else tables.methods(comparison),
        "epsilons": None if comparison is None else tables.epsilons(comparison),
        "dials": [
            (title, tables.dial(calibration, run.objectives))
            for title, calibration in calibrations.items()
            if calibration is not None
        ],
        "failures": [] if comparison is None else comparison.failures,
        "judged": [part for judge in read_judges(run.path) for part in judge_tables(judge)],
        "counts": tables.data_counts(counts),
        "skipped": counts.get("all", {}).get("skipped_examples", []),
        "sessions": tables.sessions(run.manifest),
        "command": f"paretune {command} {shlex.quote(str(run.path / 'recipe.yaml'))} "
        "output_dir=runs/again",
        "recipe_text": run.recipe_text,
    }
