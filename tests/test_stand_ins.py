"""`scripts/stand_ins.py`: it knows every shipped recipe, and runs them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from paretune.baselines.recipe import load_comparison
from paretune.recipes import load_recipe, shipped_recipes
from paretune.recipes.data_weighting import load_weigh_recipe

SCRIPT = Path(__file__).parents[1] / "scripts" / "stand_ins.py"
LOAD = {"sweep": load_recipe, "compare": load_comparison, "weigh": load_weigh_recipe}


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
