"""Run folders: what is in them, what is done again, and what a kill leaves behind."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.errors import InputError
from paretune.recipes import Recipe, load_recipe
from paretune.results.front import Front
from paretune.runs.folder import RunFolder
from paretune.runs.plan import plan, warm_start
from paretune.runs.preparation import note_left_out
from paretune.runs.sweep import evaluate_run, run_sweep

WORDS = ["red", "blue", "cat", "dog", "tea", "milk", "sun", "moon", "rain", "wind", "run", "walk"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, lasting_llama: Any) -> Path:
    """A folder with a random model, a data file and a recipe; the recipe is `tiny.yaml`."""
    folder = tmp_path_factory.mktemp("tiny")
    small = lasting_llama(
        hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1
    )
    small.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    generator = torch.Generator().manual_seed(0)

    def text() -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (5,), generator=generator))

    rows = [
        {
            "prompt": f"{text()} {WORDS[row % 12]}",
            "response_0": f"{text()} red",
            "response_1": f"{text()} blue",
            "better_response_id": row % 2,
            "safer_response_id": row // 2 % 2,
        }
        for row in range(40)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tiny.yaml").write_text(
        f"""
model: {{name: {folder / "model"}}}
lora: {{r: 4, alpha: 8, dropout: 0.1}}
data:
  loader: safe_rlhf
  path: {folder / "pairs.jsonl"}
  objectives: [harmless, helpful]
  split: [0.6, 0.2, 0.2]
train:
  max_steps: 8
  per_device_train_batch_size: 4
  learning_rate: 1e-2
  save_steps: 2
  use_cpu: true
