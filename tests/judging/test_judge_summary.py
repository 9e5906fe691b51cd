"""From replies to figures: caches, improvements, wins, tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.claims import held
from paretune.errors import InputError
from paretune.judging.endpoint import EndpointJudge
from paretune.judging.parsing import Rating
from paretune.judging.questions import Cache, Failure, Question, Reply, question
from paretune.judging.session import Wanted
from paretune.judging.summary import Summary, bootstrap, improvement, wins
from paretune.report.judge_figure import draw_judges
from paretune.report.judges import markdown
from paretune.runs.candidates import base_answers, load_run, read_candidates
from paretune.runs.judge import Forecast, Prices, judge_run, slug


def rated(values: list[float | None]) -> dict[str, Rating]:
    return {
        f"prompt {n}": Rating("not_applicable") if value is None else Rating("rated", value)
        for n, value in enumerate(values)
    }


def test_improvement_is_of_prompts_that_both_have() -> None:
    result = improvement([rated([4, 5, None, 3])], rated([2, 4, 1, None]))
    assert result.prompts == 2
    assert (result.mean, result.base_mean) == (4.5, 3.0)
    assert result.percent is not None
    assert result.percent.value == pytest.approx(50)
    assert result.counts == {"rated": 3, "not_applicable": 1}
    seeds = improvement([rated([4, 5]), rated([2, None])], rated([2, 4]))
    assert seeds.mean == 4.0  # (3 + 5) / 2
    assert improvement([rated([None])], rated([3])).percent is None
    alone = improvement([rated([4])], rated([2])).percent
    assert alone is not None
    assert alone.interval is None


def test_intervals_agree_with_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(1)
    base = rng.integers(1, 6, 80).astype(float)
    ours = np.clip(base + rng.integers(-1, 3, 80), 1, 5)

    def percent(a: Any, b: Any, axis: int = -1) -> Any:
        return 100 * (a.mean(axis=axis) / b.mean(axis=axis) - 1)

    estimate = bootstrap(percent, ours, base)
    theirs = stats.bootstrap(
        (ours, base), percent, paired=True, method="percentile", n_resamples=20000, rng=rng
    ).confidence_interval
    assert estimate.value == pytest.approx(percent(ours, base))
    assert estimate.interval == pytest.approx((theirs.low, theirs.high), rel=0.06)
    assert bootstrap(percent, ours, base) == estimate


def test_wins_do_not_depend_on_the_order() -> None:
    verdicts = {
        "a": ("A", "B"),
        "b": ("B", "A"),
        "c": ("A", "A"),
        "d": ("B", "B"),
        "e": ("tie", "tie"),
        "f": ("A", "tie"),
        "g": ("tie", "A"),
        "h": ("A", None),
        "i": None,
    }
    result = wins([verdicts])  # type: ignore[list-item]
    assert result.counts == {
        "win": 1,
        "loss": 1,
        "tie": 3,
        "half_win": 1,
        "half_loss": 1,
        "left_out": 1,
        "identical": 1,
    }
    assert result.by_order == 2
    assert result.rate is not None
    assert result.rate.value == pytest.approx(50)
    assert wins([{}]).rate is None


@pytest.mark.slow
def test_a_judge_of_places_gives_a_tie(serve: Any, run_folder: Any, reply: Any) -> None:
    run = run_folder(6, points=1)
    wanted = Wanted(aspects=(), pairs=True)
    with serve(lambda h, body, n: h.succeed(body, reply("Verdict: A"))) as server:
        summary = judge_run(run, EndpointJudge("by-place", server.url), wanted)
    assert summary is not None
    (row,) = summary.rows
    assert row.wins is not None
    assert row.wins.rate is not None
    assert (row.wins.rate.value, row.wins.by_order) == (50.0, 6)

    def prefer(handler: Any, body: dict[str, Any], attempt: int) -> None:
        text = body["messages"][1]["content"]
        own_first = text.index("concise0.80") < text.index("\nbase ")
        handler.succeed(body, reply(f"Verdict: {'A' if own_first else 'B'}"))

    with serve(prefer) as server:
        summary = judge_run(run, EndpointJudge("by-answer", server.url), wanted)
    assert summary is not None
    assert summary.rows[0].wins is not None
    assert summary.rows[0].wins.counts == {"win": 6}
    sessions = json.loads((run / "judge" / "manifest.json").read_text())["sessions"]
    assert [each["judge"] for each in sessions] == ["by-place", "by-answer"]
    assert all(each["asked"] and each["ended"] for each in sessions)
    shown = (run / "judge" / "judge.md").read_text()
    assert "## by-place" in shown
    assert "## by-answer" in shown
    assert "100.0 % [100.0, 100.0]" in shown


@pytest.mark.slow
def test_equal_answers_are_asked_once(serve: Any, run_folder: Any, reply: Any) -> None:
    run = run_folder(3, points=2)
    points = sorted((run / "points").iterdir())
    for point in points:  # both points, and the base model, say the same
        (point / "answers.jsonl").write_bytes((run / "base" / "answers.jsonl").read_bytes())
    with serve(lambda h, body, n: h.succeed(body, reply("Rating: 2"))) as server:
        judge = EndpointJudge("m", server.url)
        summary = judge_run(run, judge, Wanted(pairs=True), prices=Prices(1.0, 2.0))
        assert summary is not None
        assert server.requests == summary.questions == 3 * 3
        assert summary.cost == pytest.approx((90 * 1 + 45 * 2) / 1e6)
        assert summary.rows[0].wins is not None
        assert summary.rows[0].wins.counts == {"identical": 3}
        # Another setting is another question; fewer prompts are not.
        seen: list[Forecast] = []
        other = EndpointJudge("m", server.url, temperature=0.5)
        judge_run(run, other, Wanted(), confirm=lambda forecast: bool(seen.append(forecast)))
        assert (seen[0].questions, seen[0].kept) == (9, 0)
        assert judge_run(run, judge, Wanted(prompts=2)) is not None
        assert server.requests == 9
    results = (run / "judge" / "m" / "results.jsonl").read_text().splitlines()
    first = json.loads(results[0])
    assert first["folder"] == "base"
    assert (first["status"], first["value"], first["text"]) == ("rated", 2.0, "Rating: 2")


def test_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    first, second = Question("a", ()), Question("b", ())
    with Cache(tmp_path).writing() as keep:
        keep([(first, Reply("Rating: 1\u2028é\n", "stop", 1, 2)), (second, Reply("x"))])
        keep([(first, Failure("HTTP 500"))])
        with pytest.raises(InputError, match="Another process is adding"):
            Cache(tmp_path).read()
    assert Cache(tmp_path).failures() == ["HTTP 500"]
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert len(Cache(tmp_path).read()) == whole[:cut].count(b"\n")
        assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1]
    path.write_bytes(whole)
    assert Cache(tmp_path).read().get("a") == Reply("Rating: 1\u2028é\n", "stop", 1, 2)
    path.write_bytes(b'{"key": 1}\n' + whole)
    with pytest.raises(InputError, match=r"replies.jsonl', line 1 is no reply"):
        Cache(tmp_path).read()


def test_a_key_is_of_prompt_judge_and_settings() -> None:
    messages = [{"role": "user", "content": "x"}]
    judges = [
        EndpointJudge("m", "http://localhost/v1"),
        EndpointJudge("n", "http://localhost/v1"),
        EndpointJudge("m", "http://127.0.0.1/v1"),
        EndpointJudge("m", "http://localhost/v1", temperature=1.0),
        EndpointJudge("m", "http://localhost/v1", max_tokens=5),
        EndpointJudge("m", "http://localhost/v1", options={"seed": 1}),
    ]
    keys = [question(judge, messages).key for judge in judges]
    assert len(set(keys)) == len(keys)
    # How fast it is asked, and with which key, changes nothing.
    same = EndpointJudge("m", "http://localhost/v1/", "key", concurrency=1, timeout=5, attempts=1)
    assert question(same, messages).key == keys[0]


def test_a_comparison_is_judged(serve: Any, tmp_path: Path, reply: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(
        """
