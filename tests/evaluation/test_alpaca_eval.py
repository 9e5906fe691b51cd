"""AlpacaEval's records and win rates: by hand, by optimality, and beside alpaca_eval's own."""

import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretune.errors import InputError
from paretune.evaluation.alpaca_eval import (
    Annotation,
    Instruction,
    read_annotations,
    read_instructions,
    win_rate,
    write_outputs,
)
from paretune.evaluation.length_control import (
    fit_l1_logistic,
    length_controlled,
    read_difficulties,
    read_gamed,
)

COUNT = 120


def verdict(preference: float | None, index: int = 0, lengths: tuple[int, int] = (5, 4)) -> Any:
    return Annotation(index, "a" * lengths[0], "b" * lengths[1], "gpt4", "mine", preference)


def test_outputs_are_in_its_form_and_order(tmp_path: Path) -> None:
    asked = [Instruction("Why\u2028now?", "vicuna"), Instruction("Who?", "koala")]
    write_outputs(tmp_path / "outputs.json", asked, ["<b>", "Me."], "mine")
    assert json.loads((tmp_path / "outputs.json").read_text()) == [
        {
            "instruction": "Why\u2028now?",
            "output": "<b>",
            "generator": "mine",
            "dataset": "vicuna",
        },
        {"instruction": "Who?", "output": "Me.", "generator": "mine", "dataset": "koala"},
    ]
    assert read_instructions(tmp_path / "outputs.json") == asked
    lines = [
        json.dumps({"id": i, "instruction": a.text}, ensure_ascii=False)
        for i, a in enumerate(asked)
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines) + "\n")
    assert [a.text for a in read_instructions(tmp_path / "lines.jsonl")] == [a.text for a in asked]


def test_win_rate_by_hand() -> None:
    found = win_rate([verdict(1.0), verdict(1.25), verdict(1.5), verdict(2.0), verdict(None)])
    values = [0.0, 0.25, 0.5, 1.0]
    assert found.win_rate == pytest.approx(100 * sum(values) / 4)
    assert found.standard_error == pytest.approx(100 * float(np.std(values, ddof=1)) / 2)
    assert (found.wins, found.draws, found.losses, found.missing) == (1, 1, 2, 1)
    assert found.discrete == pytest.approx(100 * 1.5 / 4)
    assert found.mean_length == 4
    assert math.isnan(win_rate([verdict(1.0)]).standard_error)
    with pytest.raises(InputError, match="preference from 1 to 2"):
        win_rate([verdict(None)])


