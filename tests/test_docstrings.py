"""Examples in docstrings, of every module of the package."""

import doctest
import importlib
import pkgutil

import pytest

import paretune

MODULES = [m.name for m in pkgutil.walk_packages(paretune.__path__, "paretune.") if not m.ispkg]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