model: {name: smollm2-135m-instruct}
data: {loader: demo, objectives: [concise, informative]}
sweep: {preferences: [[0.8, 0.2]], seeds: [0, 1]}
methods: [{name: clamp, label: "CLAMP | *new*"}, {name: modpo, seeds: [0]}]
"""
    )

    def write(folder: str, word: str) -> None:
        path = run / folder / "answers.jsonl"
        path.parent.mkdir(parents=True)
        rows = ({"prompt": f"p{n}", "response": f"{word} {n}"} for n in range(3))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    for folder in ("clamp-new-seed0", "clamp-new-seed1", "modpo-seed0"):
        write(f"cells/{folder}/points/concise0.80-informative0.20", folder)
    write("base", "base")

    def answer(handler: Any, body: dict[str, Any], attempt: int) -> None:
        text = body["messages"][1]["content"]
        better = 4 if "seed0" in text else 3 if "seed1" in text else 2
        handler.succeed(body, reply(f"Rating: {better}"))

    with serve(answer) as server:
        summary = judge_run(run, EndpointJudge("m", server.url), Wanted())
    assert summary is not None
    assert summary.counts == {"rated": 3 * 4 * 3}
    clamp, modpo = summary.rows
    assert clamp.title == "CLAMP | *new*"
    assert len(clamp.folders) == 2
    percents = [row.aspects["honesty"].percent for row in (clamp, modpo)]
    assert [percent and percent.value for percent in percents] == [75.0, 100.0]
    shown = (run / "judge" / "judge.md").read_text()
    assert r"| CLAMP \| \*new\* | (0.8, 0.2) |" in shown
    assert (run / "judge" / "judge.png").stat().st_size > 5000


def test_judge_run_folders(tmp_path: Path, run_folder: Any) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        load_run(tmp_path)
    run = run_folder(2)
    recipe = load_run(run)
    assert [c.folder for c in read_candidates(recipe, run)] == [
        "points/concise0.80-informative0.20",
        "points/concise0.20-informative0.80",
    ]
    (run / "base" / "answers.jsonl").write_text('{"prompt": "other", "response": "x"}\n')
    judge = EndpointJudge("m", "http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="answered other prompts"):
        judge_run(run, judge, Wanted())
    (run / "base" / "answers.jsonl").write_text('{"prompt": "other"}\n')
    with pytest.raises(InputError, match="line 1: not an answer"):
        base_answers(recipe, run)
    for path in run.glob("points/*/answers.jsonl"):
        path.unlink()
    with pytest.raises(InputError, match="no answers to judge"):
        judge_run(run, judge, Wanted())


def test_one_process_at_a_time(run_folder: Any) -> None:

    run = run_folder(2)
    (run / "judge").mkdir()
    with (
        held(run / "judge" / "claims" / "folder"),
        pytest.raises(InputError, match=r"is at work in .*judge"),
    ):
        judge_run(run, EndpointJudge("m", "http://127.0.0.1:9/v1"), Wanted())


def test_slugs() -> None:
    assert slug("meta-llama/Llama-3.2-1B") == "meta-llama-llama-3.2-1b"
    assert slug("../../x") == "x"
    assert slug("..") == "judge"


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    judged = {
        "judge": {"model": "<b>m</b>", "where": "x", "settings": {}},
        "aspects": ["honesty"],
        "prompts": 1,
        "questions": 1,
        "counts": {"failed": 1},
        "asked": 1,
        "tokens": {"input": 0, "output": 0},
        "cost": None,
        "failures": {"<script>": 1},
        "base": {"honesty": {"counts": {}, "mean": None}},
        "rows": [
            {
                "title": "t",
                "preference": {"a": 1.0},
                "folders": [],
                "aspects": {
                    "honesty": {
                        "counts": {},
                        "prompts": 0,
                        "mean": None,
                        "base_mean": None,
                        "percent": None,
                    }
                },
                "wins": None,
            }
        ],
    }
    summary = Summary.from_json(judged)
    assert Summary.from_json(json.loads(json.dumps(summary.to_json()))) == summary
    text = markdown([summary])
    assert "## &lt;b>m&lt;/b>" in text
    assert "1 × &lt;script>" in text
    draw_judges([summary], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
