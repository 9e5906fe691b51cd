"""What a command needs and an installation may lack is asked for in one sentence."""

import importlib.util
import re
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
