"""A conditioned adapter in use: any preference, one adapter in memory, and what it may not be."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from paretune import cli
from paretune.errors import InputError
from paretune.experiment.weights import with_adapter
from paretune.files import read_json
from paretune.models import load_model_and_tokenizer
from paretune.moo.calibration import Calibration
from paretune.moo.gates import Gate
from paretune.moo.preference import Preference
from paretune.recipes import load_recipe
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics
from paretune.results.gates import write_gates
from paretune.serving import chat
from paretune.serving.choose import Candidate, open_run
from paretune.serving.export import export_run
from paretune.serving.fold import at_preferences, ends, folded, lower_rank, mixture
from paretune.training.gated_adapter import GatedAdapter, fold_adapter

NAMES = ("harmless", "helpful")
WEIGHTS = "adapter_model.safetensors"
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


def test_exported_points_are_the_gate_in_plain_peft(run: Path, tmp_path: Path) -> None:
    wanted = [{"harmless": p, "helpful": 1 - p} for p in (0.0, 0.37, 1.0)]
    choices = at_preferences(open_run(run), wanted)
    layout = export_run(choices, tmp_path / "out")
    assert list(layout.adapters) == [Preference.of(p).slug() for p in wanted]
    model, _ = load_model_and_tokenizer(choices.recipe.model.name)
    gated_model = with_adapter(model, run / "shared" / "conditioned-1-seed0")
    gated = GatedAdapter(gated_model, Gate(2))
    ids = torch.arange(5, 25)[None]
    for p, name in zip(wanted, layout.adapters, strict=True):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base")
        stock = PeftModel.from_pretrained(plain, tmp_path / "out" / "adapters" / name)
        with gated.at(CALIBRATION.position(list(p.values()))), torch.no_grad():
            expected = gated_model.eval()(ids).logits
            assert (stock.eval()(ids).logits - expected).abs().max() < 1e-5


def test_a_grid_of_points_with_a_lower_rank_for_llama_cpp(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--points", "3", "--rank", "2", "--gguf", "--to", str(out)]
    result = CliRunner().invoke(cli.app, ["export", str(run), *options])
    assert result.exit_code == 0, result.output
    names = [f"harmless{p:.2f}-helpful{1 - p:.2f}" for p in (0, 0.5, 1)]
    assert sorted(path.name for path in (out / "adapters").iterdir()) == names
    assert sorted(path.stem for path in (out / "gguf").iterdir()) == names
    assert f"{names[1]} at rank 2: its change of the weights is off by" in result.output
    assert read_json(out / "adapters" / names[0] / "adapter_config.json")["r"] == 2
    point = json.loads((out / "manifest.json").read_text(), parse_constant=pytest.fail)["points"][1]
    assert point["position"] == pytest.approx(CALIBRATION.position([0.5, 0.5]))
    assert point["metrics"]["helpful"]["accuracy"] is None  # not measured at this position
    readme = (out / "README.md").read_text()
    for words in ("--lora-scaled gguf/", '"lora": [{"id": 2, "scale": ', "vllm serve base"):
        assert words in readme


def test_what_has_no_dial_has_no_grid(run: Path, tmp_path: Path) -> None:
    choices = replace(open_run(run), dial=None)
    with pytest.raises(InputError, match="none for all preferences: --points needs"):
        at_preferences(choices, [], 3)
    both = [{"harmless": 1.0}, {"harmless": 0.99, "helpful": 0.01}, {"helpful": 1.0}]
    assert len(at_preferences(choices, both).candidates) == 2  # the trained ones, each once
    with pytest.raises(InputError, match="no objective 'harmles'"):
        at_preferences(choices, [{"harmles": 1.0}])


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """The change of each weight by the adapter in a folder, in float64."""
    config, state = read_json(folder / "adapter_config.json"), load_file(folder / WEIGHTS)
    return {
        name.replace(".lora_A.", "."): config["lora_alpha"]
        / config["r"]
        * (state[name.replace(".lora_A.", ".lora_B.")].double() @ state[name].double())
        for name in state
        if ".lora_A." in name
    }


def test_a_lower_rank_is_the_nearest_one(run: Path, tmp_path: Path) -> None:
    """Against the singular values of the whole matrices."""
    source = run / "shared" / "conditioned-1-seed0"
    fold_adapter(source, tmp_path / "whole", [0.3, 0.7])
    shutil.copytree(tmp_path / "whole", tmp_path / "low")
    error = lower_rank(tmp_path / "low", 2)
    whole, low = changes(tmp_path / "whole"), changes(tmp_path / "low")
    lost = total = 0.0
    for name, change in whole.items():
        values = torch.linalg.svdvals(change)
        assert (change - low[name]).square().sum() == pytest.approx(
            float(values[2:].square().sum()), rel=1e-4
        )
        lost, total = lost + float(values[2:].square().sum()), total + float(change.square().sum())
    assert error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert 0.05 < error < 1
    assert lower_rank(tmp_path / "low", 9) == 0


def test_ends_mix_to_every_position(run: Path, tmp_path: Path) -> None:
    choices = at_preferences(open_run(run), [], 3)
    corners = ends(choices)
    assert corners is not None
    scratch = folded(choices, tmp_path)
    by_name = {each.name: changes(each.folder) for each in scratch.candidates}
    scales = mixture(choices.candidates[1].position, corners)
    for name, change in by_name[choices.candidates[1].name].items():
        parts = (by_name[corner.name][name] for corner in corners)
        mixed = sum(scale * part for scale, part in zip(scales, parts, strict=True))
        assert torch.allclose(change, mixed, atol=1e-6)
    assert sum(scales) == pytest.approx(1)
    assert ends(open_run(run)) is None  # trained points have no positions
    same = (replace(choices.candidates[0], name="again"), choices.candidates[0])
    assert ends(replace(choices, candidates=same)) is None
