"""The report: what a page holds, what it never holds, and the cards and figures beside it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from paretune.cli import app
from paretune.errors import InputError
from paretune.files import write_json
from paretune.report.comparison import markdown as comparison_markdown
from paretune.report.diagnostics import draw_steps, panels
from paretune.report.model_card import MARK, model_card, write_model_card
from paretune.report.page import render, write_figures
from paretune.report.page_data import embedded_json, page_data, shown_answers, shown_points
from paretune.report.tables import methods
from paretune.results.run_folder import Run, read_runs

TWO = ("harmless", "helpful")
CORNER = "points/harmless0.00-helpful1.00"
Make = Callable[..., Path]


class _Tags(HTMLParser):
    """Tags and attributes outside scripts, and the text of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, text: str) -> None:
        if self._in_script:
            self.scripts[-1] += text


def parsed(page: str) -> _Tags:
    parser = _Tags()
    parser.feed(page)
    return parser


def test_the_page_holds_the_run_and_loads_nothing(sweep: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "two", TWO, base=True)
    page = render(read_runs([run]))
    found = parsed(page)
    policy = next(a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert [tag for tag, _ in found.tags].count("script") == 3
    for _, attributes in found.tags:
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on")]
    for text in (
        "conflict rate of harmless and helpful",
        "25.0% of 50 common pairs",
        "not rated (N/A): harmless",
        f"paretune sweep {run}/recipe.yaml output_dir=runs/again",
        "org/base-1b",
        "Made in code &lt;i&gt;for tests&lt;/i&gt;.",
        "distinct-2",
    ):
        assert text in page
    assert len(page.encode()) < 8e6


@pytest.mark.slow
def test_one_adapter_for_all_p_is_a_curve(steerable: Make, tmp_path: Path) -> None:
    run = steerable(tmp_path / "dial", TWO)
    page = render(read_runs([run]))
    data = page_data(read_runs([run]))
    calibration = read_runs([run])[0].calibration("conditioned")
    dial = data["dial"]
    assert [p[0] for p in dial["grid"]] == [k / 100 for k in range(101)]
    (curve,) = dial["curves"]
    for p, gate, losses in list(zip(dial["grid"], curve["gate"], curve["losses"], strict=True))[
        ::9
    ]:
        assert gate == pytest.approx(calibration.position(p), abs=1e-4)
        assert losses == pytest.approx(calibration.losses_at(gate).tolist(), rel=1e-3)
    assert data["points"][0]["steps"]  # those of the one training
    for text in ("<h2>Any preference</h2>", "conditioned is one adapter for all p", "0.75, 0.25"):
        assert text in page
    assert all(f.exists() for f in write_figures(read_runs([run])[0]))
    shown = read_runs([run])[0]
    card = model_card(shown, "conditioned", shown.front.points[1])
    assert "one adapter with a gate was trained for every preference" in card
    assert "| gate | 0.25, 0.75 |" in card
    plain = page_data(read_runs([make_plain(run)]))
    assert plain["dial"] is None


def make_plain(run: Path) -> Path:
    """The run without its adapter for all p."""
    shutil.rmtree(run / "shared")
    return run


def test_model_outputs_reach_the_page_as_json_without_tags(sweep: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "two", TWO, divisions=2)
    page = render(read_runs([run]))
    assert "<script>alert" not in page
    assert "<img" not in page
    data = next(text for text in parsed(page).scripts if text.startswith('{"objectives"'))
    assert not set(data) & set("<>&\u2028\u2029")
    answer = json.loads(data)["points"][0]["answers"]["1"][0]
    lines = (run / CORNER / "answers.jsonl").read_text().split("\n")
    original = json.loads(lines[1])
    assert answer == original["response"]
    assert "<script>alert(1)</script>" in answer


def test_control_characters_reach_neither_page_nor_figure(sweep: Make, tmp_path: Path) -> None:
    from paretune.report.page import write_report

    run = sweep(tmp_path / "two", TWO, divisions=2)
    front = json.loads((run / "front.json").read_text())
    front |= {"name": "a\x1b[31mb", "method": "c\x1b[2Jd"}
    (run / "front.json").write_text(json.dumps(front))
    write_report([run])
    for path in (run / "report.html", run / "figures" / "front.svg"):
        assert "\x1b" not in path.read_text(), path


def test_json_without_numbers_that_json_has_not(sweep: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "two", TWO, divisions=2)
    front = json.loads((run / "front.json").read_text())
    front["points"][0]["metrics"]["helpful"]["loss"] = float("nan")
    (run / "front.json").write_text(json.dumps(front))
    data = json.loads(embedded_json(page_data(read_runs([run]))))
    assert data["points"][0]["values"]["loss"][1] is None
    assert data["points"][0]["best"]["loss"] is False
    assert render(read_runs([run]))


def test_answers_are_cut_to_the_room_there_is(sweep: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "two", TWO, divisions=2)
    points = shown_points(read_runs([run]))
    all_prompts, answers, total = shown_answers(points)
    assert (len(all_prompts), total) == (7, 7)
    assert [len(own) for own in answers] == [7, 7, 7]
    some, answers, total = shown_answers(points, room=1500)
    assert (len(some), total) == (2, 7)
    assert all(list(own) == [0, 1] for own in answers)
    assert some == all_prompts[:2]


@pytest.mark.slow
def test_a_page_of_long_answers_and_logs_stays_below_8_mb(sweep: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "two", TWO)
    for path in run.glob("points/*/answers.jsonl"):
        rows = [
            {"prompt": f"q{n}", "response": "<" * 40_000, "finished": True, "scores": {}}
            for n in range(20)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in run.glob("points/*/log.jsonl"):
        path.write_text(
            "".join(json.dumps({"step": n, "helpful/loss": 1 / 3}) + "\n" for n in range(20_000))
        )
    runs = read_runs([run])
    assert len(render(runs).encode()) < 8e6
    data = page_data(runs)
    assert len(data["prompts"]) == 1
    assert data["promptsInAll"] == 20
    assert data["stride"] == 3
    assert len(data["points"][0]["steps"][0]["curves"][0]["y"]) == 6667


def test_a_comparison_shows_methods_failures_and_the_base(comparison: Make, tmp_path: Path) -> None:
    page = render(read_runs([comparison(tmp_path / "cmp", TWO)]))
    for text in (
        "ε between fronts",
        "6 of 7",
        "no &lt;result&gt;",
        "base model",
        "paretune compare",
    ):
        assert text in page
    data = page_data(read_runs([tmp_path / "cmp"]))
    assert data["series"] == ["CLAMP", "PWG", "MODPO", "base model"]
    assert [p["best"]["loss"] for p in data["points"]] == 3 * [True] + 16 * [False]
    assert data["points"][-1]["base"]
    assert len(data["points"][-1]["answers"]) == 7


def test_a_comparison_tells_of_skipped_steps(comparison: Make, tmp_path: Path) -> None:
    run = comparison(tmp_path / "cmp", TWO)
    found = Run.read(run).comparison
    assert found is not None
    assert "skipped" not in comparison_markdown(found) + methods(found).to_markdown()
    found.cells[0].points[0].training["skipped_steps"] = 2
    assert "skipped steps" in comparison_markdown(found)
    rows = methods(found).to_markdown().splitlines()
    assert rows[0].endswith("skipped steps |")
    assert [row.rsplit("|", 2)[1].strip() for row in rows[2:]].count("2") == 1


def test_runs_side_by_side(sweep: Make, tmp_path: Path) -> None:
    one, two = sweep(tmp_path / "one", TWO), sweep(tmp_path / "two", TWO)
    assert page_data(read_runs([one, two, one]))["series"] == ["one: clamp", "two: clamp"]
    same = sweep(tmp_path / "other" / "one", TWO)
    assert page_data(read_runs([one, same]))["series"] == [f"{one}: clamp", f"{same}: clamp"]
    three = sweep(tmp_path / "three", ("a", "b", "c"), divisions=1)
    with pytest.raises(InputError, match=r"different objectives .*harmless, helpful; a, b, c"):
        read_runs([one, three])


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("recipe.yaml", None, "is not a run folder: it has no recipe.yaml"),
        ("recipe.yaml", "a: [", "not valid YAML"),
        ("recipe.yaml", "- a", "is not a recipe"),
        ("front.json", "{}", "damaged or of another version"),
        (f"{CORNER}/answers.jsonl", "[]", "line 1 is not a JSON object"),
        (f"{CORNER}/answers.jsonl", '{"prompt": 5, "response": "x"}', "does not hold answers"),
        (f"{CORNER}/log.jsonl", "{}\n{", "line 2 is not valid JSON"),
        ("judge/judge.json", "{}", "does not hold judged answers of this version"),
    ],
)
def test_what_is_missing_or_damaged_is_said(
    sweep: Make, tmp_path: Path, file: str, text: str | None, complaint: str
) -> None:
    run = sweep(tmp_path / "two", TWO, divisions=1)
    path = run / file
    if text is None:
        path.unlink()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        render(read_runs([run]))


