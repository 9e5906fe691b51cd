"""Packages that single commands need: each is an extra, and is asked for where it is missing."""

import importlib.util
from collections.abc import Mapping

from paretune.errors import InputError

EXTRAS: Mapping[str, str] = {
    "openai": "judge",
    "plotly": "report",
    "gradio": "serve",
    "bitsandbytes": "quantization",
    "ray": "ray",
}
"""The extra of `pyproject.toml` that brings a package."""


def require(package: str, purpose: str) -> None:
    """See, without importing it, that a package of an extra is there.

    Args:
        package: one of `EXTRAS`.
        purpose: what it is for, as the subject of a sentence.

    Raises:
        InputError: it is not installed; says how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"{purpose} needs {package}; run: pip install 'paretune[{EXTRAS[package]}]'"
        )
