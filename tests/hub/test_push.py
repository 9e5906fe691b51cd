"""`paretune push` with the real client of the hub, against a hub on the loopback."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL = FIXTURES / "tiny" / "model"
POINTS = ("harmless0.20-helpful0.80", "harmless1.00-helpful0.00")
BASE = "me/tiny"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "run_0_1", tmp_path / "run"))


@pytest.fixture
def base(hub: Any) -> Any:
    """The tiny model, on the hub."""
    hub.add_model(BASE, MODEL)


def sentence(done: Any) -> str:
    """The one line with which a command refuses."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


LOADS = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base_id, repo, subfolder, local = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(base_id)("red cat blue", return_tensors="pt")["input_ids"]

def logits(place, **more):
    base = AutoModelForCausalLM.from_pretrained(base_id)
    model = PeftModel.from_pretrained(base, place, **more)
    return model(ids).logits

there = logits(repo, subfolder=subfolder) if subfolder else logits(repo)
torch.testing.assert_close(there, logits(local), rtol=0, atol=0)
print("equal")
"""


@pytest.mark.slow
def test_one_repository_with_a_folder_a_point(hub: Any, base: Any, run: Path) -> None:
    done = hub.paretune(run.parent, "push", "run", "--repo", "me/front", "--base", BASE)
    assert done.returncode == 0, done.stderr
    assert "me/front (private): 9 files" in done.stdout
    repo = hub.models["me/front"]
    assert repo.private
    assert repo.messages == ["tiny: clamp"]
    each = ("README.md", "adapter_config.json", "adapter_model.safetensors")
    inside = {f"{point}/{name}" for point in POINTS for name in each}
    more = {".gitattributes", "README.md", "front.json", "front.png"}
    assert set(repo.files) == inside | more
    for path, content in repo.files.items():
        if not path.endswith((".safetensors", ".png")):  # nothing tells of this machine's folders
            assert b"/fixtures" not in content
            assert str(run).encode() not in content
    config = json.loads(repo.files[f"{POINTS[0]}/adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE
    card = repo.files[f"{POINTS[0]}/README.md"].decode()
    assert f'PeftModel.from_pretrained(base, "me/front", subfolder="{POINTS[0]}")' in card
    assert f"base_model: {BASE}" in card
    front = repo.files["README.md"].decode()
    assert "![The front: harmless, helpful](front.png)" in front
    assert all(f"| {point} |" in front for point in POINTS)

    for point in POINTS:
        local = str(run / "points" / point)
        loaded = hub.run(run.parent, LOADS, BASE, "me/front", point, local)
        assert loaded.stdout.strip().endswith("equal"), loaded.stderr

    again = hub.paretune(run.parent, "push", "run", "--repo", "me/front", "--base", BASE)
    assert again.returncode == 0, again.stderr
    assert repo.messages == ["tiny: clamp"]  # nothing has changed


@pytest.mark.slow
def test_a_repository_for_each_point(hub: Any, base: Any, run: Path) -> None:
    command = ["push", "run", "--repo", "me/front", "--each", "--public", "--base", BASE]
    done = hub.paretune(run.parent, *command)
    assert done.returncode == 0, done.stderr
    for point in POINTS:
        repo = hub.models[f"me/front-{point}"]
        assert not repo.private
        files = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
        assert set(repo.files) == {".gitattributes", *files}
        local = str(run / "points" / point)
        loaded = hub.run(run.parent, LOADS, BASE, f"me/front-{point}", "", local)
        assert loaded.stdout.strip().endswith("equal"), loaded.stderr
    assert "me/front" not in hub.models


@pytest.mark.slow
def test_what_was_pushed_is_replaced(hub: Any, base: Any, run: Path) -> None:
    command = ["push", "run", "--repo", "me/front", "--base", BASE]
    assert hub.paretune(run.parent, *command).returncode == 0
    front = json.loads((run / "front.json").read_text())
    front["points"] = front["points"][:1]
    (run / "front.json").write_text(json.dumps(front))
    (run / "points" / POINTS[0] / "README.md").write_text("My own words.")
    done = hub.paretune(run.parent, *command)
    assert done.returncode == 0, done.stderr
    repo = hub.models["me/front"]
    assert len(repo.messages) == 2
    assert not any(path.startswith(POINTS[1]) for path in repo.files)
    assert repo.files[f"{POINTS[0]}/README.md"] == b"My own words."


@pytest.mark.slow
def test_what_is_refused_is_a_sentence(hub: Any, base: Any, run: Path) -> None:
    def push(repo: str, *more: str, token: str | None = "hf_local", **settings: str) -> str:
        command = ["push", "run", "--repo", repo, *more]
        return sentence(hub.paretune(run.parent, *command, token=token, **settings))

    assert push("front").startswith("'front' is no name on the hub: write OWNER/NAME.")
    assert "give its id with --base" in push("me/front")
    known = ("--base", BASE)
    assert "run `hf auth login`" in push("me/front", *known, token=None)
    assert "offline mode is enabled" in push("me/front", *known, HF_HUB_OFFLINE="1")
    assert "You don't have the rights" in push("you/front", *known)
    assert "Invalid username" in push("me/front", *known, token="hf_other")
    hub.add_model("me/open", MODEL, private=False)
    assert push("me/open", *known).startswith("Everybody can read 'me/open'")
    hub.add_model("me/other", MODEL, private=True)
    assert push("me/other", *known).startswith("'me/other' holds something")
    adapter = run / "points" / POINTS[0] / "adapter_model.safetensors"
    training = adapter.with_name("training.json")
    record = json.loads(training.read_text()) | {"sha256": {adapter.name: "0" * 64}}
    training.write_text(json.dumps(record))
    assert "is damaged" in push("me/front", *known)
    assert "me/front" not in hub.models


@pytest.mark.slow
def test_whole_models_are_pushed_with_their_tokenizers(hub: Any, run: Path) -> None:
    for point in POINTS:
        folder = run / "points" / point
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).unlink()
        shutil.copytree(MODEL, folder, dirs_exist_ok=True)
        training = folder / "training.json"
        record = {k: v for k, v in json.loads(training.read_text()).items() if k != "sha256"}
        training.write_text(json.dumps(record))
    done = hub.paretune(run.parent, "push", "run", "--repo", "me/whole")
    assert done.returncode == 0, done.stderr
    code = f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
place = dict(pretrained_model_name_or_path="me/whole", subfolder="{POINTS[0]}")
AutoModelForCausalLM.from_pretrained(**place)
assert AutoTokenizer.from_pretrained(**place).chat_template
print("loaded")
"""
    loaded = hub.run(run.parent, code)
    assert loaded.stdout.strip().endswith("loaded"), loaded.stderr


def test_a_sweep_that_is_to_push_names_the_command() -> None:
    from paretune.errors import InputError
    from paretune.experiment.setup import training_arguments
    from paretune.recipes import load_recipe

    recipe = load_recipe("demo_sweep", ["train.push_to_hub=true"])
    with pytest.raises(InputError, match=r"train\.push_to_hub.*`paretune push RUN --repo"):
        training_arguments(recipe, recipe.points[0], 0, Path("run"))