def test_a_comparison_that_is_not_one(comparison: Make, tmp_path: Path) -> None:
    run = comparison(tmp_path / "cmp", TWO)
    (run / "compare.json").write_text("[]")
    with pytest.raises(InputError, match="no JSON object"):
        Run.read(run)
    (run / "compare.json").unlink()
    shutil.rmtree(run / "cells")
    with pytest.raises(InputError, match=r"no results yet: run `paretune compare .*recipe.yaml`\."):
        Run.read(run)


def test_runs_that_are_not_finished(sweep: Make, comparison: Make, tmp_path: Path) -> None:
    one = sweep(tmp_path / "one", TWO)
    whole = Run.read(one)
    assert whole.front is not None
    for point in whole.front.points[::2]:
        write_json(one / point.folder / "metrics.json", point.to_json())
    (one / "front.json").unlink()
    part = Run.read(one)
    assert part.front is not None
    assert [p.preference for p in part.front.points] == [
        p.preference for p in whole.front.points[::2]
    ]
    cmp = comparison(tmp_path / "cmp", TWO)
    run = Run.read(cmp)
    assert run.comparison is not None
    done = [point for _, point in run.points][:4]
    for point in done:
        write_json(cmp / point.folder / "metrics.json", point.to_json())
    (cmp / "compare.json").unlink()
    run = Run.read(cmp)
    assert [point.folder for _, point in run.points] == [point.folder for point in done]
    assert "3 of 3" not in (page := render([run]))
    assert "4 of 6" in page
    assert "0 of 6" in page
    recipe = yaml.safe_load((one / "recipe.yaml").read_text())
    del recipe["sweep"]
    (one / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match="does not hold a run of this version"):
        Run.read(one)


