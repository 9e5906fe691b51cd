import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from paretune.errors import InputError
from paretune.moo.preference import named_preferences
from paretune.recipes import Recipe, load_recipe, recipe_from_text, shipped_recipes, with_preference
from paretune.yaml_syntax import dump, parse

TEXT = """
data: {loader: demo, objectives: [concise, informative]}
train: {learning_rate: 1e-4}
sweep: {preferences: [[0.2, 0.8], {concise: 1}]}
"""


def recipe(*overrides: str) -> Recipe:
    return recipe_from_text(TEXT, "'mine.yaml'", "mine", overrides)


def test_defaults_and_resolution() -> None:
    loaded = recipe()
    assert loaded.name == "mine"
    assert loaded.output_dir == "runs/mine"
    assert loaded.train == {"learning_rate": 1e-4}
    assert loaded.sweep.preferences == [[0.2, 0.8], [1.0, 0.0]]
    assert loaded.points[1]["informative"] == 0.0


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_round_trip(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.description
    assert Recipe.from_yaml(loaded.to_yaml(), name) == loaded
    assert loaded.differences(loaded) == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_train_sections_are_the_trainers(name: str, tmp_path: Path) -> None:
    from paretune.experiment.setup import training_arguments

    # Mixed precision on a GPU is refused where there is none.
    loaded = load_recipe(name, ["train.bf16=false"])
    args = training_arguments(loaded, loaded.points[0], 0, tmp_path)
    assert args.preference == dict(loaded.points[0])
    assert args.beta == 0.1


def test_the_papers_settings() -> None:
    for name in ("saferlhf_clamp", "ultrafeedback_clamp"):
        loaded = load_recipe(name)
        assert loaded.lora is not None
        assert (loaded.lora.r, loaded.lora.alpha, loaded.lora.dropout) == (8, 32, 0.05)
        assert (loaded.method.mu, loaded.loss.beta) == (100.0, 0.1)
        assert loaded.data.split == [0.8, 0.1, 0.1]
        assert (loaded.evaluation.max_new_tokens, loaded.evaluation.temperature) == (256, 0.7)
    assert [p.weights for p in load_recipe("saferlhf_clamp").points] == named_preferences(
        "clamp_task1"
    )


def test_every_key_is_documented() -> None:
    def check(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
            sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
            assert field.description or sections, f"{section.__name__}.{name}"
            for each in sections:
                assert each.__doc__
                check(each)

    check(Recipe)


def test_overrides() -> None:
    loaded = recipe(
        "train.max_steps=200",
        "lora.r=16",
        "sweep.preferences={das_dennis: 4}",
        "evaluation.n_prompts=",
        "train.lr_scheduler_kwargs.num_cycles=2",
        "loss.name=ipo",
    )
    assert loaded.train["max_steps"] == 200
    assert loaded.lora is not None
    assert loaded.lora.r == 16
    assert len(loaded.points) == 5
    assert loaded.evaluation.n_prompts is None
    assert loaded.train["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert recipe("lora=null").lora is None
    assert recipe("sweep.preferences=clamp_task1").points[0].weights == (0.0, 1.0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sweep.preferencs=[[1, 0]]", ["'sweep.preferencs'", "'sweep.preferences'"]),
        ("mu=3", ["'mu'", "did you mean 'method.mu'"]),
        ("lora.rank=4", ["'lora.rank'", "known there: r, alpha"]),
        ("method={mu: 3, nadirr: 4}", ["'method.nadirr'", "'method.nadir'"]),
        ("loss.beta=abc", ["override of 'loss.beta'", "'abc'", "number"]),
        ("lora.r=0", ["'lora.r'", "it must be above 0"]),
        ("data.loader=dmo", ["'data.loader'", "'dmo'", "'demo'"]),
        ("data.style=chat", ["'demo'", "'style'"]),
        ("data.split=[0.5, 0.2, 0.2]", ["data.split", "sum to one", "0.9"]),
        ("data.objectives=[a, a]", ["data.objectives", "twice"]),
        ("data.objectives=[a/b, c]", ["'a/b'", "letters"]),
        ("sweep.preferences=[[0.5, 0.6]]", ["point 1", "sum to 1", "1.1"]),
        ("sweep.preferences=[[0.5, 0.2, 0.3]]", ["3 weights for 2 objectives"]),
        ("sweep.preferences=[{concize: 1}]", ["'concize'", "'concise'"]),
        ("sweep.preferences=[[1, 0], [1, 0]]", ["points 1 and 2 are the same"]),
        ("sweep.preferences=[]", ["must be a list of points"]),
        ("sweep.preferences=task9", ["'task9'", "clamp_task1"]),
        ("sweep.preferences=[[a, b]]", ["'concise'", "number", "'a'"]),
        ("sweep.preferences={das_dennis: x}", ["whole number"]),
        ("sweep.seeds=[1, 1]", ["seed", "twice"]),
        ("method.ideal={concise: 0.1}", ["method.ideal", "informative"]),
        ("loss.beta=[1", ["override", "not valid YAML"]),
        ("beta", ["'beta' is not an override", "key=value"]),
    ],
)
def test_mistakes_are_one_clear_sentence(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        recipe(override)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_mistakes_in_a_file_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT + "los: {beta: 1}\n")
    with pytest.raises(InputError, match=r"'los' in '.*mine\.yaml'; did you mean 'loss'"):
        load_recipe(path)
    path.write_text("sweep: {preferences: clamp_task1}")
    with pytest.raises(InputError, match=r"'data' is missing in '.*mine\.yaml'"):
        load_recipe(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match="must hold the sections"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("system: other", "'data.system' is 'other', but it must be 'merge', 'drop' or 'error'"),
        ("system: 3", "'data.system' is 3, but it must be 'merge', 'drop' or 'error'"),
        ("systm: drop", "'data.systm' .*; did you mean 'data.system'"),
        ("loader: hh_rlhf, system: drop", "the loader 'hh_rlhf' has no option 'system'"),
    ],
)
def test_options_that_only_some_loaders_have(data: str, words: str) -> None:
    text = f"data: {{loader: pairs, path: {{a: a.jsonl, b: b.jsonl}}, objectives: [a, b], {data}}}"
    if "loader" in data:
        text = f"data: {{path: a.jsonl, objectives: [a, b], {data}}}"
    with pytest.raises(InputError, match=words):
        recipe_from_text(text + "\nsweep: {preferences: [[0.5, 0.5]]}", "the text", "mine")


def test_all_mistakes_are_told_at_once() -> None:
    text = """
        model: {nam: x}
        lora: {r: -1, alpha: x}
        data: {loader: safe_rlhff, objectives: [a, a]}
        train: {max_steps: x, nope: 1, push_to_hub: true}
        sweep: {seeds: 3}
        """
    with pytest.raises(InputError) as caught:
        recipe_from_text(text, "the text", "mine")
    for key in ("model.nam", "lora.r", "lora.alpha", "data.loader", "data.objectives", "seeds"):
        assert key in str(caught.value), key
    for key in ("train.max_steps", "train.nope", "train.push_to_hub"):
        assert key in str(caught.value), key
    assert "paretune push" in str(caught.value)


def test_missing_recipe_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'saferlhf_clamp'"):
        load_recipe("safer_clamp")
    with pytest.raises(InputError, match="paretune recipes"):
        load_recipe("qqqqq")


def test_paths_to_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("{}")
    loaded = load_recipe("hh_local", ["data.path=pairs.jsonl"])
    assert loaded.data.path == str(tmp_path / "pairs.jsonl")
    assert load_recipe("hh_local", ["data.path=absent.jsonl"]).data.path == "absent.jsonl"


def test_with_preference() -> None:
    chosen = with_preference(recipe(), {"informative": 0.25, "concise": 0.75})
    assert [p.weights for p in chosen.points] == [(0.75, 0.25)]
    assert with_preference(recipe(), {"concise": 1}).points[0].live == ("concise",)
    with pytest.raises(InputError, match="'short'"):
        with_preference(recipe(), {"short": 1})


def test_differences_leave_labels_aside() -> None:
    assert recipe("output_dir=x", "name=y", "description=z").differences(recipe()) == []
    assert recipe("loss.beta=0.2").differences(recipe()) == ["loss.beta: 0.2, not 0.1"]


def test_yaml_is_version_1_2() -> None:
    text = "{a: 1e-4, b: no, c: 1:30, d: 010, e: null, f: true, g: .5, h: -3, i: 2024-01-01, j: 1.}"
    read = parse(text, "text")
    assert read == {
        "a": 1e-4,
        "b": "no",
        "c": "1:30",
        "d": 10,
        "e": None,
        "f": True,
        "g": 0.5,
        "h": -3,
        "i": "2024-01-01",
        "j": 1.0,
    }
    assert parse(dump(read), "text") == read
    assert yaml.safe_load("b: no") == {"b": False}  # why the loader is our own
    with pytest.raises(InputError, match=r"mine, line 2, column 1: .*key 'a' stands twice"):
        parse("a: 1\na: 2", "mine")


def test_loading_needs_no_torch() -> None:
    code = (
        "import sys; from paretune.recipes import load_recipe; load_recipe('saferlhf_clamp'); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        "import sys, paretune.results, paretune.recipes, paretune.report; "
        "from paretune.recipes.data_weighting import load_weigh_recipe; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_of_another_choice_are_refused_unless_default() -> None:
    assert recipe("method={name: linear, mu: 3.0}", "method.mu=auto").method_name == "linear"
    with pytest.raises(InputError, match=r"mu is an option of clamp, not of linear"):
        recipe("method={name: linear, mu: 3.0}")
    with pytest.raises(InputError, match=r"gamma is an option of simpo, not of dpo"):
        recipe("loss.gamma=2.0")
    # What was run with them, without effect, is read.
    text = recipe().to_yaml().replace("name: dpo", "name: dpo, gamma: 2.0")
    assert Recipe.from_yaml(text, "it") == recipe()
