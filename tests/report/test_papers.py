"""The papers' tables and figures from runs made in code: layout, digits, what is beside what."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from paretune.cli import app
from paretune.errors import InputError
from paretune.files import write_json
from paretune.recipes.mixture import TASKS
from paretune.report import figures
from paretune.report.papers import clamp, drawing, wc_penalty
from paretune.report.papers.exhibit import Exhibit, Found, Row, beside, plain, written
from paretune.report.papers.weighing import OTHER_TASKS
from paretune.report.papers.write import PAPERS, write_tables
from paretune.results.comparison import Comparison
from paretune.results.run_folder import read_comparison, read_runs

TWO = ("harmless", "helpful")
THREE = ("honesty", "helpfulness", "instruction_following")
CRITERIA = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
Make = Callable[..., Path]


def exhibit(name: str, exhibits: tuple[Exhibit, ...] = clamp.EXHIBITS) -> Exhibit:
    (found,) = [each for each in exhibits if each.name == name]
    return found


def rows(exhibit: Exhibit, *runs: Path) -> list[list[str]]:
    table = exhibit.table(Found.read(runs))
    assert table is not None
    return table.texts


def relabelled(run: Path, methods: list[dict[str, Any]], **changes: Any) -> Path:
    """A comparison's folder whose methods are other ones."""
    found = read_comparison(run / "compare.json")
    names = dict(zip(found.titles, methods, strict=True))
    cells = [
        replace(
            cell,
            title=names[cell.title]["label"],
            method=names[cell.title]["name"],
            options=names[cell.title].get("options", {}),
        )
        for cell in found.cells
    ]
    value = Comparison.of(
        cells, name=found.name, objectives=found.objectives, base=found.base, shared={}
    ).to_json()
    write_json(run / "compare.json", value)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "methods": methods, **changes}))
    return run


def test_rows_stand_beside_those_of_the_paper() -> None:
    assert plain("Harmlessness") == plain("harmless")
    assert plain("instruction_following") == plain("Instruction-Following")
    ours = [Row(("helpful",), "run", {"a": 1.0}), Row(("polite",), "run", {"a": 2.0})]
    printed = {("Harmlessness",): {"a": 3.0}, ("Helpfulness",): {"a": 4.0}}
    found = beside(ours, printed)
    assert [(row.keys[0], row.source) for row in found] == [
        ("Harmlessness", "paper"),
        ("helpful", "run"),
        ("Helpfulness", "paper"),
        ("polite", "run"),
    ]


def test_digits_are_the_papers_as_long_as_they_say_something() -> None:
    assert written(0.59163, ".4f") == "0.5916"
    assert written(0.0141, ".1%") == "1.4%"
    assert written(273.2, ".0f") == "273"
    assert written(0.034, ".0f") == "0.034"
    assert written(0.0, ".1f") == "0.0"
    assert written(None, ".1f") == ""


def test_every_exhibit_is_there_once_and_says_what_it_needs() -> None:
    for exhibits in PAPERS.values():
        names = [each.name for each in exhibits]
        assert len(set(names)) == len(names)
        assert all(each.needs for each in exhibits)
    printed = {each.name for each in clamp.EXHIBITS}
    assert printed == {f"Table {n}" for n in range(2, 8)} | {
        f"Figure {n}" for n in ("1", "2a", "2b", "3", "4a", "4b", "5", "6", "7")
    }


