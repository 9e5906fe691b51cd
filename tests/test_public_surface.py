"""What a user sees, against what 0.1 had: names, commands, recipe keys, shipped recipes, run files.

Whatever a file of ``golden/`` lists must still be there and be the same. What has come since then
must be listed, by its key, in ``golden/additions.json`` (a new class or function without its
parameters): an addition is a deliberate act, and so is taking one back. Only where something of 0.1
is given up on purpose are the files written again:

    PYTHONPATH=tests python -c "import test_public_surface as t; t.write_golden()"

The package may be laid out anew as long as the imports below find what they name.
"""

import dataclasses
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

import pytest
import typer
from pydantic import BaseModel
from transformers import TrainingArguments
from typer.testing import CliRunner

from paretune import cli, moo
from paretune.baselines.recipe import CompareRecipe
from paretune.moo import bilevel
from paretune.recipes import Recipe, reference, shipped_recipes
from paretune.recipes.data_weighting import WeighRecipe
from paretune.training import ClampConfig

GOLDEN = Path(__file__).parent / "golden"
TINY = Path(__file__).parent / "fixtures" / "tiny"

MODULES = ("paretune", "paretune.moo", "paretune.training", "paretune.data", "paretune.losses")
LOADERS = ("load", "load_pairs", "load_ratings")
RECIPES: dict[str, type[BaseModel]] = {
    "sweep": Recipe,
    "compare": CompareRecipe,
    "weigh": WeighRecipe,
}
WEIGH_METHODS: dict[str, tuple[type[Any], ...]] = {
    "wc_augmented": (moo.WCAugmented, moo.StochasticWCAugmented, bilevel.EqualityConstrained),
    "wc_penalty": (moo.WCPenalty,),
    "wc_soba": (bilevel.WCSOBA,),
    "itd": (bilevel.ITD,),
    "soba": (bilevel.SOBA,),
    "moml": (bilevel.MOML,),
    "moco": (bilevel.MoCo,),
    "forum": (bilevel.FORUM,),
    "gmoba": (bilevel.GMOBA,),
    "lookahead": (bilevel.Lookahead,),
}
"""The classes whose fields are a method's options in a recipe of `paretune weigh`."""
NOT_OPTIONS = ("method", "record_every", "on_record", "seed", "batch")

Surface = dict[str, Any]


# ---------------------------------------------------------------------- what there is today


def names() -> Surface:
    """Public names of the modules, with the parameters of what can be called."""
    found: Surface = {}
    for module_name in MODULES:
        module = import_module(module_name)
        for name in public(module):
            value = getattr(module, name)
            key = f"{module_name}.{name}"
            found[key] = kind_of(value)
            if module_name != "paretune":  # the others have them
                found |= parameters(key, value)
            for each in LOADERS if isinstance(value, ModuleType) else ():
                if hasattr(value, each):
                    found[f"{key}.{each}"] = "function"
                    found |= parameters(f"{key}.{each}", getattr(value, each))
    return found


def public(module: ModuleType) -> list[str]:
    """What a module says is public; else what is defined in it, and its literals."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = [
        name
        for name, value in vars(module).items()
        if str(getattr(value, "__module__", "")).startswith(module.__name__)
        or get_origin(value) is Literal
    ]
    return [name for name in own if not name.startswith("_")]


def kind_of(value: Any) -> Any:
    if get_origin(value) is Literal:
        return {"one of": list(get_args(value))}
    if get_origin(value) is not None or isinstance(value, UnionType):
        return "type"
    if inspect.isclass(value):
        return "class"
    if isinstance(value, ModuleType):
        return "module"
    return "function" if inspect.isfunction(value) else type(value).__name__


def parameters(key: str, value: Any) -> Surface:
    """``key(name)`` for each parameter; of a configuration, for each field of our own."""
    if inspect.isclass(value) and issubclass(value, TrainingArguments):
        return {f"{key}({name})": default for name, default in own_fields(value).items()}
    error = inspect.isclass(value) and issubclass(value, BaseException)
    if error or not (inspect.isfunction(value) or inspect.isclass(value)):
        return {}
    found: Surface = {}
    for position, each in enumerate(inspect.signature(value).parameters.values(), start=1):
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        where = {} if each.kind == each.KEYWORD_ONLY else {"position": position}
        found[f"{key}({each.name})"] = where | (
            {"required": True} if each.default is each.empty else {"default": plain(each.default)}
        )
    return found


def own_fields(config: type[Any]) -> Surface:
    """Fields of a trainer's configuration that it does not take as they are from transformers."""
    classes = [c for c in config.__mro__ if c.__module__.startswith("paretune")]
    own = {name for each in classes for name in each.__annotations__}
    return {
        field.name: {"default": plain(default_of(field))}
        for field in dataclasses.fields(config)
        if field.name in own
    }


