"""What a new user gets wrong: which words come, and what is left on the disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paretune import cli
from paretune.recipes.reading import COMMANDS, shipped_recipes

PAIRS = [
    {"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(12)
]
RECIPE = """
model: {name: MODEL}
data: {loader: pairs, style: text, objectives: [kind, brief], path: {kind: a.jsonl, brief: b.jsonl}}
train: {max_steps: 1, use_cpu: true}
sweep: {preferences: [[0.5, 0.5]]}
output_dir: runs/mine
"""

Told = Callable[..., str]


@pytest.fixture
def told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Told:
    """Runs a command that must end with exit code 2; what it says, in one line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any, lines: int = 1) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(each) for each in arguments])
        err = capsys.readouterr().err
        assert caught.value.code == 2, err
        assert err.count("\n") == lines, err
        return err

    return call


@pytest.fixture
def files(tmp_path: Path, tiny_llama: Any, tokenizer: Any, told: Told, capsys: Any) -> Path:
    """The working folder with a recipe that is right, its data and its model."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    capsys.readouterr()  # bars
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("MODEL", str(tmp_path / "model")))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


FAILED_STARTS: list[tuple[str, str, str, str]] = [
    ("mine.yaml", "max_steps: 1", "max_stps: 1", "'train.max_stps' in 'mine.yaml'; did you mean"),
    ("mine.yaml", "max_steps: 1", "max_steps: x", "'mine.yaml': 'train.max_steps' is 'x'"),
    ("mine.yaml", "max_steps: 1", "fp16: true", "fp16 needs a GPU"),
    ("mine.yaml", "/model}", "/modle}", "modle"),
    ("mine.yaml", "a.jsonl", "absent.jsonl", "absent.jsonl does not exist"),
    ("a.jsonl", json.dumps(PAIRS[3]), "{", "a.jsonl', line 4"),
    ("b.jsonl", '"chosen": "yes 2", ', "", "row 3 (counting from 1), field 'chosen': is missing"),
    ("b.jsonl", "\n".join(map(json.dumps, PAIRS)), "", "it is empty"),
    ("model/config.json", '"model_type"', '"model"', "could not be loaded"),
]


@pytest.mark.parametrize(("file", "old", "new", "words"), FAILED_STARTS)
@pytest.mark.parametrize("before", [False, True])
def test_a_start_that_fails_leaves_nothing_and_deletes_nothing(
    files: Path, told: Told, file: str, old: str, new: str, words: str, before: bool
) -> None:
    edit(files / file, old, new)
    kept = files / "runs/mine/points/kind0.50-brief0.50/metrics.json"
    if before:
        kept.parent.mkdir(parents=True)
        kept.write_text("{}")
        (files / "runs/mine/recipe.yaml").write_text("name: x")
        (files / "runs/mine/manifest.json").write_text("{}")
    assert words in told("sweep", "mine.yaml", "--fresh")
    assert kept.exists() if before else not (files / "runs").exists()


def test_what_shows_only_in_the_trainer_leaves_nothing_either(files: Path, told: Told) -> None:
    assert "longer than max_length=2" in told("sweep", "mine.yaml", "train.max_length=2", lines=3)
    assert not (files / "runs").exists()


def test_the_model_is_looked_for_before_the_data_is_read(files: Path, told: Told) -> None:
    edit(files / "mine.yaml", "/model}", "/modle}")
    edit(files / "mine.yaml", "a.jsonl", "absent.jsonl")
    assert "modle" in told("sweep", "mine.yaml")


def test_joint_rows_that_cannot_be_made_are_told_before_a_model_is_loaded(
    files: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("paretune.experiment.setup.load_model_and_tokenizer", load)
    others = [{**row, "prompt": row["prompt"].replace("question", "request")} for row in PAIRS]
    (files / "b.jsonl").write_text("\n".join(map(json.dumps, others)))
    assert "needs prompts that every objective labels" in told(
        "sweep", "mine.yaml", "train.sampling=joint", "data.split=[0.4, 0.3, 0.3]"
    )
    edit(files / "mine.yaml", "data: {", "data: {split: [0.4, 0.3, 0.3], ")
    with (files / "mine.yaml").open("a") as file:
        file.write("methods: [{name: linear, train: {sampling: joint}}]\n")
    assert "needs prompts that every objective labels" in told("compare", "mine.yaml")
    assert not (files / "runs").exists()


def test_reward_models_need_pairs_in_every_split(files: Path, told: Told) -> None:
    (files / "b.jsonl").write_text(json.dumps(PAIRS[0]))
    assert "split has no pairs of objective 'brief'" in told("reward", "train", "mine.yaml")
    assert not (files / "runs").exists()


def test_a_comparison_and_reward_models_too(files: Path, told: Told) -> None:
    assert "reward.train.max_stps" in told(
        "reward", "train", "mine.yaml", "reward.train.max_stps=1"
    )
    with (files / "mine.yaml").open("a") as file:
        file.write("methods: [{name: clamp, train: {max_stps: 1}}, {name: nothing}]\n")
    err = told("compare", "mine.yaml")
    assert "'methods.2.name' is 'nothing'" in err
    edit(files / "mine.yaml", "nothing", "linear")
    assert "clamp: Unknown key 'train.max_stps' in 'mine.yaml'" in told("compare", "mine.yaml")
    assert not (files / "runs").exists()


def test_all_mistakes_are_told_together(files: Path, told: Told) -> None:
    edit(files / "mine.yaml", "max_steps: 1,", "max_stps: 1, learning_rate: x,")
    edit(files / "mine.yaml", "loader: pairs,", "")
    edit(files / "mine.yaml", "sweep:", "lora: {r: -1}\nswep:")
    err = told("sweep", "mine.yaml")
    order = ["'swep'", "'lora.r'", "'train.max_stps'", "'train.learning_rate'"]
    order += ["'data.loader' is missing", "'sweep' is missing"]
    assert [err.index(word) for word in order] == sorted(err.index(word) for word in order)
    edit(files / "mine.yaml", "swep:", "sweep:")
    edit(files / "mine.yaml", "{r: -1}", "{r: 1}")
    assert err.index("max_stps") < told("sweep", "mine.yaml").index("'data.loader' is missing")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("other", COMMANDS)
def test_a_recipe_of_another_command_is_called_so(
    command: str, other: Any, told: Told, tmp_path: Path
) -> None:
    if command == other:
        return
    name, text = next(iter(shipped_recipes(other).items()))
    assert f"a recipe of `paretune {other}`: run `paretune {other} {name}`" in told(command, name)
    (tmp_path / "own.yaml").write_text(text)
    assert f"run `paretune {other} own.yaml`" in told(command, "own.yaml")


def test_a_file_without_its_ending_is_found(files: Path, told: Told) -> None:
    assert "did you mean 'mine.yaml'?" in told("sweep", "mine")
    (files / "folder").mkdir()
    (files / "mine.yaml").rename(files / "folder/recipe.yaml")
    assert "there is 'folder/recipe.yaml'" in told("sweep", "folder")


def test_recipes_are_listed_with_their_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["recipes"])
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["sweep", "demo"] in lines
    assert ["compare", "demo_compare"] in lines
    assert ["weigh", "weigh_mnist"] in lines


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["sweep", "mine.yaml", "data.path={kind: a.jsonl, breif: b.jsonl}"],
            "did you mean 'brief'",
        ),
        (
            ["sweep", "mine.yaml", "data.path={kind: a.jsonl}"],
            "data.path: it has no value for 'brief'",
        ),
        (["sweep", "mine.yaml", "sweep.preferences=[[1, 0], [2, 0]]"], "point 2"),
        (
            ["sweep", "mine.yaml", "data.split=[0.5, x, 0.5]"],
            "'data.split.2' is 'x', but it must be",
        ),
        (["sweep", "mine.yaml", "lora.r=1.5"], "but it must be a whole number."),
        (["sweep", "mine.yaml", "lora=5"], "but it must be a section, keys with values."),
        (["sweep", "mine.yaml", "evaluation.generate=1"], "but it must be true or false."),
        (["sweep", "mine.yaml", "sweep.seeds=[]"], "it must have at least 1 item, not 0."),
        (["sweep", "mine.yaml", "data.loader=x"], "it must be 'demo', 'safe_rlhf'"),
        (["evalute", "x"], "Did you mean 'evaluate'? See"),
        (["export", "nowhere"], "There is no folder 'nowhere'"),
        (["chat", "nowhere"], "There is no folder 'nowhere'"),
        (["evaluate", "nowhere"], "There is no folder 'nowhere'"),
        (["report", "nowhere"], "There is no folder 'nowhere'"),
        (["judge", "nowhere", "--model", "m", "--base-url", "http://127.0.0.1:1/v1"], "no folder"),
        (["export", "."], "is not a run folder"),
    ],
)
def test_words(files: Path, told: Told, arguments: list[str], words: str) -> None:
    err = told(*arguments)
    assert "Input should" not in err
    assert words in err, err


def test_bad_rows_say_what_to_set(files: Path, told: Told) -> None:
    edit(files / "a.jsonl", '"yes 1"', '""')
    assert "set bad_rows to skip (data.bad_rows in a recipe)" in told("sweep", "mine.yaml")
