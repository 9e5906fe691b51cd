"""`paretune alpaca`: outputs of a point, stopped and resumed, and a table of win rates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paretune.cli import app
from paretune.errors import InputError
from paretune.evaluation.alpaca_eval import Instruction
from paretune.recipes import load_recipe
from paretune.runs.alpaca import find_point, generate_outputs
from paretune.runs.sweep import run_sweep
from paretune.serving.chat import ChatModel
from paretune.serving.choose import Choices, open_run

WORDS = ["red", "blue", "cat", "dog", "tea", "milk", "sun", "moon", "rain", "wind", "run"]
ASKED = [Instruction(" ".join(WORDS[k : k + 2 + k % 3]), "koala") for k in range(5)]


@pytest.fixture
def choices(tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]) -> Choices:
    """The run of one point of a random model."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {
            "prompt": f"{WORDS[row % 11]} {WORDS[row // 11]} why",
            "response_0": f"{WORDS[row % 7]} red",
            "response_1": f"{WORDS[row % 5]} blue",
            "better_response_id": row % 2,
            "safer_response_id": row // 2 % 2,
        }
        for row in range(20)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tiny.yaml").write_text(
        f"""
model: {{name: {tmp_path / "model"}}}
lora: {{r: 4, alpha: 8}}
data:
  loader: safe_rlhf
  path: {tmp_path / "pairs.jsonl"}
  objectives: [harmless, helpful]
  split: [0.6, 0.2, 0.2]
train: {{max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1e-1, use_cpu: true}}
sweep: {{preferences: [[0.2, 0.8]]}}
evaluation: {{n_prompts: 1, max_new_tokens: 6, temperature: 1.0, batch_size: 2}}
output_dir: {tmp_path / "run"}
"""
    )
    run_sweep(load_recipe(tmp_path / "tiny.yaml"))
    return open_run(tmp_path / "run")


@pytest.mark.slow
def test_generation_goes_on_where_it_was(choices: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
    point = find_point(choices, "harmless0.20-helpful0.80")
    assert point is not None
    told: list[tuple[int, int]] = []
    whole = generate_outputs(choices, point, ASKED, progress=lambda *done: told.append(done))
    assert told == [(n, 5) for n in range(6)]
    rows = json.loads(whole.path.read_text())
    assert [row["instruction"] for row in rows] == [asked.text for asked in ASKED]
    assert {row["generator"] for row in rows} == {"tiny-harmless0.20-helpful0.80"}
    assert whole.path.parent == choices.run / "alpaca_eval" / point.name
    answer = ChatModel(choices.recipe).answer([{"role": "user", "content": ASKED[0].text}], point)
    assert rows[0]["output"] == answer.response
    manifest = json.loads((whole.path.parent / "manifest.json").read_text())
    (session,) = manifest["sessions"]
    assert (session["answers"], session["generator"]) == (5, rows[0]["generator"])
    assert session["ended"] >= session["started"]
    assert "model.safetensors" in manifest["ground"]["model"]

    asked = ChatModel.answers
    counts: list[int] = []

    def counted(self: ChatModel, prompts: Any, by: Any, ended: Any) -> Any:
        counts.append(len(prompts))
        return asked(self, prompts, by, ended)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ChatModel, "answers", counted)
    with pytest.raises(KeyboardInterrupt):
        generate_outputs(choices, point, ASKED, fresh=True, progress=stop)
    assert not whole.path.exists()
    made = generate_outputs(choices, point, ASKED)
    assert counts == [5, 2]
    assert json.loads(made.path.read_text()) == rows
    again = generate_outputs(choices, point, ASKED[:3], generator="mine")
    assert counts == [5, 2]
    assert [row["generator"] for row in json.loads(again.path.read_text())] == ["mine"] * 3

    other = open_run(choices.run, ["evaluation.max_new_tokens=3"])
    with pytest.raises(InputError, match=r"other settings .max_new_tokens: 3, not 6"):
        generate_outputs(other, point, ASKED)
    base = generate_outputs(choices, find_point(choices, "base"), ASKED)
    assert [row["output"] for row in json.loads(base.path.read_text())] != [
        row["output"] for row in rows
    ]
    with pytest.raises(InputError, match=r"no point 'best': it has harm.*, base"):
        find_point(choices, "best")


def test_commands(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"q{i}",
            "output_1": "x" * (20 + 7 * i % 11),
            "output_2": "y" * (25 + 5 * i % 13),
            "generator_1": "gpt4",
            "generator_2": "[bold]mine",
            "preference": 1 + (i % 4) / 4,
        }
        for i in range(40)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    shown = CliRunner().invoke(app, ["alpaca", "score", str(path)])
    assert shown.exit_code == 0, shown.output
    for words in ("length_controlled_minimal", "[bold]mine", "37.50 ±", "10 / 10 / 20"):
        assert words in shown.output
    wrong = CliRunner().invoke(app, ["alpaca", "score", str(tmp_path / "absent.json")])
    assert isinstance(wrong.exception, InputError)
    both = ["--gamed", str(path), "--difficulty", str(path)]
    wrong = CliRunner().invoke(app, ["alpaca", "score", str(path), *both])
    assert "Give --gamed or --difficulty" in str(wrong.exception)