def row(**values: Any) -> dict[str, Any]:
    base = {"instruction": "Why?", "output_1": "x", "output_2": "yy", "preference": 1.5}
    return {**base, "generator_1": "gpt4", "generator_2": "mine", **values}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no annotations"),
        ([row(output_2=3)], "row 1 has no text under 'output_2'"),
        ([row(), row(preference="m")], "row 2: 'preference' is 'm'"),
        ([row(), row(generator_2="other")], "several values of generator_2"),
        ([row(instruction="Where?")], "its instruction is not in the list"),
        ([row()] * 3, "row 3: its instruction is not in the list, or stands there less often"),
        ([3], "row 1 is not an object"),
    ],
)
def test_annotations_that_are_none(rows: list[Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=words):
        read_annotations(path, [Instruction("Why?")] * 2)


def test_files_that_are_no_lists(tmp_path: Path) -> None:
    path = tmp_path / "instructions.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="holds no instructions"):
        read_instructions(path)
    path.write_bytes(b"\x1f\x8b\xff")
    with pytest.raises(InputError, match="no text in UTF-8"):
        read_annotations(path)


def test_annotations_find_their_instructions(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    rows = [row(preference=0), row(instruction="Who?", preference=float("nan"), index=7)]
    path.write_text(json.dumps(rows))
    asked = [Instruction("Who?"), Instruction("Why?"), Instruction("Why?")]
    found = read_annotations(path, asked)
    assert [a.index for a in found] == [0, 1]
    assert [a.preference for a in found] == [None, 1.5]  # 0 is an old sign for a draw
    assert [a.index for a in read_annotations(path)] == [0, 1]  # one has no index
    path.write_text(json.dumps([row(index=5), row(index=3)]))
    assert [a.index for a in read_annotations(path, total=9)] == [5, 3]
    path.write_text(json.dumps([row(), row()]))
    with pytest.raises(InputError, match="2 annotations, but there are 9 instructions: give the"):
        read_annotations(path, total=9)
    path.write_text("[{")
    with pytest.raises(InputError, match="neither JSON nor JSON lines"):
        read_annotations(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_annotations(tmp_path / "absent.json")


def test_the_fit_is_optimal() -> None:
    """At the minimum a slope is 1 against a coefficient's sign, and at most 1 where it is 0."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 3)) * [1.0, 0.3, 5.0]
    targets, weights = rng.uniform(size=200), rng.uniform(size=200)
    zeros = 0
    for strength in (1e-3, 0.05, 0.3, 1.0, 1e4):
        fitted = fit_l1_logistic(rows, targets, strength * weights)
        found = 1 / (1 + np.exp(-rows @ fitted))
        slope = strength * (weights * (found - targets)) @ rows
        for b, s in zip(fitted, slope, strict=True):
            tolerance = 1e-6 * max(strength, 1)
            assert abs(s + np.sign(b)) <= tolerance if b else abs(s) <= 1 + tolerance
            zeros += b == 0
    assert 3 < zeros < 15


def test_the_fit_is_scikit_learns() -> None:
    """Soft targets are rows with both labels there; its usual tolerance, 1e-4, is too loose."""
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    pytest.importorskip("sklearn", minversion="1.8", reason="l1_ratio needs scikit-learn 1.8")
    rng = np.random.default_rng(3)
    rows, targets = rng.normal(size=(60, 2)), rng.uniform(size=60)
    for strength in (0.05, 1.0, 100.0):
        model = linear.LogisticRegression(
            C=strength,
            l1_ratio=1,
            solver="liblinear",
            fit_intercept=False,
            tol=1e-12,
            max_iter=100_000,
            random_state=0,
        ).fit(
            np.concatenate([rows, rows]),
            np.repeat([1, 0], 60),
            sample_weight=np.concatenate([targets, 1 - targets]),
        )
        ours = fit_l1_logistic(rows, targets, np.full(60, strength))
        assert ours == pytest.approx(model.coef_[0], abs=1e-6)


def test_length_does_not_count() -> None:
    """Where the judge goes by length alone, the controlled rate is that of a draw."""
    rng = np.random.default_rng(1)
    shorter = rng.integers(-40, 80, size=400)  # this model writes more, mostly
    lengths = [(100, 100 + int(d)) for d in shorter]
    spread = float(np.std(shorter, ddof=1))
    wins = 1 / (1 + np.exp(-2 * np.tanh(shorter / spread)))
    found = [verdict(1 + w, i, each) for i, (w, each) in enumerate(zip(wins, lengths, strict=True))]
    assert win_rate(found).win_rate > 55
    controlled = length_controlled(found)
    assert controlled.formula == "length_controlled_minimal"
    assert controlled.win_rate == pytest.approx(50, abs=0.3)
    assert controlled.length == pytest.approx(-2, abs=0.05)
    assert controlled.difficulty is None
    known = dict.fromkeys(range(400), 0.5)
    assert length_controlled(found, difficulties=known).formula == "length_controlled_noreg"


def test_verdicts_that_no_fit_can_take() -> None:
    same = [verdict(1.2, i) for i in range(8)]
    with pytest.raises(InputError, match="by the same length"):
        length_controlled(same)
    few = [verdict(1.2, i, (5, 4 + i)) for i in range(3)]
    with pytest.raises(InputError, match="needs 5 verdicts"):
        length_controlled(few)
    with pytest.raises(InputError, match="none for instruction 2"):
        length_controlled(few, difficulties={0: 0.1, 1: 0.2, 2: math.nan})
    itself = [Annotation(0, "a", "a", "gpt4", "gpt4", 1.3)]
    assert length_controlled(itself).win_rate == 50


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "df_gamed.csv"
    path.write_text(
        "index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"
        "0,concise,0.4,1.0,0.7,False\n0,verbose,,-1.0,0.7,False\n1,verbose,0.2,-1.0,0.1,False\n"
    )
    gamed = read_gamed(path)
    assert gamed.difficulties == {0: 0.7, 1: 0.1}
    assert gamed.preference.tolist() == [0.4, 0.2]
    path.write_text(",instruction_difficulty\n0,0.7\n1,0.1\n")
    assert read_difficulties(path) == {0: 0.7, 1: 0.1}
    with pytest.raises(InputError, match="has no column 'index'"):
        read_gamed(path)
    path.write_text("index\nx\n")
    with pytest.raises(InputError, match="names no two columns"):
        read_difficulties(path)
    path.write_text("index,difficulty\n1,hard\n")
    with pytest.raises(InputError, match="no number"):
        read_difficulties(path)
    path.write_text("index,difficulty\n0,0.5\n,0.5\n")
    with pytest.raises(InputError, match="row 2 has no number of an instruction"):
        read_difficulties(path)
    path.write_text("index,preference,std_delta_len,instruction_difficulty\n0,0.4,,0.7\n")
    with pytest.raises(InputError, match="without a length or a difficulty"):
        read_gamed(path)


@pytest.fixture
def synthetic(tmp_path: Path) -> tuple[list[dict[str, Any]], Path, Path]:
    """Annotations of part of the instructions, and both tables."""
    rng = np.random.default_rng(2)
    difficulty = rng.normal(size=COUNT)
    lines = ["index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model, shift in (("concise", 1.0), ("verbose", -1.0)):
        for index, gamma in enumerate(difficulty):
            length = rng.normal(shift, 0.5)
            score = -np.tanh(length) + 0.4 * gamma + rng.normal()
            won = 1 / (1 + np.exp(-score))
            lines.append(f"{index},{model},{won},{length},{gamma},False")
    gamed, table = tmp_path / "df_gamed.csv", tmp_path / "instruction_difficulty.csv"
    gamed.write_text("\n".join(lines) + "\n")
    rows = "\n".join(f"{index},{gamma}" for index, gamma in enumerate(difficulty))
    table.write_text(f",instruction_difficulty\n{rows}\n")
    annotations = []
    for index in range(0, COUNT, 2):
        ours, theirs = (int(n) for n in rng.integers(20, 400, size=2))
        score = (ours - theirs) / 150 + 0.5 * difficulty[index] - 1 + rng.normal()
        annotations.append(
            row(
                index=index,
                instruction=f"question {index}",
                output_1="x" * theirs,
                output_2="y" * ours,
                annotator="judge",
                preference=1 + 1 / (1 + np.exp(-2 * score)),
            )
        )
    annotations[3]["preference"] = 1.5
    return annotations, gamed, table


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """alpaca_eval's length-controlled win rate, with a table given by its path."""
    pytest.importorskip("pandas", reason="alpaca_eval needs pandas")
    # It imports a module that setuptools no longer has, for uses that are not reached here.
    if "pkg_resources" not in sys.modules:
        monkeypatch.setitem(sys.modules, "pkg_resources", types.ModuleType("pkg_resources"))
    glm = pytest.importorskip(
        "alpaca_eval.metrics.glm_winrate", reason="alpaca_eval is not installed"
    )
    import pandas as pd
    import sklearn

    def figures(rows: list[dict[str, Any]], gamed: Path, formula: str) -> dict[str, float]:
        monkeypatch.setattr(glm, "hf_hub_download", lambda **_: str(gamed))
        before = sklearn.get_config()["enable_metadata_routing"]
        try:
            found: dict[str, float] = glm.get_length_controlled_winrate(
                pd.DataFrame(rows),
                glm_name=formula,
                save_weights_dir=None,
                is_warn_extreme_changes=False,
            )
        finally:
            sklearn.set_config(enable_metadata_routing=before)
        return found

    return figures


@pytest.mark.filterwarnings("ignore::FutureWarning:sklearn")  # of alpaca_eval's `penalty=`
@pytest.mark.filterwarnings("ignore::DeprecationWarning:alpaca_eval")
@pytest.mark.filterwarnings("ignore:.*:pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.parametrize("formula", ["v1", "noreg", "minimal"])
def test_parity_with_alpaca_eval(
    formula: str,
    synthetic: tuple[list[dict[str, Any]], Path, Path],
    oracle: Callable[..., dict[str, float]],
    tmp_path: Path,
) -> None:
    rows, gamed, table = synthetic
    given: dict[str, Any] = {
        "v1": {"gamed": read_gamed(gamed)},
        "noreg": {"difficulties": read_difficulties(table)},
        "minimal": {},
    }[formula]
    theirs = oracle(rows, gamed, f"length_controlled_{formula}")
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows[::-1]))  # matched by their words, not by their places
    ours = read_annotations(path, [Instruction(f"question {i}") for i in range(COUNT)])
    raw, controlled = win_rate(ours), length_controlled(ours, **given)
    assert raw.win_rate == pytest.approx(theirs["win_rate"], abs=1e-9)
    assert raw.standard_error == pytest.approx(theirs["standard_error"], abs=1e-9)
    assert raw.discrete == pytest.approx(theirs["discrete_win_rate"], abs=1e-9)
    assert (raw.wins, raw.draws) == (theirs["n_wins"], theirs["n_draws"])
    assert controlled.formula == f"length_controlled_{formula}"
    assert controlled.win_rate == pytest.approx(theirs["length_controlled_winrate"], abs=0.05)
    assert controlled.standard_error == pytest.approx(theirs["lc_standard_error"], abs=0.05)
    assert abs(controlled.win_rate - raw.win_rate) > 0.5  # the control does something