def test_tables_3_and_5(comparison: Make, tmp_path: Path) -> None:
    methods = [
        {"name": "clamp", "label": f"mu {mu:g}", "options": {"mu": mu}} for mu in (0.01, 100.0, 7.0)
    ]
    run = relabelled(comparison(tmp_path / "mu", TWO), methods)
    table = exhibit("Table 3").table(Found.read([run]))
    assert table is not None
    assert table.head == [
        *["DPO loss", "source", "μ = 0.01", "μ = 1", "μ = 7", "μ = 100", "μ = 1000"]
    ]
    (paper,) = [row for row in table.texts if row[:2] == ["Harmlessness", "paper"]]
    assert paper[2:] == ["0.7014", "0.7012", "", "0.5916", "0.6049"]
    ours = [row for row in table.texts if row[0] == "harmless"]
    assert [row[1] for row in ours] == [f"mu, [{p}, {1 - p}]" for p in (0.25, 0.5, 0.75)]
    assert all([len(value) for value in row[2:]] == [6, 0, 6, 6, 0] for row in ours)

    methods[0]["options"] = {"mu": "auto"}  # stands after the numbers
    table = exhibit("Table 3").table(Found.read([relabelled(run, methods)]))
    assert table is not None
    assert table.head[4:] == ["μ = 7", "μ = 100", "μ = 1000", "μ = auto"]

    batches = [
        {"name": "clamp", "label": str(n), "train": {"gradient_accumulation_steps": n}}
        for n in (1, 2, 4)
    ]
    size = {"train": {"per_device_train_batch_size": 5}}
    run = relabelled(comparison(tmp_path / "batch", TWO), batches, **size)
    found = rows(exhibit("Table 5"), run)
    steps = [row for row in found if row[0] == "training steps"]
    assert steps[0][2:] == ["40", "40", "", "40"]
    assert steps[-1][1:] == ["paper", "2,500", "800", "500", "450"]


def test_tables_of_costs(sweep: Make, comparison: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "three", THREE, divisions=2)
    shares = rows(exhibit("Table 2"), run)
    assert ["base-1b", "2", "three", "0.01%"] in shares
    assert ["Llama-3.1-8B-Instruct", "3", "paper", "1.5%"] in shares
    assert [row[2] for row in rows(exhibit("Table 4"), run)] == ["paper"] * 6  # no memory measured
    methods = [
        {"name": "clamp", "label": "CLAMP"},
        {"name": "rewarded_soups", "label": "Soups", "options": {"adapters": "ppo"}},
        {"name": "ric", "label": "RiC"},
    ]
    found = rows(exhibit("Table 6"), relabelled(comparison(tmp_path / "all", TWO), methods))
    assert found == [
        ["overall training time (min)", "all", "2", "2", "", "", "2"],
        ["overall training time (min)", "paper", "37", "54", "273", "471", "457"],
    ]


def test_memory_tells_the_ways_to_the_gradients_apart(comparison: Make, tmp_path: Path) -> None:
    methods = [
        {"name": "clamp", "label": "one pass"},
        {"name": "clamp", "label": "apart", "train": {"gradients": "per_objective"}},
        {"name": "linear", "label": "PWG"},
    ]
    run = relabelled(comparison(tmp_path / "ways", TWO), methods)
    found = json.loads((run / "compare.json").read_text())
    peaks = {"one pass": 3e9, "apart": 2e9, "PWG": 1e9}
    for cell in found["cells"]:
        for point in cell["points"]:
            point["training"]["spend"]["peak_memory_bytes"] = peaks[cell["title"]]
    write_json(run / "compare.json", found)
    ours = [row[1:] for row in rows(exhibit("Table 4"), run) if row[2] != "paper"]
    assert ours == [["2", "ways, apart, per_objective", "2.0"], ["2", "ways, one pass", "3.0"]]
    one = yaml.safe_load((run / "recipe.yaml").read_text())
    one["methods"][0]["name"] = "linear"  # with a single CLAMP its title says nothing
    (run / "recipe.yaml").write_text(yaml.safe_dump(one))
    for cell in found["cells"]:
        cell["method"] = "clamp" if cell["title"] == "apart" else "linear"
    write_json(run / "compare.json", found)
    ours = [row[2] for row in rows(exhibit("Table 4"), run) if row[2] != "paper"]
    assert ours == ["ways, per_objective"]