def default_of(field: "dataclasses.Field[Any]") -> Any:
    missing = dataclasses.MISSING
    return field.default_factory() if field.default_factory is not missing else field.default


def plain(value: Any) -> Any:
    """A default as JSON can hold it, without anything that says where it is defined."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, set | frozenset):
        return sorted(plain(each) for each in value)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not inspect.isclass(value):
        own = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {type(value).__name__: own}
    if isinstance(value, Path):
        return value.as_posix()
    if repr(value) == "<factory>":  # of a dataclass
        return "made anew"
    return value.__name__ if inspect.isclass(value) else f"a {type(value).__name__}"


def commands() -> Surface:
    """Every command of the command line, with its arguments and options."""
    return dict(_commands(typer.main.get_command(cli.app), "paretune"))


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    yield path, "group" if below else "command"
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    for each in command.params:
        common = {"required": each.required, "default": plain(each.default)}
        if each in arguments:
            more = {"position": arguments.index(each) + 1, "several": each.nargs == -1}
            yield f"{path} {each.metavar or each.name.upper()}", common | more
        else:
            more = {"names": [*each.opts, *each.secondary_opts], "flag": each.is_flag}
            variable = {"variable": each.envvar} if each.envvar else {}
            yield f"{path} {each.opts[0]}", common | more | {"several": each.multiple} | variable
    for name, each in below.items():
        yield from _commands(each, f"{path} {name}")


def recipe_keys() -> Surface:
    """Every key of a recipe, dotted, with its default; ``key = value`` for what it may be set to.

    ``[]`` is any item of a list, ``*`` any name, ``(name)`` the one of several sections that has
    this name.
    """
    found: Surface = {}
    for command, recipe in RECIPES.items():
        for each in reference.recipe_keys(recipe):
            key = f"{command}: {each.key}"
            section = each.default == reference.SECTION
            default = {"default": "a section" if section else plain(each.default)}
            required = {"required": True}
            found.setdefault(key, required if each.default is reference.REQUIRED else default)
            found |= {f"{key} = {choice}": "a choice" for choice in each.choices}
    for name, classes in WEIGH_METHODS.items():
        for kind in classes:
            for field in dataclasses.fields(kind):
                if field.init and field.name not in NOT_OPTIONS:
                    which = "" if kind is classes[0] else f" of {kind.__name__}"
                    found[f"weigh: methods.{name}.{field.name}{which}"] = {
                        "default": plain(default_of(field))
                    }
    # The others are keys of the sections `method`, `loss` and `sweep`.
    elsewhere = {key.split(": ")[1].split(".")[-1] for key in found if key.startswith("sweep: ")}
    for command in ("sweep", "compare"):
        for name, default in own_fields(ClampConfig).items():
            if name not in elsewhere | {"preference"}:
                found[f"{command}: train.{name}"] = default
    return found


def shipped() -> Surface:
    """The recipes in the package, by command."""
    return {
        f"{command}: {name}": "recipe" for command in RECIPES for name in shipped_recipes(command)
    }


def run_files() -> Surface:
    """The files that the commands leave in a run folder."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"XDG_CACHE_HOME": f"{folder}/cache"}),
    ):
        sweep, compare, weigh = (Path(folder, name) for name in RECIPES)
        model = TINY / "model"
        inputs = [f"model.name={model}", f"data.path={TINY / 'pairs.jsonl'}", "train.max_steps=1"]
        paretune("sweep", TINY / "tiny.yaml", *inputs, f"output_dir={sweep}")
        found = {f"sweep: {name}": "file" for name in files_in(sweep)}
        paretune("evaluate", sweep, "--split", "validation")
        paretune("report", sweep, "--base")
        paretune("export", sweep, "--merge")
        more = [name for name in files_in(sweep) if f"sweep: {name}" not in found]
        found |= {f"evaluate, report, export: {name}": "file" for name in more}

        methods = "methods: [{name: clamp}, {name: rewarded_soups, label: Soups}]\n"
        recipe = Path(folder, "tiny_compare.yaml")
        recipe.write_text((TINY / "tiny.yaml").read_text(encoding="utf-8") + methods)
        paretune("compare", recipe, *inputs, f"output_dir={compare}")
        found |= {f"compare: {name}": "file" for name in files_in(compare)}

        inputs = [f"task.model.name={model}", f"output_dir={weigh}"]
        paretune("weigh", TINY / "tiny_weigh.yaml", *inputs)
        found |= {f"weigh: {name}": "file" for name in files_in(weigh)}
    return found


