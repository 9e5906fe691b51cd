"""A comparison begun before midnight and finished after, with a template that says the date."""

import copy
import json
import logging
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from paretune.baselines.recipe import load_comparison
from paretune.data.encoding import Encoder
from paretune.experiment import train_point
from paretune.files import read_json
from paretune.models import asks_for_date, load_model_and_tokenizer
from paretune.runs import folder
from paretune.runs.compare import run_compare

DATED = (  # as Llama 3.2's does it
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }} "
)
EVENING, MORNING = datetime(2026, 11, 28, 23, 59, 30), datetime(2026, 11, 29, 0, 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Sets the time of run folders and of chat templates."""

    def at(moment: datetime) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return moment.replace(tzinfo=tz)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        monkeypatch.setattr(folder, "datetime", Clock)
        chat_template_utils._compile_jinja_template.cache_clear()

    return at


@pytest.fixture
def model(tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]) -> Path:
    folder = tmp_path / "model"
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = DATED + tokenizer.chat_template
    dated.add_tokens(["26", "28", "29", "Jul", "Nov", "2024", "2026"])
    tiny_llama(vocab_size=len(dated)).save_pretrained(folder)
    dated.save_pretrained(folder)
    return folder


def prompt(model: Path, date: str | None, **variables: str) -> list[int]:
    _, tokenizer = load_model_and_tokenizer(model, date=date, template_variables=variables)
    return Encoder(tokenizer).prompt([{"role": "user", "content": "cat"}], "row 1")


def test_what_asks_for_the_date(model: Path) -> None:
    assert asks_for_date(model, {})
    assert asks_for_date(model, {"enable_thinking": False})
    assert not asks_for_date(model, {"date_string": "26 Jul 2024"})
    assert not asks_for_date("smollm2-135m-instruct", {})


@pytest.mark.slow
def test_prompts_and_cache_are_of_the_day_on_which_it_was_begun(
    model: Path,
    tmp_path: Path,
    clock: Callable[[datetime], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["tea", "milk", "sun", "moon", "rain"]
    rows = [
        {
            "prompt": f"cat dog {words[row % 5]} {'run ' * (row // 5)}",
            "response_0": "walk red",
            "response_1": "walk blue",
            "better_response_id": row % 2,
            "safer_response_id": row // 2 % 2,
        }
        for row in range(15)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "two.yaml").write_text(
        f"""
model: {{name: {model}}}
lora: {{r: 4, alpha: 8}}
data:
  loader: safe_rlhf
  path: {tmp_path / "pairs.jsonl"}
  objectives: [harmless, helpful]
  split: [0.6, 0.2, 0.2]
train: {{max_steps: 1, per_device_train_batch_size: 4, use_cpu: true}}
sweep: {{preferences: [[0.2, 0.8]]}}
evaluation: {{generate: false}}
output_dir: {tmp_path / "run"}
methods: [{{name: clamp}}, {{name: linear}}]
"""
    )
    seen: list[tuple[int, ...]] = []
    trained = train_point.train_point

    def train(trainer: Any, *args: Any, **named: Any) -> None:
        sequences = trainer.train_pairs.sequences
        seen.append(tuple(token for each in sequences for token in each.input_ids))
        trained(trainer, *args, **named)
        if len(seen) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("paretune.runs.point.train_point", train)
    clock(EVENING)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        run_compare(load_comparison(tmp_path / "two.yaml"))
    assert "prints the date. In this run it is 2026-11-28" in caplog.text
    kept = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert kept
    clock(MORNING)
    assert run_compare(load_comparison(tmp_path / "two.yaml")).titles == ["clamp", "linear"]
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert sorted((tmp_path / "cache").rglob("*.safetensors"))[: len(kept)] == kept
    first, second = read_json(tmp_path / "run" / "manifest.json")["sessions"]
    assert first["started"][:10] == "2026-11-28"
    assert second["started"][:10] == "2026-11-29"
    assert first["trl"] == second["trl"] == version("trl")
    evening = prompt(model, "2026-11-28")
    assert evening != prompt(model, None)  # the clock stands at the 29th
    assert prompt(model, None, date_string="26 Jul 2024") == prompt(
        model, "2026-11-28", date_string="26 Jul 2024"
    )
