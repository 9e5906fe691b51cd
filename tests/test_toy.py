"""The toy: every command without a download, and a dial that turns."""

from pathlib import Path
from statistics import mean

import pytest
from typer.testing import CliRunner

from paretune import cli
from paretune.files import read_objects
from paretune.models import TOY, built_in_folder, load_model_and_tokenizer


def test_it_is_small_and_speaks_in_turns() -> None:
    assert sum(file.stat().st_size for file in built_in_folder(TOY).iterdir()) < 1.5e6
    model, tokenizer = load_model_and_tokenizer(TOY)
    assert tokenizer.pad_token != tokenizer.eos_token
    question = [{"role": "user", "content": "How long should I boil an egg?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=64, do_sample=False)[
        0, ids["input_ids"].shape[1] :
    ]
    assert answer[-1] == tokenizer.eos_token_id
    assert len(tokenizer.decode(answer, skip_special_tokens=True).split()) > 3


@pytest.mark.slow
def test_a_sweep_from_the_wheel_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = CliRunner().invoke(cli.app, ["sweep", "toy"])
    assert result.exit_code == 0, result.output
    lengths = {
        folder.name: mean(
            len(row["response"].split()) for row in read_objects(folder / "answers.jsonl")
        )
        for folder in Path("runs/toy/points").iterdir()
    }
    short, long = (lengths[f"concise{p:.2f}-informative{1 - p:.2f}"] for p in (1, 0))
    assert short + 5 < long
