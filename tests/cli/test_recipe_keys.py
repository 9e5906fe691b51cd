"""``paretune recipes --keys`` and ``--schema``."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from paretune import yaml_syntax
from paretune.cli import app
from paretune.recipes import shipped_recipes
from paretune.recipes.mixture import is_mixture
from paretune.recipes.reference import keys_of
from paretune.recipes.schema import Recipe


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["recipes", *arguments])


def test_keys_of_all_and_of_one_section() -> None:
    text = _run("--keys").stdout
    for key in keys_of(Recipe):
        assert key.key in text
    text = _run("--keys", "lora").stdout
    assert "lora.alpha" in text
    assert "sweep" not in text
    text = _run("--keys", "method").stdout
    assert "method.mu (of clamp)" in text
    text = _run("--keys", "methods", "--kind", "compare").stdout
    assert "methods[].options(ric).keep_quantile " in text  # the key says whose it is
    assert len(text.splitlines()[0][1:-1].split("┳")[-1]) > 16  # meanings have room


def test_a_section_that_is_not_there() -> None:
    found = _run("--keys", "lorra")
    assert "did you mean 'lora'" in str(found.exception)


@pytest.mark.parametrize("kind", ["sweep", "compare", "weigh", "mixture"])
def test_shipped_recipes_follow_the_schema(kind: str) -> None:
    schema = json.loads(_run("--schema", "--kind", kind).stdout)
    command: Any = "weigh" if kind == "mixture" else kind
    texts = shipped_recipes(command)
    if command == "weigh":
        texts = {n: t for n, t in texts.items() if is_mixture(t, n) == (kind == "mixture")}
    for name, text in texts.items():
        recipe = yaml_syntax.parse(text, name)
        assert list(_faults(recipe, schema, schema)) == []
        assert list(_faults({**recipe, "modle": "x"}, schema, schema)) == ["modle"]
        assert list(_faults({}, schema, schema)) != []


def _faults(value: Any, schema: Any, root: Any, place: str = "") -> Iterator[str]:
    """Places of a value that break a schema of the words that pydantic uses."""
    if schema is True:
        return
    if "$ref" in schema:
        name = schema["$ref"].split("/")[-1]
        yield from _faults(value, root["$defs"][name], root, place)
    if "anyOf" in schema and all(list(_faults(value, s, root, place)) for s in schema["anyOf"]):
        yield place
    if "enum" in schema and value not in schema["enum"]:
        yield place
    if "const" in schema and value != schema["const"]:
        yield place
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kinds |= {"number": (int, float), "integer": int}  # type: ignore[dict-item]
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        yield place
        return
    if isinstance(value, list):
        for each in value:
            yield from _faults(each, schema.get("items", True), root, f"{place}[]")
    if isinstance(value, dict) and schema.get("type") == "object":
        known = schema.get("properties", {})
        for key, each in value.items():
            below = known.get(key, schema.get("additionalProperties", True))
            if below is False:
                yield f"{place}{key}"
            else:
                yield from _faults(each, below, root, f"{place}{key}.")
        yield from (f"{place}{key}" for key in schema.get("required", ()) if key not in value)