def test_figures_6_and_7_are_of_two_sizes(sweep: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "three", THREE, divisions=2)
    found = rows(exhibit("Figure 6"), run)
    assert found[0] == ["[0.2, 0.3, 0.5]", "paper", "0.4833", "0.4725", "0.4615"]
    assert ["[1, 0, 0]", "three", "0.5000", "1.1000", "1.1000"] not in found
    assert [row[0] for row in found if row[1] == "three"][-1] == "[1, 0, 0]"
    assert {row[1] for row in rows(exhibit("Figure 7"), run)} == {"paper"}
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["name"] = "/models/Llama-3.1-8B-Instruct"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert {row[1] for row in rows(exhibit("Figure 7"), run)} == {"paper", "three"}


def judge(model: str, weights: list[tuple[float, ...]], methods: int = 9) -> dict[str, Any]:
    def aspect(value: float) -> dict[str, Any]:
        percent = {"value": value, "interval": None}
        counts = {"rated": 5}
        return {"counts": counts, "prompts": 5, "mean": 3, "base_mean": 2, "percent": percent}

    table = [
        {
            "title": f"method {k}",
            "preference": dict(zip(THREE, each, strict=True)),
            "folders": ["x"],
            "aspects": {name: aspect(10 * k + i) for i, name in enumerate(THREE)},
            "wins": None,
        }
        for k in range(methods)
        for each in weights
    ]
    base = {name: {"counts": {"rated": 5}, "mean": 2.5} for name in THREE}
    return {
        **{"judge": {"model": model, "where": "x", "settings": {}}, "aspects": THREE},
        **{"prompts": 5, "questions": 20, "counts": {"rated": 20}, "asked": 20},
        **{"tokens": {}, "cost": None, "failures": {}, "base": base, "rows": table},
    }


@pytest.mark.slow
def test_judges_fill_the_figures_of_their_names(comparison: Make, tmp_path: Path) -> None:
    run = comparison(tmp_path / "judged", THREE, divisions=3)
    (run / "judge").mkdir()
    weights = [(1 / 3, 1 / 3, 1 / 3), (0.8, 0.1, 0.1)]
    judges = [judge("deepseek-chat", weights), judge("gemini-2.5-flash", weights)]
    (run / "judge" / "judge.json").write_text(json.dumps({"judges": judges}))
    shown = {each.exhibit.name: each for each in write_tables([run], tmp_path / "out")["CLAMP"]}
    assert [name for name, each in shown.items() if each.figures] == [
        "Figure 2a",
        "Figure 3",
        "Figure 4a",
    ]
    assert rows(exhibit("Figure 2a"), run)[2][:4] == [
        "method 1",
        "[0.33, 0.33, 0.33]",
        "judged, deepseek-chat",
        "+10.0",
    ]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["name"] = "Qwen/Qwen3-8B"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shown = {each.exhibit.name: each for each in write_tables([run], tmp_path / "out")["CLAMP"]}
    assert len(shown["Figure 5"].figures) == 2


def make_weighing(run: Path) -> Path:
    """What `paretune weigh` leaves: 2 seeds, our method at all strong preferences, MOML."""
    run.mkdir(parents=True)
    task = {"name": "reward_model", "loader": "helpsteer"}
    (run / "recipe.yaml").write_text(yaml.safe_dump({"task": task}))
    preferences = [{name: 0.96 if name == best else 0.01 for name in CRITERIA} for best in CRITERIA]
    cells = []
    for seed in (0, 1):
        for preference in preferences:
            losses = [0.5 if weight > 0.9 else 1.0 for weight in preference.values()]
            cells.append({"method": "wc_augmented", "preference": preference, "resolved": losses})
            cells[-1]["seed"] = seed
        cells.append({"method": "moml", "preference": None, "resolved": [1.0] * 5, "seed": seed})
    found = {
        "objectives": CRITERIA,
        "preferences": preferences,
        "reference_point": [2.0] * 5,
        "cells": [{**cell, "status": "done"} for cell in cells],
    }
    (run / "weigh.json").write_text(json.dumps(found))
    (run / "weigh_methods.png").write_bytes(b"a picture")
    return run