def test_judges(sweep: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "two", TWO, divisions=1)
    estimate = {"value": 12.34, "interval": [-1.0, 20.0]}
    judge = {
        "judge": {"model": "<b>judge", "where": "x", "settings": {}},
        "aspects": ["helpfulness"],
        "prompts": 5,
        "questions": 20,
        "counts": {"rated": 18, "not_applicable": 2},
        "asked": 20,
        "tokens": {"input": 0, "output": 0},
        "cost": None,
        "failures": {},
        "base": {"helpfulness": {"counts": {"rated": 5}, "mean": 2.5}},
        "rows": [
            {
                "title": "clamp",
                "preference": {"harmless": 0.5, "helpful": 0.5},
                "folders": ["x"],
                "aspects": {
                    "helpfulness": {
                        "counts": {"rated": 5},
                        "prompts": 5,
                        "mean": 3.0,
                        "base_mean": 2.5,
                        "percent": estimate,
                    }
                },
                "wins": {
                    "rate": {"value": 60.0, "interval": None},
                    "counts": {"win": 3},
                    "by_order": 0,
                },
            }
        ],
    }
    (run / "judge").mkdir()
    (run / "judge" / "judge.json").write_text(json.dumps({"judges": [judge]}))
    page = render(read_runs([run]))
    for text in (
        "Ratings by &lt;b&gt;judge",
        "20 questions: 18 rated, 2 N/A, on 5 prompts.",
        "+12.3 % [−1.0, +20.0]",
        "60.0 %",
    ):
        assert text in page


