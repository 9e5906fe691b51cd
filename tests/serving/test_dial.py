"""A conditioned adapter in use: any preference, one adapter in memory, and what it may not be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.moo.calibration import Calibration
from paretune.moo.gates import Gate
from paretune.recipes import load_recipe
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics
from paretune.results.gates import write_gates
from paretune.serving import chat
from paretune.serving.choose import Candidate, open_run
from paretune.training.gated_adapter import fold_adapter

NAMES = ("harmless", "helpful")
CALIBRATION = Calibration(
    np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]), np.array([[0.9, 0.2], [0.5, 0.3], [0.2, 0.8]])
)


@pytest.fixture
def run(tmp_path: Path, tokenizer: Any, tiny_llama: Any, tiny_lora: Callable[..., Any]) -> Path:
    """A run whose two points were folded from one conditioned adapter."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run = tmp_path / "run"
    (tmp_path / "tiny.yaml").write_text(
        f"""
model: {{name: {tmp_path / "model"}}}
data: {{loader: safe_rlhf, objectives: [harmless, helpful]}}
sweep: {{preferences: [[0.2, 0.8], [0.8, 0.2]]}}
evaluation: {{max_new_tokens: 6, temperature: 0.0}}
output_dir: {run}
"""
    )
    source = run / "shared" / "conditioned-1-seed0"
    tiny_lora().save_pretrained(source)
    write_gates(source, Gate(2), NAMES, CALIBRATION)
    points = []
    for weights in ((0.2, 0.8), (0.8, 0.2)):
        position = CALIBRATION.position(weights)
        folder = f"points/harmless{weights[0]:.2f}-helpful{weights[1]:.2f}"
        fold_adapter(source, run / folder, position)
        losses = zip(NAMES, CALIBRATION.losses_at(position).tolist(), strict=True)
        points.append(
            FrontPoint(
                preference=dict(zip(NAMES, weights, strict=True)),
                metrics={name: ObjectiveMetrics(loss, 0.5, 0.0) for name, loss in losses},
                chebyshev=0.1,
                folder=folder,
                training={
                    "shared": [source.name],
                    "position": dict(zip(NAMES, position, strict=True)),
                },
            )
        )
    (run / "recipe.yaml").write_text(load_recipe(tmp_path / "tiny.yaml").to_yaml())
    Front.of(points, name="tiny", method="conditioned").write(run / "front.json")
    return run


def test_any_preference_is_a_position_of_the_gate(run: Path) -> None:
    choices = open_run(run)
    shares, positions = np.linspace(0, 1, 9), []
    for share in shares:
        choice = choices.choose(choices.preference({"harmless": share, "helpful": 1 - share}))
        assert choice.best.position == CALIBRATION.position([share, 1 - share])
        assert "by the calibration" in choice.reason()
        positions.append(choice.best.position[0])
    assert np.all(np.diff(positions) > 0)


def test_the_dial_answers_as_the_folded_adapter_and_loads_nothing_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = open_run(run)
    attached, attach = [], chat.with_adapter
    monkeypatch.setattr(chat, "with_adapter", lambda *a: attached.append(a[1]) or attach(*a))
    speaker, stock = chat.ChatModel(choices.recipe), chat.ChatModel(choices.recipe)
    prompts = [[{"role": "user", "content": text}] for text in ("red cat", "sun moon", "tea")]
    answers = set()
    for share in (0.0, 0.37, 1.0, 0.37):
        preference = choices.preference({"harmless": share, "helpful": 1 - share})
        dialled = choices.choose(preference).best
        folder = tmp_path / f"folded{share}"
        fold_adapter(dialled.folder, folder, dialled.position)
        folded = Candidate(f"folded{share}", dialled.point, folder)
        found = [answer.response for answer in speaker.answers(prompts, dialled)]
        assert found == [answer.response for answer in stock.answers(prompts, folded)]
        answers.add(tuple(found))
    assert len(answers) > 1
    assert attached.count(dialled.folder) == 1
    assert speaker.answers(prompts, None) == stock.answers(prompts, None)


def test_a_gate_edited_by_hand_is_one_sentence(run: Path) -> None:
    (gates,) = run.glob("shared/*/gates.json")
    value = json.loads(gates.read_text())
    value["calibration"]["losses"][0][0] = "low"
    gates.write_text(json.dumps(value))
    choices = open_run(run)
    with pytest.raises(InputError, match="damaged"):
        choices.choose(choices.preference({}))