def test_weighings(tmp_path: Path) -> None:
    run = make_weighing(tmp_path / "helpsteer")
    (ours, paper) = rows(exhibit("Appendix E.1", wc_penalty.EXHIBITS), run)
    assert ours == ["S ours / S", "helpsteer, wc_augmented", "4.00", "", ""]
    assert paper[2:] == ["1.67", "1.36", "1.56"]
    found = Found.read([run])
    exhibited = exhibit("Table 1", wc_penalty.EXHIBITS)
    assert [row.source for row in exhibited.rows(found)] == []  # of language models
    of_rewards = wc_penalty._indicators(lambda run: True, wc_penalty._volume)
    (row,) = of_rewards(found)
    assert row.values["Moml".upper()] == 1.0
    assert row.values["Helpfulness"] == pytest.approx(1.5)
    assert row.values["Ours"] == pytest.approx(1 + 5 * 0.5)  # five slabs on the unit cube
    (drawn,) = exhibit("Figure 6", wc_penalty.EXHIBITS).draw(found, tmp_path / "out", "f")
    assert drawn.read_bytes() == b"a picture"


def test_weighings_elsewhere_or_unfinished_are_called_so(tmp_path: Path) -> None:
    run = make_weighing(tmp_path / "helpsteer")
    with pytest.raises(InputError, match=r"run of `paretune weigh` and is shown by its weigh\.md"):
        read_runs([run])
    (run / "weigh.json").unlink()
    for read in (read_runs, Found.read):
        with pytest.raises(InputError, match=r"is not finished: run `paretune weigh .*yaml` again"):
            read([run])
    assert OTHER_TASKS == TASKS
    (run / "recipe.yaml").write_text(yaml.safe_dump({"task": {"name": "planted"}}))
    with pytest.raises(InputError, match=r"planted ones, of which the papers have no table"):
        Found.read([run])


def interrupt(run: Path) -> Path:
    """Leaves of a weighing what one has that was stopped: results of cells, and the manifest."""
    found = json.loads((run / "weigh.json").read_text())
    (run / "weigh.json").unlink()
    (run / "weigh_methods.png").unlink()
    for n, cell in enumerate(found["cells"]):
        (run / "cells" / f"cell-{n}").mkdir(parents=True)
        (run / "cells" / f"cell-{n}" / "result.json").write_text(json.dumps(cell))
    (run / "cells" / "begun").mkdir()
    (run / "manifest.json").write_text(json.dumps({"objectives": found["objectives"]}))
    return run


def test_the_cells_of_a_weighing_that_was_stopped_are_shown(tmp_path: Path) -> None:
    whole = Found.read([make_weighing(tmp_path / "whole" / "run")])
    part = Found.read([interrupt(make_weighing(tmp_path / "part" / "run"))])
    for each in wc_penalty.EXHIBITS:
        assert list(each.rows(part)) == list(each.rows(whole))
    (weighing,) = part.weighings
    assert weighing.reference_point == pytest.approx([1.05] * 5)  # 0.5 to 1, and a tenth of it
    run = tmp_path / "part" / "run"
    assert part.left_out == [
        f"Of '{run}' 12 cells are shown, without pictures: run `paretune weigh {run}/recipe.yaml` "
        "again."
    ]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "reference_point": [3] * 5}))
    assert Found.read([run]).weighings[0].reference_point == (3,) * 5
    found = json.loads((tmp_path / "whole" / "run" / "weigh.json").read_text())
    (tmp_path / "whole" / "run" / "weigh.json").write_text(json.dumps({**found, "missing": 5}))
    assert "12 of 17 cells" in Found.read([tmp_path / "whole" / "run"]).left_out[0]


