"""What a command needs and an installation may lack is asked for in one sentence."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paretune import cli, extras
from paretune.errors import InputError
from paretune.judging.endpoint import EndpointJudge

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.fixture(autouse=True)
def nothing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *r: None if n in extras.EXTRAS else find_spec(n, *r)
    )


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for package, extra in extras.EXTRAS.items():
        (requirement,) = project["optional-dependencies"][extra]
        assert re.split(r"[<>=~]", requirement)[0] == package
        assert not any(each.startswith(package) for each in project["dependencies"])


def test_a_judge_at_an_endpoint_needs_openai() -> None:
    with pytest.raises(InputError, match=r"needs openai; run: pip install 'paretune\[judge\]'$"):
        EndpointJudge("model", "http://127.0.0.1:9/v1")


def test_a_report_needs_plotly_before_anything_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--base"])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).endswith("run: pip install 'paretune[report]'")


def test_the_page_needs_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "paretune.serving.page", raising=False)
    with pytest.raises(InputError, match=r"pip install 'paretune\[serve\]'$"):
        import paretune.serving.page  # noqa: F401


ABSENT = """
import contextlib, io, json, os, sys

class Without:
    "A finder that does not know the packages of extras."
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"openai", "plotly", "gradio", "bitsandbytes", "ray"}:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
from paretune import cli
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        cli.main(words)
    print(json.dumps([said.getvalue(), "torch" in sys.modules or "transformers" in sys.modules]))
"""


def test_a_missing_extra_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    shutil.copytree(Path(__file__).parent / "fixtures" / "run_0_1", run)
    four = "model.quantization=4bit"
    point = "harmless0.20-helpful0.80"
    commands = {
        "serve": [["serve", run], ["serve", "absent"]],
        "report": [["report", run]],
        "judge": [["judge", run, "--model", "m"]],
        "ray": [
            ["sweep", "toy", "--ray", "auto"],
            ["compare", "demo_compare", "--ray", "auto"],
            ["weigh", "weigh_mnist", "--ray", "auto"],
        ],
        "quantization": [
            ["sweep", "toy", four],
            ["train", "toy", four, "--prefer", "concise=1", "informative=1"],
            ["evaluate", run, four],
            ["chat", run, four],
            ["alpaca", "generate", run, "--point", point, four],
            ["reward", "train", "toy", four],
            ["compare", "demo_compare", four, "methods=[{name: linear}]"],
            ["weigh", "weigh_planted_larger", four],
            ["weigh", "weigh_llm_topicalchat", f"task.{four}"],
        ],
    }
    every = [words for some in commands.values() for words in some]
    done = subprocess.run(
        [sys.executable, "-c", ABSENT, json.dumps(every)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    told = iter(map(json.loads, done.stdout.splitlines()))
    for extra, some in commands.items():
        for words in some:
            said, heavy = next(told)
            assert f"run: pip install 'paretune[{extra}]'" in said.splitlines()[-1], words
            assert not heavy, words
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
