"""`scripts/stand_ins.py`: it knows every shipped recipe, and runs them."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from paretune.baselines.recipe import load_comparison
from paretune.recipes import load_recipe, shipped_recipes
from paretune.recipes.data_weighting import load_weigh_recipe
from paretune.report.papers.write import write_tables

SCRIPT = Path(__file__).parents[1] / "scripts" / "stand_ins.py"
LOAD = {"sweep": load_recipe, "compare": load_comparison, "weigh": load_weigh_recipe}

ONE = "preferences=[[0.96, 0.01, 0.01, 0.01, 0.01]]"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stand_ins", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stand_ins"] = module
    spec.loader.exec_module(module)
    return module


def test_every_shipped_recipe_loads_with_its_overrides(script: ModuleType, tmp_path: Path) -> None:
    shipped = {name for command in LOAD for name in shipped_recipes(command)}  # type: ignore[arg-type]
    assert set(script.OVERRIDES) == shipped, "scripts/stand_ins.py knows other recipes than ship"
    for name, overrides in script.overrides(tmp_path).items():
        LOAD[script.command_of(name)](name, overrides)
        keys = {each.partition("=")[0].split(".")[-1] for each in overrides}
        assert keys <= script.KEYS, f"{name}: more than names, paths and sizes"


@pytest.mark.slow
def test_all_methods_of_task_1_on_stand_ins(script: ModuleType, tmp_path: Path) -> None:
    """At one preference and with one validation; every adapter of the 8-bit base is in float32."""
    pytest.importorskip("bitsandbytes")
    names = [name for name in script.MODELS if "gpt2" in name or name == "Llama-3.2-1B-Instruct"]
    script.write_stand_ins(tmp_path, names)
    assert script.run("saferlhf_compare", tmp_path, ["sweep.preferences=[[0.8, 0.2]]"]) == 0
    run = tmp_path / "runs" / "saferlhf_compare"
    assert set(script.adapter_types(run)) == {"F32"}
    assert len(list(run.glob("cells/*/points/*/metrics.json"))) == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "further", "cells"),
    [
        ("ultrafeedback_compare_llama8b", [], 4),
        ("weigh_reward_helpsteer", [ONE], 7),
        ("weigh_llm_helpsteer_8b", [ONE], 3),
    ],
)
def test_recipes_of_the_larger_tables_on_stand_ins(
    script: ModuleType, tmp_path: Path, recipe: str, further: list[str], cells: int
) -> None:
    """Weighings at one preference, with every method."""
    if "compare" in recipe:
        pytest.importorskip("bitsandbytes")
    given = " ".join(script.overrides(Path("/x"))[recipe])
    script.write_stand_ins(tmp_path, [name for name in script.MODELS if f"/{name}" in given])
    assert script.run(recipe, tmp_path, further) == 0
    run = tmp_path / "runs" / recipe
    if "compare" in recipe:
        assert set(script.adapter_types(run)) == {"F32"}
        assert len(list(run.glob("cells/*/points/*/metrics.json"))) == cells
    else:
        found = [json.loads(path.read_text()) for path in run.glob("cells/*/result.json")]
        assert [each["status"] for each in found] == ["done"] * cells
    shown = write_tables([run], tmp_path / "tables")
    assert sum(each.filled for exhibits in shown.values() for each in exhibits)
