"""The documentation says what is there: commands, options, keys, names, links; its code runs."""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import typer
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer, RewardConfig

from paretune import ClampConfig, ClampTrainer, DataWeightingConfig
from paretune.baselines.recipe import load_comparison
from paretune.cli import app
from paretune.recipes import Recipe, load_recipe, shipped_recipes
from paretune.recipes.data_weighting import load_weigh_recipe
from paretune.recipes.reference import recipe_keys
from paretune.runs.reward import load_reward_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
MADE = {"reference", "contributing.md", "changelog.md", "index.md", "tutorial.md"}  # by `make docs`
FENCE = re.compile(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
RUNNABLE = "<!-- runnable -->\n"


def fenced(text: str, *languages: str) -> Iterator[tuple[str, bool]]:
    """Code in one of the languages ("" is none), each with whether it is to be run."""
    for found in FENCE.finditer(text):
        if found[2] in languages:
            yield dedent(found[3]), text[: found.start()].endswith(RUNNABLE)


# --- Command lines ---


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every call of paretune: in shell code and between backticks."""
    prose = FENCE.sub("", text)
    shell = [block for block, _ in fenced(text, "", "bash", "sh", "console", "yaml")]
    shell += [dedent(found[0]) for found in INDENTED.finditer(prose)]
    shell += re.findall(r"`(paretune [^`]+)`", prose)
    for block in shell:
        waiting = ""
        for line in block.splitlines():
            waiting = f"{waiting}{line.removesuffix(chr(92))}\n"
            if line.endswith("\\"):
                continue
            try:
                words = shlex.split(waiting, comments=True)
            except ValueError:  # a quotation goes on in the next line
                continue
            waiting = ""
            if "paretune" in words and not words[0].startswith(("#", "pip", "$ #")):
                words = words[words.index("paretune") + 1 :]
                yield words[: words.index("|")] if "|" in words else words


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for word, inner in command.commands.items():
            yield from commands(inner, f"{name} {word}".strip())
    else:
        yield name, command


COMMANDS = dict(commands(typer.main.get_command(app)))
READERS = {
    "compare": load_comparison,
    "weigh": load_weigh_recipe,
    "reward train": load_reward_recipe,
}
USUAL = {"compare": "demo_compare", "weigh": "weigh_mnist"}
READS_ALL = {"plan": ["sweep", "compare", "weigh"]}
SHIPPED = {name: text for kind in READS_ALL["plan"] for name, text in shipped_recipes(kind).items()}  # type: ignore[arg-type]


def check(words: list[str]) -> None:
    """Raises if a command, an option, a shipped recipe or a recipe's key is not there."""
    if (
        not words
        or words[0] in ("--help", "--version", "--install-completion", "...")
        or words[0].isupper()
    ):
        return
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    groups = {each.split(" ")[0] for each in COMMANDS}
    assert name in COMMANDS or (len(words) == 1 and name in groups), f"no command {name!r}"
    if name not in COMMANDS:
        return
    options = {
        flag: parameter
        for parameter in COMMANDS[name].params
        if parameter.param_type_name == "option"
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    positional, preference = [], False
    rest = iter(words[len(name.split(" ")) :])
    for word in rest:
        if not word.startswith("-"):
            positional.append(word)
            continue
        flag, equals, _ = word.partition("=")
        assert flag in options or flag in ("--help", "-h"), f"{name} has no option {flag}"
        preference |= flag == "--prefer"
        if flag in options and not equals and not options[flag].is_flag:
            assert next(rest, None) is not None or "..." in words, f"{flag} needs a value"
    if "--data" in words:  # files take the place of a recipe
        return
    overrides = [word for word in positional if re.match(r"[a-z_.]+=", word)]
    if preference:  # weights follow it: objectives are not known here
        overrides = [word for word in overrides if "." in word.split("=")[0]]
    takes_recipe = any(each.metavar == "RECIPE" for each in COMMANDS[name].params)
    recipe = positional[0] if positional else USUAL.get(name, "demo_sweep")
    if takes_recipe and not recipe.isupper() and not recipe.endswith(".yaml"):
        kinds: Any = [name] if name in USUAL else READS_ALL.get(name, ["sweep"])
        of = [kind for kind in kinds if recipe in shipped_recipes(kind)]
        assert of, f"no recipe {recipe!r} of {name}"
        name = of[0] if name in READS_ALL else name
    else:
        recipe = USUAL.get(name, "demo_sweep")
    if overrides and overrides != ["key=value"]:
        read: Any = READERS.get(name, load_recipe)(recipe, overrides)
        for kind, train in (
            (DataWeightingConfig if name == "weigh" else ClampConfig, getattr(read, "train", {})),
            (RewardConfig, read.reward.train if hasattr(read, "reward") else {}),
        ):
            assert train.keys() <= {each.name for each in dataclasses.fields(kind)}, train.keys()


@pytest.mark.parametrize("page", TEXTS)
def test_command_lines(page: str) -> None:
    for words in command_lines(TEXTS[page]):
        try:
            check(words)
        except Exception as error:
            raise AssertionError(f"{page}: paretune {shlex.join(words)}: {error}") from error


def head_of(recipe: str) -> str:
    """A recipe's comments, as code."""
    lines = SHIPPED[recipe].splitlines()
    return "".join(f"    {line[1:]}\n" for line in lines if line.startswith("#"))


@pytest.mark.parametrize("recipe", SHIPPED)
def test_command_lines_at_the_head_of_recipes(recipe: str) -> None:
    for words in command_lines(head_of(recipe)):
        try:
            check(words)
        except Exception as error:
            raise AssertionError(f"paretune {shlex.join(words)}: {error}") from error


def test_command_lines_are_found_and_wrong_ones_told() -> None:
    assert sum(len(list(command_lines(text))) for text in TEXTS.values()) > 60
    assert sum(len(list(command_lines(head_of(recipe)))) for recipe in SHIPPED) > 30
    for wrong in (
        "sweeps demo",
        "sweep demos",
        "sweep demo --frsh",
        "sweep demo train.max_step=2",
        "evaluate runs/demo evaluation.n=1",
        "judge runs/demo --loca",
        "weigh demo",
    ):
        with pytest.raises(Exception, match=r".+"):
            check(wrong.split())


# --- Python ---

CODE = [(page, code, run) for page, text in TEXTS.items() for code, run in fenced(text, "python")]


@pytest.mark.parametrize(("page", "code"), [(page, code) for page, code, _ in CODE])
def test_names_that_python_examples_import(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paretune"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def runnable() -> Iterator[Any]:
    for number, (page, code, run) in enumerate(CODE):
        if run:
            marks = [pytest.mark.model] if "smollm2" in code else []
            yield pytest.param(code, marks=marks, id=f"{page}-{number}")


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # torch's, where there is no GPU
@pytest.mark.parametrize("code", list(runnable()))
def test_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})
    if 'output_dir="out"' in code:
        assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


# --- Links ---


@pytest.mark.parametrize("page", TEXTS)
def test_links(page: str) -> None:
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\(([^)#\s]+)", TEXTS[page])
    targets += re.findall(r'(?:src|srcset)="([^"]+)"', TEXTS[page])
    for target in targets:
        path = (folder / target).resolve()
        made = (
            path.is_relative_to(ROOT / "docs") and path.relative_to(ROOT / "docs").parts[0] in MADE
        )
        assert "://" in target or path.exists() or made, f"{page} links to {target}"


# --- From TRL ---


def test_the_page_on_trl_names_what_both_sides_have() -> None:
    arguments, fields = TEXTS["docs/from-trl.md"].split("## Fields of the configuration")
    ours, theirs = _columns(arguments)
    assert theirs == set(inspect.signature(DPOTrainer).parameters)
    assert ours == set(inspect.signature(ClampTrainer).parameters)

    inherited = {each.name for each in dataclasses.fields(TrainingArguments)}
    ours, theirs = _columns(fields)
    their_own, our_own = (
        {each.name for each in dataclasses.fields(kind)} for kind in (DPOConfig, ClampConfig)
    )
    assert theirs <= their_own
    assert ours <= our_own
    deprecated = {"use_liger_kernel", "lr_scheduler_kwargs", "torch_empty_cache_steps"}
    assert their_own - inherited <= theirs | deprecated
    assert our_own - inherited <= ours


def _columns(text: str) -> tuple[set[str], set[str]]:
    """Names in the second and in the first column of a table."""
    rows = re.findall(r"^\| (\S+) \| (\S+) \|", text, re.MULTILINE)[1:]
    theirs, ours = (
        {cell[1:-1] for cell in column if cell[0] == "`"} for column in zip(*rows, strict=True)
    )
    return ours, theirs


# --- The site ---


@pytest.mark.slow
def test_the_site_builds_strictly_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(build, cwd=ROOT, env=environment, check=True, capture_output=True)

    loads = re.compile(
        r'<(?:script|img|iframe|source)[^>]*\bsrc="https?:|<link[^>]*\bhref="https?:'
    )
    for page in tmp_path.rglob("*.html"):
        assert not loads.search(page.read_text(encoding="utf-8")), page
    for sheet in tmp_path.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8"), sheet

    reference = {page.stem: page.read_text() for page in (tmp_path / "reference").glob("*.html")}
    for module in ("paretune", "paretune.data", "paretune.moo", "paretune.training"):
        for name in importlib.import_module(module).__all__:
            assert name == "__version__" or name in reference[module], f"{module}.{name}"
    for command in COMMANDS:
        assert f"paretune {command}" in reference["commands"]
    for key in recipe_keys(Recipe):
        assert key.key in reference["sweep"]
