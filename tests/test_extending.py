"""A new loss, weighting, loader, baseline or bilevel method is one class or function, and one line.

The toy ones here are made outside the package, entered in the dict of their kind, and run through a
recipe, the command and the report.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from paretune import cli
from paretune.baselines import BASELINES
from paretune.baselines.context import Baseline, Context, Watch
from paretune.baselines.recipe import CompareRecipe
from paretune.data import LOADERS, PreferenceData, RatingRule, Source
from paretune.data.loading import hub_id
from paretune.data.safe_rlhf import load as load_safe_rlhf
from paretune.errors import InputError
from paretune.losses import DPO, LOSSES, PreferenceLoss, Scored
from paretune.moo import BilevelProblem, Problem, minimize
from paretune.moo.bilevel import METHODS, BilevelMethod, Iterate, Oracle
from paretune.moo.preference import Preference
from paretune.moo.weightings import WEIGHTINGS, Weights
from paretune.moo.weightings.base import ActiveObjectives
from paretune.recipes import Recipe, load_recipe
from paretune.recipes.reference import recipe_keys

TINY = Path(__file__).parent / "fixtures" / "tiny"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def paretune(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def swept(run: Path, *changes: str) -> dict[str, Any]:
    """Sweep one tiny point, report, and read the recipe back."""
    inputs = [f"model.name={TINY / 'model'}", f"data.path={TINY / 'pairs.jsonl'}"]
    small = ["train.max_steps=2", "sweep.preferences=[[0.3, 0.7]]", f"output_dir={run}"]
    paretune("sweep", TINY / "tiny.yaml", *inputs, *small, *changes)
    paretune("report", run)
    assert (run / "report.html").exists()
    saved = Recipe.from_yaml((run / "recipe.yaml").read_text(encoding="utf-8"), "it")
    assert saved.differences(load_recipe(run / "recipe.yaml")) == []
    (log,) = run.glob("points/*/log.jsonl")
    first: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").splitlines()[0])
    return first


@dataclass(frozen=True)
class Hinge(PreferenceLoss):
    """The slack less the margin, where that is positive.

    Attributes:
        slack: the margin that costs nothing.
    """

    needs_reference = True
    slack: float = 1.0

    def __call__(self, chosen: Scored, rejected: Scored, offset: Tensor | None = None) -> Tensor:
        return (self.slack - self.margins(chosen, rejected)).clamp(min=0)

    def reward(self, response: Scored) -> Tensor:
        return response.logps - response.required_reference


@pytest.mark.slow
def test_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "hinge", Hinge)
    log = swept(tmp_path / "run", "loss={harmless: {name: hinge, slack: 0.25}, helpful: dpo}")
    assert log["harmless/loss"] == pytest.approx(0.25)  # no margin yet
    assert log["helpful/loss"] == pytest.approx(0.6931472)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["losses"]["harmless"] == {"name": "hinge", "beta": 0.1, "slack": 0.25}
    assert {key.key: key.help for key in recipe_keys(Recipe)}["loss.slack"].startswith("the margin")
    with pytest.raises(InputError, match=r"'loss\.harmless\.slak'.*did you mean"):
        load_recipe(TINY / "tiny.yaml", ["loss={harmless: {name: hinge, slak: 1}, helpful: dpo}"])
    with pytest.raises(InputError, match="slack is an option of hinge, not of dpo"):
        load_recipe(TINY / "tiny.yaml", ["loss.slack=2.0"])


@dataclass(frozen=True)
class Shifted:
    """Linear weighting with something added to every weight."""

    shift: float = 0.0

    def __call__(
        self, gramian: Tensor, losses: Tensor, preference: Tensor | Sequence[float]
    ) -> Weights:
        live = ActiveObjectives.read(gramian, losses, preference)
        weights = [p + self.shift for p in live.preference]
        return live.weights(lam=weights, weights=weights, gap=0.0)


@pytest.mark.slow
def test_a_weighting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTINGS, "shifted", Shifted)
    log = swept(tmp_path / "run", "method={name: shifted, shift: 0.5}")
    assert (log["weight/harmless"], log["weight/helpful"]) == pytest.approx((0.8, 1.2))
    assert json.loads((tmp_path / "run" / "front.json").read_text())["method"] == "shifted"
    entry = {"name": "shifted", "options": {"shift": 0.25}}
    recipe = load_recipe(TINY / "tiny.yaml").model_dump() | {"methods": [entry]}
    assert CompareRecipe.model_validate(recipe).methods[0].parsed == Shifted(0.25)
    pair = Problem(lambda z: torch.stack([(z - 1) ** 2, (z + 1) ** 2]).flatten())
    found = minimize(pair, [0.5, 0.5], method="shifted", x0=[0.5])
    assert float(found.x) == pytest.approx(0.0, abs=1e-6)


def toy_loader(
    source: Source, *, objectives: Sequence[str], turned: bool = False
) -> PreferenceData:
    """Pairs of a file with the columns of SafeRLHF.

    Args:
        source: where they are.
        objectives: whose.
        turned: the other response is the better one.
    """
    data = load_safe_rlhf(source, objectives=objectives)
    if turned:
        swap = {"chosen": "rejected", "rejected": "chosen"}
        for name, pairs in data.pairs.items():
            data.pairs[name] = pairs.rename_columns({k: f"{k}_" for k in swap}).rename_columns(
                {f"{k}_": v for k, v in swap.items()}
            )
    return data


@pytest.mark.slow
def test_a_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOADERS, "toy", toy_loader)
    swept(tmp_path / "plain", "data.loader=toy")
    swept(tmp_path / "turned", "data.loader=toy", "data.turned=true")
    # Training takes the pairs the other way round, so that the adapters differ.
    losses = [json.loads((tmp_path / n / "front.json").read_text()) for n in ("plain", "turned")]
    assert losses[0]["points"] != losses[1]["points"]
    with pytest.raises(InputError, match=r"'data\.turnd'"):
        load_recipe(TINY / "tiny.yaml", ["data.loader=toy", "data.turnd=true"])
    with pytest.raises(InputError, match="data: the loader 'safe_rlhf' has no option 'turned'"):
        load_recipe(TINY / "tiny.yaml", ["data.turned=true"])
    with pytest.raises(InputError, match="has no option 'ties'"):
        load_recipe(TINY / "tiny.yaml", ["data.loader=toy", "data.ties=drop"])
    assert hub_id(toy_loader) is None
    assert RatingRule().ties == "drop"


class Untrained(Baseline):
    """A fresh adapter, which changes nothing."""

    steps: int = 0
    """Steps that it says it took."""

    def train(self, context: Context, preferences: Sequence[Preference]) -> None:
        from peft import get_peft_model

        from paretune.experiment.setup import lora_config
        from paretune.experiment.train_point import save_weights
        from paretune.models import load_model_and_tokenizer

        base, tokenizer = load_model_and_tokenizer(context.recipe.model.name)
        for preference in preferences:
            folder = context.point(preference)
            folder.mkdir(parents=True)
            save_weights(get_peft_model(base, lora_config(context.recipe)), tokenizer, folder)
            context.finish(folder, self.steps, Watch().spend())


@pytest.mark.slow
def test_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES, "untrained", Untrained)
    recipe, run = tmp_path / "tiny_compare.yaml", tmp_path / "run"
    methods = "methods: [{name: untrained, label: None at all, options: {steps: 3}}]\n"
    recipe.write_text((TINY / "tiny.yaml").read_text(encoding="utf-8") + methods)
    inputs = [f"model.name={TINY / 'model'}", f"data.path={TINY / 'pairs.jsonl'}"]
    small = ["sweep.preferences=[[0.3, 0.7]]", f"output_dir={run}"]
    paretune("compare", recipe, *inputs, *small, "methods.none at all.options.steps=4")
    paretune("report", run)
    (cell,) = json.loads((run / "compare.json").read_text(encoding="utf-8"))["cells"]
    assert (cell["method"], cell["options"], cell["failure"]) == ("untrained", {"steps": 4}, None)
    (loss, _) = (each["loss"] for each in cell["points"][0]["metrics"].values())
    assert loss == pytest.approx(0.6931472)


@dataclass(frozen=True, kw_only=True)
class Halving(BilevelMethod):
    """Halves both variables in every step."""

    factor: float = 0.5

    def iterate(
        self, oracle: Oracle, lam: tuple[float, ...], x: Tensor, y: Tensor
    ) -> Iterator[Iterate]:
        while True:
            oracle.lower_y(x, y)
            x, y = self.factor * x, self.factor * y
            yield Iterate(x, y)


@pytest.mark.slow
def test_a_bilevel_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "halving", Halving)
    run = tmp_path / "run"
    changes = [f"task.model.name={TINY / 'model'}", f"output_dir={run}"]
    paretune("weigh", TINY / "tiny_weigh.yaml", *changes, "methods={halving: {factor: 0.25}}")
    (result,) = run.glob("cells/*/result.json")
    found: Mapping[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    assert (found["method"], found["status"]) == ("halving", "done")
    assert found["options"] == {"factor": 0.25}
    problem = BilevelProblem(
        upper=lambda x, y: torch.stack([(x**2).sum(), (y**2).sum()]),
        lower=lambda x, y: ((x - y) ** 2).sum(),
    )
    point = minimize(problem, [0.5, 0.5], method="halving", x0=([1.0], [1.0]), steps=2).x
    assert [float(part) for part in point] == [0.25, 0.25]


def test_the_losses_of_a_recipe_by_objective() -> None:
    path = TINY / "tiny.yaml"
    recipe = load_recipe(path, ["loss={harmless: {name: ipo, beta: 0.2}, helpful: dpo}"])
    assert recipe.losses == {"harmless": LOSSES["ipo"](beta=0.2), "helpful": DPO()}
    again = Recipe.from_yaml(recipe.to_yaml(), "it")
    assert again == recipe
    assert "loss.harmless.beta: 0.2, not 0.1" in recipe.differences(
        load_recipe(path, ["loss={harmless: ipo, helpful: dpo}"])
    )
    with pytest.raises(InputError, match="'helpfull', which is no objective; did you mean 'help"):
        load_recipe(path, ["loss={harmless: dpo, helpfull: ipo}"])
    with pytest.raises(InputError, match="loss of objective 'helpful' is missing"):
        load_recipe(path, ["loss={harmless: dpo}"])
