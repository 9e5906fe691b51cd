"""A tiny model as judge: in this process, and behind an endpoint on loopback."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from paretune.judging.endpoint import EndpointJudge
from paretune.judging.local import LocalJudge
from paretune.judging.questions import Failure, Question, Reply
from paretune.judging.session import Wanted
from paretune.runs.candidates import base_answers, load_run, read_candidates
from paretune.runs.judge import judge_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, lasting_llama: Any) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "model"
    lasting_llama(max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def words(run: Path) -> list[tuple[str, str | None]]:
    (path,) = run.glob("judge/*/results.jsonl")
    rows = map(json.loads, path.read_text().splitlines())
    return [(row["status"], row["text"]) for row in rows]


@pytest.mark.slow
def test_a_served_model_judges_like_a_local_one(
    model: Path, serve: Any, run_folder: Any, reply: Any, tmp_path: Path
) -> None:
    from paretune.evaluation.generation import generate_answers
    from paretune.models import load_model_and_tokenizer

    run = run_folder(2, points=1)
    local = judge_run(run, LocalJudge(str(model), max_tokens=6), Wanted())
    assert local is not None
    assert local.asked == local.questions == 12
    assert local.counts == {"unparsable": 12}  # it knows no numbers
    assert local.tokens["input"] > 12 * 100
    alone = words(run)

    loaded, tokenizer = load_model_and_tokenizer(model)
    lock = threading.Lock()

    def answer(handler: Any, body: dict[str, Any], attempt: int) -> None:
        with lock:
            (made,) = generate_answers(
                loaded,
                tokenizer,
                [body["messages"]],
                max_new_tokens=body["max_tokens"],
                temperature=body["temperature"],
            )
        handler.succeed(body, reply(made.response))

    (run / "judge").rename(tmp_path / "judge")
    with serve(answer) as server:
        served = judge_run(run, EndpointJudge("tiny", server.url, max_tokens=6), Wanted())
        assert served is not None
        assert judge_run(run, EndpointJudge("tiny", server.url, max_tokens=6), Wanted()) is not None
        assert server.requests == 12
    assert words(run) == alone


def test_what_does_not_fit_is_a_failure(model: Path) -> None:
    outcomes: dict[str, Reply | Failure] = {}
    questions = [
        Question(name, ({"role": "user", "content": text},))
        for name, text in (("long", "red " * 1100), ("short", "red blue"))
    ]
    LocalJudge(str(model), max_tokens=4).ask(
        questions, lambda rows: outcomes.update((asked.key, outcome) for asked, outcome in rows)
    )
    assert isinstance(outcomes["short"], Reply)
    assert isinstance(outcomes["long"], Failure)
    assert "do not fit into a context of 1024" in outcomes["long"].reason


def test_the_base_model_answers_once(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {
            "prompt": f"red {'cat ' * row}",
            "response_0": "blue sun",
            "response_1": "moon",
            "better_response_id": row % 2,
            "safer_response_id": row // 2 % 2,
        }
        for row in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run / "recipe.yaml").write_text(
        f"""
model: {{name: {model}}}
lora: {{r: 2, alpha: 4}}
data:
  loader: safe_rlhf
  path: {tmp_path / "pairs.jsonl"}
  objectives: [harmless, helpful]
  split: [0.5, 0.2, 0.3]
train: {{per_device_eval_batch_size: 4, use_cpu: true}}
sweep: {{preferences: [[0.5, 0.5]]}}
evaluation: {{n_prompts: 2, max_new_tokens: 4}}
"""
    )
    recipe = load_run(run)
    base = base_answers(recipe, run)
    assert len(base) == 2
    assert sorted(path.name for path in (run / "base").iterdir()) == [
        "answers.jsonl",
        "metrics.json",
    ]
    before = (run / "base" / "answers.jsonl").stat().st_mtime_ns
    assert base_answers(recipe, run) == base
    assert (run / "base" / "answers.jsonl").stat().st_mtime_ns == before
    point = run / "points" / "harmless0.50-helpful0.50"
    point.mkdir(parents=True)
    (point / "answers.jsonl").write_bytes((run / "base" / "answers.jsonl").read_bytes())
    (candidate,) = read_candidates(recipe, run)
    assert candidate.answers == base