def test_points_of_runs_that_were_stopped_are_shown(
    comparison: Make, sweep: Make, tmp_path: Path
) -> None:
    whole, part = (sweep(tmp_path / name / "run", THREE, divisions=3) for name in ("a", "b"))
    assert Found.read([whole]).left_out == []
    front = json.loads((part / "front.json").read_text())
    (part / "front.json").unlink()
    for point in front["points"][2:5]:
        write_json(part / point["folder"] / "metrics.json", point)
        write_json(part / point["folder"] / "training.json", point["training"])
    found = Found.read([part])
    again = f"run `paretune sweep {part}/recipe.yaml` again."
    assert found.left_out == [f"Of '{part}' 3 of 10 points are shown: {again}"]
    of_whole = rows(exhibit("Figure 6"), whole)
    assert len(of_whole) > len(rows(exhibit("Figure 6"), part))
    recipe = yaml.safe_load((part / "recipe.yaml").read_text())
    recipe["sweep"]["preferences"] = None  # placed one after the other
    (part / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert Found.read([part]).left_out == [f"Of '{part}' 3 points are shown: {again}"]
    compared = comparison(tmp_path / "c", TWO)  # one point of MODPO failed
    (told,) = Found.read([compared]).left_out
    assert told.startswith(f"Of '{compared}' 18 of 19 points are shown: run `paretune compare ")


def test_runs_of_one_name_are_told_apart(comparison: Make, tmp_path: Path) -> None:
    first, second = (comparison(tmp_path / name / "run", TWO) for name in ("first", "second"))
    other = make_weighing(tmp_path / "first" / "helpsteer")
    found = Found.read([first, second, other, first / "."])
    assert len(found.runs) == 2
    assert [found.name(run) for run in found.runs] == ["first/run", "second/run"]
    assert found.source(found.weighings[0], "", "wc_augmented") == "helpsteer, wc_augmented"
    drawn = exhibit("Figure 3").draw(found, tmp_path, "f")
    assert [path.name for path in drawn] == ["f-first-run.png", "f-second-run.png"]
    alone = Found.read([first])
    assert alone.file_name(alone.runs[0]) == "run"


def test_a_run_is_named_by_its_folder_where_it_is_the_present_one(
    sweep: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweep(tmp_path / "three", THREE))
    assert rows(exhibit("Figure 6"), Path())[-1][1] == "three"


def test_methods_that_have_not_begun_with_a_seed_keep_their_setting(
    comparison: Make, tmp_path: Path
) -> None:
    """Options are kept when a cell begins: another seed's tell them as well."""
    methods = [{"name": "clamp", "label": f"{mu}", "options": {"mu": mu}} for mu in (0.01, 1, 100)]
    run = relabelled(comparison(tmp_path / "run", TWO), methods)
    whole = rows(exhibit("Table 3"), run)
    kept = json.loads((run / "compare.json").read_text())
    kept["cells"].append({**kept["cells"][-1], "options": {}, "points": [], "seed": 7})
    write_json(run / "compare.json", kept)
    assert rows(exhibit("Table 3"), run) == whole


def test_figure_7_is_of_llama(sweep: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "run", THREE, divisions=3)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for name, there in (("Llama-3.1-8B-Instruct", 10), ("Qwen3-8B", 0), ("Llama-3.2-1B", 0)):
        recipe["model"]["name"] = f"org/{name}"
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert len(list(exhibit("Figure 7").rows(Found.read([run])))) == there


def test_bars_of_perplexities_begin_at_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a logarithmic scale, which has no zero; those about zero are on a plain one."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    for least in (1, None):
        bars = {"Base": {"Task 1": 322.9}, "CLAMP": {"Task 1": 323.1}}
        drawing.draw_bars(bars, tmp_path / "a.png", title="t", quantity="q", least=least)
    (of_logs,), (plain,) = (figure.axes for figure in drawn)
    assert of_logs.get_ylim()[0] == 1
    assert of_logs.get_ylim()[1] < 1000
    assert of_logs.get_yscale() == "log"
    assert plain.get_ylim()[0] == 0
    assert plain.get_yscale() == "linear"


def test_spokes_are_named_beyond_the_rim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    names = ["top", "right", "low right", "low left", "left"]
    lines = {"CLAMP": dict(zip(names, range(1, 6), strict=True))}
    drawing.draw_footprint(lines, tmp_path / "a.png", title="t", quantity="q")
    figure = drawn[0]
    figure.draw_without_rendering()
    (axes,) = figure.axes
    rim = axes.get_window_extent()
    boxes = {text.get_text(): text.get_window_extent() for text in axes.get_xticklabels()}
    middle = (rim.x0 + rim.x1) / 2
    reach = rim.width / 2 * np.sin(2 * np.pi / 5)
    assert boxes["right"].x0 >= middle + reach
    assert boxes["left"].x1 <= middle - reach


def test_a_run_without_anything_costs_the_others_nothing(
    sweep: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, begun = (sweep(tmp_path / name, TWO) for name in ("whole", "begun"))
    (begun / "front.json").unlink()
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "recipe.yaml").write_text(yaml.safe_dump({"task": {"name": "planted"}}))
    result = CliRunner().invoke(app, ["tables", *map(str, (begun, whole, planted))])
    assert result.exit_code == 0, result.output
    told = [
        f"'{begun}' has no results yet: run `paretune sweep {begun}/recipe.yaml`.",
        f"'{planted}' weighs sets of the user's own or planted ones, of which the papers have no "
        f"table: see {planted}/weigh.md.",
    ]
    assert result.stderr.splitlines()[:2] == told
    text = (tmp_path / "tables" / "tables.md").read_text()
    page = (tmp_path / "tables" / "tables.html").read_text()
    assert text.count("\n- ") == page.count("<p>&#39;") == 2
    assert "whole" in text
    with pytest.raises(InputError) as nothing:
        write_tables([begun, planted], tmp_path / "none")
    assert str(nothing.value).splitlines() == told
    assert not (tmp_path / "none").exists()
    for wrong in (tmp_path / "nothing", tmp_path):  # a mistake is none that can be left out
        with pytest.raises(InputError, match="folder"):
            write_tables([whole, wrong], tmp_path / "none")


@pytest.mark.slow
def test_the_command_writes_all_and_cuts_nothing(
    comparison: Make, sweep: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [
        comparison(tmp_path / "a_comparison_with_a_long_name", TWO),
        sweep(tmp_path / "three", THREE, divisions=3),
        make_weighing(tmp_path / "helpsteer"),
    ]
    result = CliRunner().invoke(app, ["tables", *map(str, runs)])
    assert result.exit_code == 0, result.output
    assert "…" not in result.output
    tables = [line for line in result.output.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(tables) > 50
    assert max(map(len, tables)) <= 120
    text = (tmp_path / "tables" / "tables.md").read_text()
    for exhibits in PAPERS.values():
        for each in exhibits:
            assert f"### {each.name}: " in text
    assert "No run here shows it. It needs a judged run" in text
    page = (tmp_path / "tables" / "tables.html").read_text()
    for picture in (tmp_path / "tables").glob("*.png"):
        assert f"({picture.name})" in text
        assert f'src="{picture.name}"' in page
    assert len(list((tmp_path / "tables").glob("clamp-figure-1*.png"))) == 2
    result = CliRunner().invoke(app, ["tables", str(tmp_path / "nothing")])
    assert result.exit_code != 0


def test_many_methods_differ_in_colour_and_marker() -> None:
    looks = figures.line_looks(40)
    first = looks[: len(figures.COLOURS)]
    assert len({look["color"] for look in first}) == len({look["marker"] for look in first}) >= 10
    assert len({(look["color"], look["marker"]) for look in looks}) == 40
    assert np.all([look["ls"] in ("-", "--", ":") for look in looks])
