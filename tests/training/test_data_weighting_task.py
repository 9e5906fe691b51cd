"""The language-model task of `paretune weigh`, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from paretune.data_weighting.tasks.language_model import build, load_rows
from paretune.errors import InputError
from paretune.moo.bilevel.moml import MOML
from paretune.moo.bilevel.soba import SOBA
from paretune.moo.bilevel.stochastic_wc_augmented import StochasticWCAugmented
from paretune.moo.preference import Preference
from paretune.recipes.language_model import LanguageModelTask
from paretune.training.responses import Part

pytestmark = pytest.mark.filterwarnings(
    "ignore::paretune.moo.bilevel.oracle.NonConvexLowerLevelWarning"
)


@pytest.fixture
def task(tmp_path: Path, tiny_llama: Any, tokenizer: Any) -> Any:
    """A factory of tasks on 40 rated answers of 20 prompts."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [
        {"prompt": f"what is {p}", "response": "moon star" if good else "sun salt please"}
        | {"warm": 4 - 3 * (not good) - p % 2, "short": (3 if good else 0) + (p % 3 == 0)}
        for p in range(20)
        for good in (True, False)
    ]
    (tmp_path / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(**options: Any) -> LanguageModelTask:
        settings: dict[str, Any] = {
            "name": "language_model",
            "model": {"name": str(tmp_path / "model")},
            "loader": "ratings",
            "path": str(tmp_path / "rated.jsonl"),
            "criteria": ["warm", "short"],
            "lora": {"r": 2, "alpha": 4},
            "max_prompt": 2,
            "max_length": 8,
            "batch_size": 2,
            "micro_batch": 3,
        }
        return LanguageModelTask.model_validate({**settings, **options})

    return make


def test_sets_are_those_of_the_paper(task: Any) -> None:
    rows = load_rows(task())
    high, low = (rows["train"][Part("set", name)] for name in ("high", "low"))
    assert {row["completion"] for row in high} == {"moon star"}
    assert {row["completion"] for row in low} == {"sun salt please"}
    for split in ("validation", "test"):
        found = rows[split]
        assert set(found) == {Part("criterion", "warm"), Part("criterion", "short")}
        assert all(row["completion"] == "moon star" for some in found.values() for row in some)
    prompts = [{row["prompt"] for some in part.values() for row in some} for part in rows.values()]
    assert not prompts[0] & prompts[1]
    assert not prompts[1] & prompts[2]


@pytest.mark.slow
def test_methods_run_on_the_problem(task: Any) -> None:
    posed = task(rows=5)
    made = build(posed, load_rows(posed), seed=0)
    x, y = made.start
    assert made.weights(x) == [0.5, 0.5]
    preference = Preference.of({"warm": 0.6, "short": 0.4})
    methods = (
        StochasticWCAugmented(batch=2, u=0.5, v=1.0, record_every=2),
        SOBA(batch=2, record_every=2),
        MOML(batch=2, record_every=2, inner_steps=2),  # differentiates through the inner steps
    )
    for method in methods:
        result = method.run(made.problem, preference, made.start, 2, 0.0)
        assert result.objectives.isfinite().all()
        assert not torch.equal(result.x[1], y)
    assert made.held_out(x, y).shape == (2,)
    again = build(posed, load_rows(posed), seed=0)
    torch.testing.assert_close(again.start[1], y, rtol=0, atol=0)
    # On all data, micro-batch by micro-batch, as on all data at once.
    full = made.problem.full_upper
    part = Part("criterion", "warm")
    losses = [draw[part] for draw in full.draws if part in draw]
    assert len(losses) > 1
    total = float(made.problem.upper[0](x, y, full))
    one = build(task(rows=5, micro_batch=50), load_rows(posed), seed=0)
    assert total == pytest.approx(float(one.problem.upper[0](x, y, one.problem.full_upper)))


def test_mistakes_are_one_sentence(task: Any) -> None:
    with pytest.raises(InputError, match="No response of the train prompts is in 'high'"):
        load_rows(task(high=9.0))
    with pytest.raises(InputError, match="No response of the validation prompts is in 'warm'"):
        load_rows(task(good=9.0))
    with pytest.raises(ValueError, match="must be below high"):
        task(high=1.0)