sweep: {{preferences: [[0.2, 0.8], [1, 0]]}}
evaluation: {{n_prompts: 3, max_new_tokens: 4, temperature: 1.0}}
"""
    )
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def finished(tiny: Path) -> Path:
    """The run folder of a sweep that nothing disturbed."""
    run = tiny / "finished"
    run_sweep(load_recipe(tiny / "tiny.yaml", [f"output_dir={run}"]))
    return run


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(*overrides: str) -> Recipe:
        return load_recipe(tiny / "tiny.yaml", [f"output_dir={tmp_path / 'run'}", *overrides])

    return make


def digests(run: Path) -> dict[str, str]:
    names = ("adapter_model.safetensors", "adapter_config.json", "answers.jsonl")
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.name in names
    }


@pytest.mark.slow
def test_the_run_folder(finished: Path, tiny: Path) -> None:
    names = sorted(path.name for path in finished.iterdir())
    assert names == ["front.json", "front.png", "manifest.json", "points", "recipe.yaml"]
    for point in plan(load_recipe(tiny / "tiny.yaml"), finished):
        assert sorted(path.name for path in point.folder(finished).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "answers.jsonl",
            "log.jsonl",
            "metrics.json",
            "training.json",
        ]
    log = (finished / "points/harmless0.20-helpful0.80/log.jsonl").read_text().splitlines()
    steps = [json.loads(row) for row in log if "lambda/helpful" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert not list(finished.rglob("*.partial"))
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["data"]["all"]["pairs"] == {"harmless": 40, "helpful": 40}
    assert manifest["sessions"][0]["torch"] == torch.__version__
    front = Front.read(finished / "front.json")
    assert front.objectives == ("harmless", "helpful")
    assert front.points[0].training["steps"] == 8
    assert front.points[0].metrics["helpful"].loss != front.points[1].metrics["helpful"].loss


@pytest.mark.slow
def test_what_trainings_left_out_is_in_the_manifest(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "manifest.json").write_bytes((finished / "manifest.json").read_bytes())
    front = Front.read(finished / "front.json")
    nothing = {"given": 24, "too_long": 0, "equal": 0, "cut": 0, "unread": {}, "unmatched": 0}
    assert front.points[0].training["pairs"] == {"harmless": nothing, "helpful": nothing}
    for point, unmatched in zip(front.points, (3, 5), strict=True):
        point.training["pairs"]["helpful"] |= {"too_long": 1, "unmatched": unmatched}
    note_left_out(front.points, RunFolder(tmp_path, None))
    train = json.loads((tmp_path / "manifest.json").read_text())["data"]["train"]
    assert (train["too_long"], train["unmatched"]) == ({"helpful": 1}, {"helpful": 5})
    assert "cut" not in train
    assert all(point.training["sampling"] == "joint" for point in front.points)
    front.points[0].training["rows"] = 12
    front.points[1].training["rows"] = 14
    with caplog.at_level("WARNING"):
        note_left_out(front.points, RunFolder(tmp_path, None))
    assert "12 to 14 rows" in caplog.text
    rows = json.loads((tmp_path / "manifest.json").read_text())["rows"]
    assert sorted(rows.values()) == [12, 14]


@pytest.mark.slow
def test_skipped_steps_stand_in_training_manifest_table_and_facts(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from paretune.cli.tables import front_table
    from paretune.report.tables import facts
    from paretune.training import MultiObjectiveTrainer

    combine, seen = MultiObjectiveTrainer._combine, [0]

    def poisoned(self: Any) -> Any:
        seen[0] += 1
        if seen[0] == 2:
            self.engine.bank.losses[0] = float("nan")
        return combine(self)

    monkeypatch.setattr(MultiObjectiveTrainer, "_combine", poisoned)
    few = ("train.max_steps=3", "evaluation.generate=false", "sweep.preferences=[[0.2, 0.8]]")
    loaded = recipe(*few)
    front = run_sweep(loaded)
    (point,) = front.points
    run = Path(loaded.output_dir)
    training = json.loads((run / point.folder / "training.json").read_text())
    assert (training["steps"], training["skipped_steps"]) == (3, 1)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["skipped_steps"] == {point.folder: 1}
    assert "skipped" in front_table(front).to_markdown()
    assert ("skipped steps", "1") in [(fact.name, fact.text) for fact in facts(point)]
    log = (run / point.folder / "log.jsonl").read_text()
    assert sum("nonfinite_steps" in row for row in log.splitlines()) == 1


def test_a_learning_rate_of_zero_is_refused(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(InputError, match=r"learning_rate.*above 0: with 0 no weight changes"):
        run_sweep(recipe("train.learning_rate=0.0"))


def test_adapters_load_with_peft_alone(finished: Path, tiny: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    ids = torch.arange(5, 15)[None]
    before = base(ids).logits
    model = PeftModel.from_pretrained(base, finished / "points/harmless1.00-helpful0.00")
    assert not torch.equal(model(ids).logits, before)


def test_a_finished_sweep_is_not_done_again_and_needs_no_torch(finished: Path, tiny: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    code = (
        "import sys\n"
        "from paretune.recipes import load_recipe\n"
        "from paretune.runs.sweep import run_sweep\n"
        f"run_sweep(load_recipe({str(tiny / 'tiny.yaml')!r}, ['output_dir={finished}']))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_a_killed_sweep_goes_on_bit_for_bit(
    finished: Path, tiny: Path, recipe: Callable[..., Recipe]
) -> None:
    run = Path(recipe().output_dir)
    command = [sys.executable, "-m", "paretune", "sweep", str(tiny / "tiny.yaml")]
    points = [point.folder(run) for point in plan(recipe(), run)]
    moments = [
        lambda: (points[0] / "checkpoints/checkpoint-2/paretune_state.json").exists(),
        lambda: (points[1] / "checkpoints/checkpoint-4").exists(),
    ]
    for moment in moments:
        process = subprocess.Popen(
            [*command, f"output_dir={run}"],
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while not moment():
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (run / "front.json").exists()
    assert (points[0] / "metrics.json").exists()
    stamp = (points[0] / "metrics.json").stat().st_mtime_ns
    run_sweep(recipe())
    assert digests(run) == digests(finished)
    assert (points[0] / "metrics.json").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in points[1].iterdir()) == sorted(
        path.name for path in (finished / "points/harmless1.00-helpful0.00").iterdir()
    )


@pytest.mark.slow
def test_workers_make_what_one_does(
    finished: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one of them killed as it begins to train, and a cache that nobody has filled."""
    run = tmp_path / "run"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = [str(tiny / "tiny.yaml"), f"output_dir={run}"]
    command = [sys.executable, "-m", "paretune", "sweep", *recipe, "--workers", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process: Any = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    while not (begun := list(run.glob("points/*/checkpoints"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    claim = next(run.glob(f"claims/points.{begun[0].parent.name}.*"))
    os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "ended by SIGKILL" in errors
    assert "worker 2: " in errors
    assert printed.count("hypervolume") == 1
    assert digests(run) == digests(finished)
    fronts = [Front.read(folder / "front.json") for folder in (run, finished)]
    assert fronts[0].hypervolume == fronts[1].hypervolume  # seconds differ
    assert not (run / "claims").exists()
    scored = (tmp_path / "cache" / "paretune" / "reference").rglob("000000000.safetensors")
    assert len(list(scored)) == 2  # of training and test: this recipe has no evaluations between
    assert not list(tmp_path.rglob("*.claim.*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["paretune.experiment.train_point._save", "paretune.runs.point._measure"]
)
def test_stopped_between_training_and_metrics(
    name: str, finished: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(name, stop)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(recipe())
    front = run_sweep(recipe())
    run = Path(recipe().output_dir)
    assert digests(run) == digests(finished)
    whole = Front.read(finished / "front.json")
    assert [p.losses for p in front.points] == [p.losses for p in whole.points]


@pytest.mark.slow
def test_a_single_objective_is_what_its_weight_says(
    finished: Path, recipe: Callable[..., Recipe]
) -> None:
    alone = recipe("sweep.preferences=[[1, 0]]", "method.name=linear")
    run_sweep(alone)
    adapter = "points/harmless1.00-helpful0.00/adapter_model.safetensors"
    assert digests(Path(alone.output_dir))[adapter] == digests(finished)[adapter]


@pytest.mark.slow
def test_another_recipe_is_refused_until_fresh(recipe: Callable[..., Recipe]) -> None:
    short = ("sweep.preferences=[[1, 0]]", "train.max_steps=1", "evaluation.generate=false")
    run_sweep(recipe(*short))
    with pytest.raises(InputError, match=r"train\.max_steps: 2, not 1.*--fresh"):
        run_sweep(recipe(*short, "train.max_steps=2"))
    run = Path(recipe().output_dir)
    (run / "mine.txt").write_text("not the run's")
    front = run_sweep(recipe(*short, "train.max_steps=2"), fresh=True)
    assert front.points[0].training["steps"] == 2
    assert not (run / "points/harmless1.00-helpful0.00/answers.jsonl").exists()
    assert (run / "mine.txt").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_recipe_of_the_users_own_is_not_overwritten(
    recipe: Callable[..., Recipe], tmp_path: Path, fresh: bool
) -> None:
    own = tmp_path / "here" / "recipe.yaml"
    own.parent.mkdir()
    own.write_text("base: demo\n", encoding="utf-8")
    with pytest.raises(InputError, match="not a run folder"):
        run_sweep(recipe(f"output_dir={own.parent}"), fresh=fresh)
    assert own.read_text(encoding="utf-8") == "base: demo\n"


def test_a_recipe_that_could_not_begin_claims_no_folder(recipe: Callable[..., Recipe]) -> None:
    for wrong in ("train.learning_rat=1", "data.path=absent.jsonl", "model.name=./absent"):
        with pytest.raises(InputError):
            run_sweep(recipe(wrong))


@pytest.mark.slow
def test_evaluate_another_split(finished: Path, tiny: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml")
    target = finished / "evaluation-validation"
    front = evaluate_run(recipe, finished, "validation", target=target)
    test = Front.read(finished / "front.json")
    assert front.split == "validation"
    assert front.points[0].losses != test.points[0].losses
    assert front.points[0].preference == test.points[0].preference
    assert Front.read(target / "front.json") == front
    again = load_recipe(finished / "recipe.yaml", ["evaluation.n_prompts=1"])
    with pytest.raises(InputError, match=r"evaluation\.n_prompts: 1, not 3"):
        evaluate_run(again, finished, "validation", target=target)
    assert evaluate_run(recipe, finished) == test
    for idle in ("train.learning_rate=0.5", "lora.r=3", "method.mu=3", "sweep.warm_start=true"):
        again = load_recipe(finished / "recipe.yaml", [idle])
        with pytest.raises(InputError, match=f"^{idle.partition('=')[0]} belongs to the training"):
            evaluate_run(again, finished, target=finished / "evaluation-idle")
    assert not (finished / "evaluation-idle").exists()
    with pytest.raises(InputError, match="no trained point"):
        evaluate_run(recipe, tiny / "absent")


@pytest.mark.slow
def test_evaluating_anew_gives_the_same(finished: Path, tmp_path: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml")
    front = evaluate_run(recipe, finished, "test", target=tmp_path / "again")
    assert [p.metrics for p in front.points] == [
        p.metrics for p in Front.read(finished / "front.json").points
    ]


@pytest.mark.slow
def test_full_fine_tuning_with_warm_start_and_seeds(recipe: Callable[..., Recipe]) -> None:
    from transformers import AutoModelForCausalLM

    loaded = recipe(
        "lora=null",
        "sweep.warm_start=true",
        "sweep.seeds=[0, 1]",
        "train.max_steps=1",
        "train.lr_scheduler_type=constant",
        "train.gradients=per_objective",
    )
    front = run_sweep(loaded)
    run = Path(loaded.output_dir)
    assert [p.folder for p in front.points] == [
        f"points/{slug}-seed{seed}"
        for seed in (0, 1)
        for slug in ("harmless0.20-helpful0.80", "harmless1.00-helpful0.00")
    ]
    first, second = (
        AutoModelForCausalLM.from_pretrained(run / p.folder).state_dict() for p in front.points[:2]
    )
    base = AutoModelForCausalLM.from_pretrained(loaded.model.name).state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    # One step of Adam from the first point, not from the base model.
    assert (second[name] - first[name]).abs().max() < 1.1e-2
    assert (second[name] - base[name]).abs().max() > 1.5e-2
    assert all(torch.isfinite(torch.tensor(list(p.losses.values()))).all() for p in front.points)


def test_warm_start_is_the_nearest_earlier_point(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    asked = "sweep.preferences=[[0.5, 0.5], [1, 0], [0, 1], [0.9, 0.1]]"
    planned = plan(recipe(asked, "sweep.seeds=[0, 1]"), tmp_path)
    starts = [warm_start(point, planned) for point in planned]
    names = [start and planned.index(start) for start in starts]
    assert names == [None, 0, 0, 1, None, 4, 4, 5]


@pytest.mark.slow
def test_a_run_stands_on_the_data_and_model_it_was_begun_with(tiny: Path, tmp_path: Path) -> None:
    """Whatever changes between two sessions is named, and put back the run resumes."""
    for name in ("model", "pairs.jsonl", "tiny.yaml"):
        copy = shutil.copytree if (tiny / name).is_dir() else shutil.copy
        copy(tiny / name, tmp_path / name)
    text = (tmp_path / "tiny.yaml").read_text().replace(str(tiny), str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(text)
    short = ("sweep.preferences=[[1, 0]]", "train.max_steps=1", "evaluation.generate=false")
    loaded = load_recipe(tmp_path / "tiny.yaml", [f"output_dir={tmp_path / 'run'}", *short])
    run_sweep(loaded)
    metrics = tmp_path / "run/points/harmless1.00-helpful0.00/metrics.json"
    before = json.loads(metrics.read_text())["metrics"]
    metrics.unlink()
    swap = ("response_0", "response_1")
    changes = {
        "pairs.jsonl": (lambda t: t.replace(swap[0], "x").replace(swap[1], swap[0]), "data of"),
        "model/config.json": (lambda t: t.replace('"silu"', '"relu"'), "'config.json'"),
        "model/chat_template.jinja": (lambda t: t + "!", "'chat_template.jinja'"),
        "model/tokenizer.json": (lambda t: t.replace('"maybe"', '"perhaps"'), "'tokenizer.json'"),
    }
    for name, (change, words) in changes.items():
        whole = (tmp_path / name).read_text()
        changed = change(whole).replace('"x"', '"response_1"')
        assert changed != whole
        (tmp_path / name).write_text(changed)
        for session in (run_sweep, lambda r: evaluate_run(r, tmp_path / "run", "validation")):
            with pytest.raises(InputError, match=words):
                session(loaded)
        assert not metrics.exists()
        (tmp_path / name).write_text(whole)
    run_sweep(loaded)
    assert json.loads(metrics.read_text())["metrics"] == before