@pytest.mark.slow
def test_the_command(sweep: Make, comparison: Make, tmp_path: Path) -> None:
    run = sweep(tmp_path / "two", TWO, divisions=1, base=True)
    cmp = comparison(tmp_path / "cmp", TWO, seeds=(0,), divisions=2)
    result = CliRunner().invoke(app, ["report", str(run), str(cmp)])
    assert result.exit_code == 0, result.output
    assert f"Open {run}/report.html" in result.output
    assert not (cmp / "report.html").exists()
    assert sorted(path.name for path in (run / "figures").iterdir()) == sorted(
        f"{name}.{suffix}"
        for name in (
            *("front", "scores"),
            *("steps_harmless1.00-helpful0.00", "steps_harmless0.00-helpful1.00"),
        )
        for suffix in ("png", "svg")
    )
    assert (cmp / "figures" / "scores.svg").stat().st_size > 1000
    assert (cmp / "figures" / "steps_pwg-seed0_harmless0.50-helpful0.50.png").exists()
    assert len(list(cmp.glob("cells/*/points/*/README.md"))) == 3


def test_the_base_model_is_measured_where_it_is_asked_for(
    sweep: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweep(tmp_path / "two", TWO, divisions=1)
    known = sweep(tmp_path / "known", TWO, divisions=1, base=True)
    measured = []
    model = SimpleNamespace(name="smollm2-135m-instruct")
    monkeypatch.setattr(
        "paretune.runs.candidates.load_run", lambda path: SimpleNamespace(model=model)
    )
    monkeypatch.setattr(
        "paretune.runs.candidates.measure_base",
        lambda recipe, path, progress: measured.append(path),
    )
    monkeypatch.setattr("paretune.report.page.write_figures", lambda run: [])
    result = CliRunner().invoke(app, ["report", str(run), str(known), "--base"])
    assert result.exit_code == 0, result.output
    assert measured == [run]


def test_panels_of_a_log() -> None:
    log: list[dict[str, Any]] = [
        {"step": 1, "a/loss": 1.0, "lambda/a": 1.0, "clamp/mgda_term": 1e-3, "cosine/a|b": -0.5},
        {"step": 2, "a/loss": 0.5, "b/loss": 2.0, "clamp/chebyshev_term": 1.0},
        {"step": 2, "train_runtime": 3.0},
    ]
    found = {panel.title: panel for panel in panels(log, ("a", "b"))}
    assert list(found) == [
        "Training loss",
        "Multipliers λ*",
        "Both terms of Eq. (6)",
        "Gradient cosines",
    ]
    first, second = found["Training loss"].curves
    assert (first.objective, first.steps, first.values) == ("a", (1, 2), (1.0, 0.5))
    assert (second.steps, second.values) == ((2,), (2.0,))
    assert found["Both terms of Eq. (6)"].logarithmic
    assert found["Gradient cosines"].curves[0].label == "a | b"
    assert panels([], ("a", "b")) == []
    linear = [{"step": 1, "clamp/mgda_term": 1.0, "clamp/chebyshev_term": 0.0}]
    assert panels(linear, ("a", "b")) == []


@pytest.mark.slow
def test_steps_as_a_figure(sweep: Make, tmp_path: Path) -> None:
    run = Run.read(sweep(tmp_path / "two", TWO, divisions=1))
    found = panels(run.log(next(run.points)[1]), TWO)
    paths = [tmp_path / "steps.png", tmp_path / "steps.svg"]
    draw_steps(found, TWO, paths, title="one point")
    text = paths[1].read_text()
    for expected in ("Gradient cosines", "descent: ‖G(p∘λ*)‖²", "one point", "optimiser step"):
        assert f">{expected}<" in text
    assert paths[0].read_bytes().startswith(b"\x89PNG")


def test_model_card(sweep: Make, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = Run.read(sweep(tmp_path / "two", TWO, divisions=2, base=True))
    title, point = list(run.points)[1]
    text = model_card(run, title, point)
    header = ModelCard(text).data.to_dict()
    assert header["base_model"] == "org/base-1b"
    assert header["datasets"] == ["PKU-Alignment/PKU-SafeRLHF-10K"]
    assert header["library_name"] == "peft"
    assert set(TWO) < set(header["tags"])
    results = header["model-index"][0]["results"][0]["metrics"]
    assert results[0]["value"] == pytest.approx(point.metrics["harmless"].loss, abs=1e-6)
    for line in (
        "| preference p | harmless 0.5, helpful 0.5 |",
        "| normalisation: ideal losses | harmless 0.25, helpful 0.25 |",
        "| normalisation: nadir losses | none |",
        "| method | clamp, μ 100.0 |",
        "| ties: harmless | 7 |  |  |",
        "base in 8bit",
    ):
        assert line in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")
    assert "PeftModel.from_pretrained(base" in code[1]


def test_a_card_names_what_rewards_were_normalised_by(sweep: Make, tmp_path: Path) -> None:
    path = sweep(tmp_path / "two", TWO, divisions=1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["rewards"] = {"normalisation-harmless-0a1b": {"mean": 1.5, "std": 0.25}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    run = Run.read(path)
    title, point = next(run.points)
    assert "rewards" not in model_card(run, title, point)  # it did not use them
    used = {**point.training, "shared": ["normalisation-harmless-0a1b", "single-x"]}
    text = model_card(run, title, replace(point, training=used))
    assert "| normalisation: harmless rewards | mean 1.5, std 0.25 |" in text


def test_a_card_of_the_embedded_model_and_of_local_data(sweep: Make, tmp_path: Path) -> None:
    path = sweep(tmp_path / "two", TWO, divisions=1)
    recipe = yaml.safe_load((path / "recipe.yaml").read_text())
    recipe["model"] = {"name": "smollm2-135m-instruct"}
    recipe["data"] |= {"loader": "pairs", "path": "/home/me/pairs|<b>.jsonl"}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = Run.read(path)
    text = model_card(run, *next(run.points))
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in text
    assert "datasets:" not in text
    assert "from paretune.models import load_model_and_tokenizer" in text
    assert r"pairs\|&lt;b>.jsonl" in text
    recipe["model"] = {"name": "/home/me/models/tuned"}
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = Run.read(path)
    text = model_card(run, *next(run.points))
    assert 'from_pretrained("tuned", dtype="auto")' in text
    assert "base_model:" not in text
    assert "/home/me" not in text


def test_a_users_own_card_is_kept(sweep: Make, tmp_path: Path) -> None:
    run = Run.read(sweep(tmp_path / "two", TWO, divisions=1))
    title, point = next(run.points)
    path = write_model_card(run, title, point)
    assert path is not None
    path.write_text(f"old {MARK}")
    assert write_model_card(run, title, point) == path
    assert "## Limits" in path.read_text()
    path.write_text("mine")
    assert write_model_card(run, title, point) is None
    assert path.read_text() == "mine"
    path.unlink()
    (path.parent / "adapter_config.json").unlink()
    assert write_model_card(run, title, point) is None


@pytest.mark.slow
def test_one_objective_has_no_front_to_draw(sweep: Make, tmp_path: Path) -> None:
    from paretune.report.page import write_report

    run = tmp_path / "one"
    sweep(run, TWO, divisions=1)
    front = json.loads((run / "front.json").read_text())
    front["objectives"] = ["harmless"]
    front["reference_point"] = front["reference_point"][:1]
    for point in front["points"]:
        point["metrics"].pop("helpful")
        point["scores"].pop("helpful")
    (run / "front.json").write_text(json.dumps(front))
    write_report([run])
    assert not (run / "figures" / "front.png").exists()
    assert (run / "figures" / "steps_harmless1.00-helpful0.00.png").exists()


def test_no_name_is_markdown(comparison: Make, tmp_path: Path) -> None:
    """What a method, a run or a judge is called is text in every Markdown file."""
    hostile = "A | B <img src=x onerror=alert(1)>\n# heading `x` [y](z)"
    run = Run.read(comparison(tmp_path / "cmp", TWO))
    assert run.comparison is not None
    cells = [replace(cell, title=hostile, failure=hostile) for cell in run.comparison.cells]
    renamed = replace(run.comparison, name=hostile, cells=tuple(cells), epsilon={})
    point = next(point for _, point in run.points)
    title = run.comparison.titles[0]
    recipe = {**run.recipe, "model": {**run.recipe["model"], "quantization": hostile}}
    card = model_card(replace(run, name=hostile, split=hostile, recipe=recipe), title, point)
    for text in (comparison_markdown(renamed), card):
        assert "<img" not in text
        assert not [line for line in text.split("\n") if line.startswith("# heading")]
        assert "[y](z)" not in text
