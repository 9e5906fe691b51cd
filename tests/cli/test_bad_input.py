"""Bad input of every kind, given to the commands: exit code 2, one sentence, at once, no traceback.

Nothing here loads a model: what is wrong is found before.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paretune import cli

RECIPE = """
data: {loader: demo, objectives: [concise, informative]}
train: {max_steps: 1, use_cpu: true}
sweep: {preferences: [[0.2, 0.8], [0.8, 0.2]]}
"""
LONG = "x" * 300

Run = Callable[..., tuple[int, str, str, float]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: Any) -> tuple[int, str, str, float]:
        start = time.process_time()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(each) for each in arguments])
        printed = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return code, printed.out, printed.err, time.process_time() - start

    return call


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """The libraries, whose import is not counted."""
    import paretune.experiment.setup
    import paretune.runs.sweep
    import paretune.serving.chat  # noqa: F401


def refused(run: Run, arguments: list[Any], words: str = "", unsaid: str = "\0") -> None:
    code, out, err, seconds = run(*arguments)
    assert code == 2, (code, out, err)
    line = err.removeprefix("The weights are divided").lstrip()
    assert line.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert words in err, err
    assert unsaid not in err, err
    assert not any(ord(letter) < 32 and letter != "\n" for letter in err), err
    assert out == ""
    assert seconds < 2


TEXTS = {
    "empty": "",
    "a list": "- 1\n- 2",
    "a number": "5",
    "a cycle": "data: &a {x: *a}",
    "a list in itself": "a: &a [*a]",
    "a bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    ),
    "nested lists": "[" * 50_000,
    "nested mappings": "{a: " * 50_000,
    "nested blocks": "\n".join(" " * i + "a:" for i in range(300)),
    "a list as a key": "? [1, 2]\n: 3",
    "a number as a key": "1: 2",
    "a tag of Python": "data: !!python/object/apply:os.getcwd []",
    "an unknown tag": "data: !mine {}",
    "a wrong tag": "data: !!int abc",
    "a key twice": RECIPE + "data: {loader: demo, objectives: [concise, informative]}",
    "a long number": RECIPE + "lora: {r: " + "9" * 5000 + "}",
    "a long float": RECIPE + "loss: {beta: 1e999}",
    "control characters": RECIPE + "name: a\x1b[31mb",
    "a null character": RECIPE + "name: a\x00b",
    "two documents": RECIPE + "---\na: 1",
    "an unclosed list": "data: [1",
    "a tab": "data:\n\t- 1",
    "an unknown alias": "data: *x",
    "too large": RECIPE + "description: " + "x" * 300_000,
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_that_are_no_recipe(kind: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXTS[kind])
    for command in ("sweep", "compare", "weigh") if len(TEXTS[kind]) < 1000 else ("sweep",):
        refused(run, [command, path])


@pytest.mark.parametrize(
    "data",
    [RECIPE.encode("utf-16"), b"\xff\xfe\x00", (RECIPE + "name: caf\xe9").encode("latin-1")],
)
def test_other_encodings(data: bytes, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    refused(run, ["sweep", path], "UTF-")


def test_unknown_keys_come_first_and_all_are_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("modle: x\nlora: {rank: 1, r: x}\n")
    _, _, err, _ = run("sweep", path)
    assert err.index("'modle'") < err.index("'data' is missing")
    assert all(word in err for word in ("'lora.rank'", "'lora.r'", "'sweep' is missing"))


OVERRIDES = [
    *("=1", ".=1", "a..b=1", "lora", "train.=1", "modle.name=x", "lora.r=[1", "name.x=1"),
    *(f"sweep.seeds=[{seed}]" for seed in (-1, 2**32, 2**70, 1.5, "true", "x")),
    *("data.seed=-1", "evaluation.seed=4294967296", "reward.seed=-1", "sweep.seeds=[]"),
    *(f"loss.beta={value}" for value in ("-1", "0", ".nan", ".inf", "1e39", "true", "'0.1'")),
    *(f"method.mu={value}" for value in ("-1", ".nan", ".inf", "1e300", "null", "[1]")),
    *("loss.gamma=.nan", "loss.nll_weight=.inf", "method.loss_ema=1", "method.radius=.nan"),
    *("evaluation.temperature=.inf", "evaluation.top_p=0", "evaluation.n_prompts=0"),
    "evaluation.reference_point={concise: .nan, informative: 1}",
    "method.ideal={concise: -.inf, informative: 0}",
    *(f"name={name}" for name in ("", "' '", "a/b", "..", ".hidden", "-x", "~", LONG, "5", "[a]")),
    *(f'name="{name}"' for name in (r"a\nb", r"a\x1b[2J", r"a\0", r"\ud800", r"a\u202eb")),
    *(f"output_dir={value}" for value in ("", "' '", LONG, "5", r'"a\0b"', "'" + "é" * 200 + "'")),
    *(f'data.objectives=[concise, "{name}"]' for name in ("", "a/b", "..", "$x", r"\x1b[1m", LONG)),
    "data.objectives=[]",
    "data.objectives=[concise, concise]",
    "data.objectives=concise",
    *(f"lora.target_modules='{value}'" for value in ("(", "[a", "*", "a{2,1}", "(?P<x", "")),
    "lora.target_modules=[]",
    "lora.target_modules=['']",
    *("lora.r=0", "lora.r=1.5", "lora.r=99999999999999999999", "lora.dropout=1", "lora.alpha=-1"),
    *("data=5", "data=[1]", "loss=nothing", "sweep=[]", "model=x", "train=[1]", "train=5"),
    *(
        f"sweep.preferences={value}"
        for value in (
            *("[[true, false]]", "[['0.5', '0.5']]", "[[0.5, null]]", "[[.nan, 1]]", "[[.inf, 0]]"),
            *("[[-1, 2]]", "[[0.5, 0.6]]", "[[1]]", "[]", "true", "5", "''", "{}", "[x]", "[[]]"),
            *("{das_dennis: 0}", "{das_dennis: -1}", "{das_dennis: true}", "{das_dennis: 10001}"),
            *("[[1, 0], [1, 0]]", "[{concise: '1'}]", "[{das_dennis: 3}]", "{concise: 1}"),
        )
    ),
    *(f"train.learning_rate={value}" for value in ("-1", ".nan", ".inf", "'1e-4'", "true", "[1]")),
    *("train.max_steps=0", "train.max_steps=-2", "train.max_steps=1.5", "train.save_steps=0"),
    *("train.adam_beta1=2", "train.weight_decay=.nan", "train.max_grad_norm=-1"),
    *("train.dataloader_num_workers=-3", "train.num_train_epochs=0", "train.logging_steps=0"),
    *("train.per_device_train_batch_size=0", "train.gradient_accumulation_steps=0"),
    *("train.label_smoothing_factor=0.1", "train.neftune_noise_alpha=5", "train.push_to_hub=true"),
    *("train.resume_from_checkpoint=/x", "train.auto_find_batch_size=true", "train.seed=1"),
    *("train.ignore_data_skip=true", "train.remove_unused_columns=true", "train.outputdir=x"),
    *("train.beta=1", "train.lr_scheduler_type=nope", "train.data_seed=-1", "train.max_length=0"),
    "rewards={nobody: {scorer: demo}}",
    "rewards={concise: {scorer: demo, name: nothing}}",
    "rewards={concise: {scorer: model}}",
    "data={loader: pairs, objectives: [a, b]}",
    "data={loader: pairs, objectives: [a, b], path: {a: x, c: y}}",
    "data={loader: pairs, objectives: [a, b], path: absent.jsonl}",
    'data={loader: pairs, objectives: [a, b], path: "a\\0b"}',
    "model.template_variables={'a b': 1}",
    'description="\\x07"',
]


@pytest.mark.slow
@pytest.mark.parametrize("override", OVERRIDES)
def test_values_that_do_not_fit(override: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    refused(run, ["sweep", path, override])


@pytest.mark.parametrize(
    "weights",
    [
        ["concise=0.3", "concise=0.7"],
        ["concise=nan"],
        ["concise=inf"],
        ["concise=-1"],
        ["concise=0", "informative=0"],
        ["concise=x"],
        ["concise="],
        ["concise"],
        ["=1"],
        ["\x1b[31m=1"],
    ],
)
def test_weights_of_a_preference(weights: list[str], run: Run) -> None:
    refused(run, ["train", "demo", "--prefer", *weights])


@pytest.mark.parametrize("name", ["", "absent", LONG, "x" * 5000, "~nobody-here/x.yaml", "a\0b"])
@pytest.mark.parametrize("command", ["sweep", "chat", "report"])
def test_recipes_and_runs_that_are_not_there(name: str, command: str, run: Run) -> None:
    refused(run, [command, name])


FRONT = {"name": "x", "method": "clamp", "objectives": ["a"], "points": []}
FILES = {
    "front.json": ["", "{", "[]", "5", '{"a": NaN}', "[" * 100_000, json.dumps(FRONT), "\x00"],
    "recipe.yaml": ["", "a: *b", "[1]", "data: 5", "!!python/none x", "name: [", "a\x00"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content"), [(name, each) for name, contents in FILES.items() for each in contents]
)
@pytest.mark.parametrize("command", ["chat", "report", "export", "evaluate", "judge", "serve"])
def test_run_folders_with_damaged_files(
    command: str, file: str, content: str, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE + "name: x\noutput_dir: run\n")
    (folder / file).write_text(content)
    more = ["--model", "m", "--base-url", "http://127.0.0.1:1/v1"] if command == "judge" else []
    refused(run, [command, folder, *more])


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model", ""],
        ["--model", "x" * 10_000],
        ["--model", "a\x1b[31m"],
        ["--model", "a\nb"],
        ["--model", "m", "--temperature", "nan"],
        ["--model", "m", "--temperature", "inf"],
        ["--model", "m", "--temperature", "-1"],
        ["--model", "m", "--max-tokens", "0"],
        ["--model", "m", "--concurrency", "0"],
        ["--model", "m", "--per-minute", "0"],
        ["--model", "m", "--per-minute", "nan"],
        ["--model", "m", "--timeout", "-1"],
        ["--model", "m", "--timeout", "inf"],
        ["--model", "m", "--attempts", "0"],
        ["--model", "m", "--backoff", "nan"],
        ["--model", "m", "--price-in", "nan", "--price-out", "1"],
        ["--model", "m", "--price-in", "1"],
        ["--model", "m", "--price-in", "-1", "--price-out", "1"],
        ["--model", "m", "--prompts", "0"],
        ["--model", "m", "--option", "x"],
        ["--model", "m", "--option", "=1"],
        ["--model", "m", "--option", "a=.inf"],
        ["--model", "m", "--option", "a=[.nan]"],
        ["--model", "m", "--option", "a=[1"],
        ["--model", "m", "--option", "a=1", "--option", "a=2"],
        ["--model", "m", "--aspect", "nothing"],
        ["--model", "m", "--base-url", "nope"],
        ["--model", "m", "--base-url", "ftp://x"],
        ["--model", "m", "--local", "--timeout", "5"],
        ["--model", "m", "--max-tokens", "x"],
        ["--nonsense"],
    ],
)
def test_options_of_a_judge(options: list[str], run: Run, tmp_path: Path) -> None:
    more = (
        [] if {"--base-url", "--local"} & set(options) else ["--base-url", "http://127.0.0.1:1/v1"]
    )
    refused(run, ["judge", tmp_path, *options, *more], unsaid="run folder")


@pytest.mark.parametrize(
    "options",
    [
        ["--host", "no-such-host.invalid"],
        ["--host", ""],
        ["--host", "256.1.1.1"],
        ["--host", "203.0.113.7"],
        ["--host", "a\0b"],
        ["--host", "x" * 300],
        ["--port", "0"],
        ["--port", "70000"],
        ["--port", "x"],
        ["--port", "1.5"],
    ],
)
def test_where_to_serve(options: list[str], run: Run, tmp_path: Path) -> None:
    refused(run, ["serve", tmp_path, *options], unsaid="run folder")


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '[{"a": 1}]', "[" * 100_000, "\x00"])
def test_annotations(content: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(content)
    refused(run, ["alpaca", "score", path])
    refused(run, ["alpaca", "score", tmp_path / "absent.json"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["sweep"],
        ["sweep", "demo", "--nothing"],
        ["evaluate", ".", "--split", "nothing"],
        ["recipes", "nothing"],
        ["recipes", "\x1b[31m"],
        ["chat", ".", "--lengths", "0"],
        ["reward", "train", "nothing"],
        ["reward", "train", "demo", "reward.train.learning_rate=.nan"],
        ["reward", "train", "demo", "reward.seed=-1"],
        ["compare", "demo"],
        ["compare", "demo_compare", "methods=[]"],
        ["compare", "demo_compare", "methods=[{name: nothing}]"],
        ["compare", "demo_compare", "methods=[{name: clamp}, {name: clamp}]"],
        ["compare", "demo_compare", "methods=[{name: clamp, label: '$'}]"],
        ["compare", "demo_compare", 'methods=[{name: clamp, label: "a\\nb"}]'],
        ["compare", "demo_compare", "methods=[{name: clamp, options: {mu: .nan}}]"],
        ["compare", "demo_compare", "methods=[{name: clamp, seeds: [-1]}]"],
        ["compare", "demo_compare", "methods=[{name: clamp, options: {1: 2}}]"],
        ["weigh", "nothing"],
        ["weigh", "weigh_mnist", "seeds=[-1]"],
        ["weigh", "weigh_mnist", "methods={nothing: {}}"],
    ],
)
def test_other_commands(arguments: list[str], run: Run) -> None:
    refused(run, arguments)