def paretune(*arguments: str | Path) -> None:
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def files_in(run: Path) -> list[str]:
    """The files in a folder; of whole models, whose files are up to transformers, the weights."""
    found = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    models = [path.parent for path in found if path.name == "model.safetensors"]
    kept = [p for p in found if p.parent not in models or p.name == "model.safetensors"]
    return sorted(path.as_posix() for path in kept)


SECTIONS: dict[str, Callable[[], Surface]] = {
    "names": names,
    "commands": commands,
    "recipe_keys": recipe_keys,
    "shipped": shipped,
    "run_files": run_files,
}


# ---------------------------------------------------------------------- against what there was


def differences(golden: Surface, today: Surface, additions: Iterable[str]) -> list[str]:
    """What is not as it was, a line each."""
    absent = object()
    added = set(additions)
    lines = [f"gone: {key} (it was {value})" for key, value in golden.items() if key not in today]
    lines += [
        f"changed: {key} was {value}, and is {today[key]}"
        for key, value in golden.items()
        if today.get(key, absent) not in (value, absent)
    ]
    lines += [
        f"new: {key} is not in golden/additions.json; list it there if it is meant"
        for key in today
        if key not in golden and key not in added and key.partition("(")[0] not in added
    ]
    return lines + [
        f"gone: {key} is listed in golden/additions.json; strike it out there if it is meant"
        for key in sorted(added - today.keys())
    ]


def read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def write_golden() -> None:
    """Write what there is today as what there must be; see the top of the file."""
    GOLDEN.mkdir(exist_ok=True)
    for name, collect in SECTIONS.items():
        rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in collect().items()]
        text = "{\n" + ",\n".join(rows) + "\n}\n"
        (GOLDEN / f"{name}.json").write_text(text, encoding="utf-8")
    empty: dict[str, list[str]] = {name: [] for name in SECTIONS}
    (GOLDEN / "additions.json").write_text(json.dumps(empty, indent=2) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "section",
    [pytest.param(s, marks=pytest.mark.slow if s == "run_files" else ()) for s in SECTIONS],
)
def test_what_users_see_stays(section: str) -> None:
    lines = differences(read(section), SECTIONS[section](), read("additions")[section])
    if lines:
        pytest.fail(f"{section} (see golden/): not as in 0.1\n" + "\n".join(lines), pytrace=False)


def test_additions_are_of_known_sections() -> None:
    assert set(read("additions")) == set(SECTIONS)


def test_weigh_methods_are_all_here() -> None:
    methods = WeighRecipe.model_fields["methods"]
    assert methods.is_required()
    task = {"name": "mnist"}
    rest = {"name": "x", "output_dir": "x", "preferences": ["uniform"], "budget": 1, "task": task}
    WeighRecipe.model_validate({**rest, "methods": list(WEIGH_METHODS)})
    with pytest.raises(ValueError, match="There are " + ", ".join(WEIGH_METHODS)):
        WeighRecipe.model_validate({**rest, "methods": ["other"]})


def test_every_difference_is_told() -> None:
    golden = {"same": 1, "changed": 1, "gone": None}
    today = {"same": 1, "changed": 2, "meant": 1, "unmeant": 1}
    told = differences(golden, today, ["meant", "taken back"])
    assert [line.split()[:2] for line in told] == [
        ["gone:", "gone"],
        ["changed:", "changed"],
        ["new:", "unmeant"],
        ["gone:", "taken"],
    ]
    assert differences(golden, golden, []) == []
