"""Each file of a finished run, damaged in every way: a command does its work or says a sentence."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paretune import cli
from paretune.results.weights import CHECKSUMS, checksums

FIXTURES = Path(__file__).parent.parent / "fixtures"
POINT = "points/harmless0.20-helpful0.80"
OTHER = "points/harmless1.00-helpful0.00"
FILES = (
    *("recipe.yaml", "manifest.json", "front.json", "front.png"),
    *(f"{POINT}/{name}" for name in ("metrics.json", "training.json", "answers.jsonl")),
    *(f"{POINT}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")),
    f"{POINT}/log.jsonl",
)
DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda whole: None,
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "noise": lambda whole: bytes((7 * i * i + 131) % 256 for i in range(300)),
    "other type": lambda whole: b"[1, 2]\n",
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "sweep": ("sweep", "RUN/recipe.yaml", "output_dir=RUN"),
    "export": ("export", "RUN", "--no-base", "--to", "RUN/../out"),
    "chat": ("chat", "RUN", "--prefer", "helpful=0.8", "--prefer", "harmless=0.2"),
    "evaluate": ("evaluate", "RUN", "--split", "validation", "--fresh"),
    "alpaca": (
        *("alpaca", "generate", "RUN", "--point", POINT.split("/")[1]),
        *("--instructions", "RUN/../asked.json"),
    ),
    "report": ("report", "RUN"),
}
QUICK = ("sweep", "export")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in a folder of its own, with checksums."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(FIXTURES / "run_0_1", tmp_path / "run_0_1")
    shutil.copytree(FIXTURES / "tiny", tmp_path / "tiny")
    for path in (tmp_path / "run_0_1").rglob("*"):
        if path.suffix in (".yaml", ".json"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("/fixtures", tmp_path.as_posix()), encoding="utf-8")
    for point in (tmp_path / "run_0_1" / "points").iterdir():
        record = json.loads((point / "training.json").read_text())
        (point / "training.json").write_text(json.dumps({**record, CHECKSUMS: checksums(point)}))
    (tmp_path / "asked.json").write_text('[{"instruction": "red cat", "dataset": "koala"}]')
    return tmp_path / "run_0_1"


@pytest.fixture
def paretune(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    """Exit code and standard error of a command; a traceback is an error of the test."""

    def call(name: str) -> tuple[int, str]:
        arguments = [each.replace("RUN", str(run)) for each in COMMANDS[name]]
        monkeypatch.setattr(sys, "argv", ["paretune", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO("red cat\n"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int | None)
        return code or 0, capsys.readouterr().err

    return call


def damage(path: Path, how: str) -> None:
    content = DAMAGE[how](path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_no_traceback(name: str, run: Path, paretune: Callable[[str], tuple[int, str]]) -> None:
    whole = (run / name).read_bytes()
    for how in DAMAGE:
        chosen = COMMANDS if how == "noise" else QUICK
        for command in chosen:
            damage(run / name, how)
            code, told = paretune(command)
            assert code in (0, 2), (command, how, told)
            if code == 2:
                sentence = told.splitlines()[-1]
                assert sentence.startswith("error: "), (command, how, told)
                assert Path(name).name in sentence, (command, how, told)
            (run / name).write_bytes(whole)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_never_used(
    name: str, run: Path, paretune: Callable[[str], tuple[int, str]]
) -> None:
    whole = (run / POINT / name).read_bytes()
    for how in DAMAGE:
        damage(run / POINT / name, how)
        for command in ("export", "chat", "evaluate", "alpaca") if how == "cut" else ("export",):
            code, told = paretune(command)
            assert code == (0 if command == "chat" else 2), (
                command,
                how,
                told,
            )  # a talk does not end
            assert name in told, (command, how, told)
        assert not (run.parent / "out").exists()
        (run / POINT / name).write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("keep_checksum", [True, False])
@pytest.mark.parametrize("how", ["no tensors", "half of them", "NaN", "another shape"])
def test_an_adapter_that_is_another(
    how: str, keep_checksum: bool, run: Path, paretune: Callable[[str], tuple[int, str]]
) -> None:
    """Never measured as if it were the base model, with checksums or without."""
    from safetensors.torch import load_file, save_file

    path = run / POINT / "adapter_model.safetensors"
    tensors = load_file(path)
    other = {
        "no tensors": {},
        "half of them": dict(list(tensors.items())[::2]),
        "NaN": {name: tensor * float("nan") for name, tensor in tensors.items()},
        "another shape": {name: tensor[:, :2].contiguous() for name, tensor in tensors.items()},
    }
    save_file(other[how], path, metadata={"format": "pt"})
    if not keep_checksum:
        record = json.loads((run / POINT / "training.json").read_text())
        (run / POINT / "training.json").write_text(json.dumps({**record, CHECKSUMS: {}}))
    (run / POINT / "metrics.json").unlink()
    (run / "front.json").unlink()
    code, told = paretune("sweep")
    assert code == 2
    assert "adapter_model.safetensors" in told
    assert not (run / POINT / "metrics.json").exists()


def test_weights_that_were_deleted_are_told_of(
    run: Path, paretune: Callable[[str], tuple[int, str]], caplog: pytest.LogCaptureFixture
) -> None:
    for name in checksums(run / OTHER):
        (run / OTHER / name).unlink()
    code, _ = paretune("export")
    assert code == 0
    assert "holds no weights any more" in caplog.text
