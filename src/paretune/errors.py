"""Errors that are the user's to mend."""

import re
from collections.abc import Mapping
from typing import Any


class InputError(ValueError):
    """A mistake in what the user gave: one sentence saying what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class NothingToShowError(InputError):
    """A run folder without anything that the command shows; with others it can be left out."""


class TrainingStoppedError(RuntimeError):
    """Training could not go on (gradients stayed non-finite, say); a checkpoint was kept."""


class UntrainedError(TrainingStoppedError):
    """A training that ended without a change of any weight: its point is not one of a front."""


def first_line(error: BaseException) -> str:
    """What an error says, in its first line and without the full stop; else its type's name.

    >>> first_line(OSError("no such file.\\nSearched here and there"))
    'no such file'
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary": "a mapping of keys to values",
    "a finite number": "finite",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}


def validation_problem(details: Mapping[str, Any]) -> str:
    """What is wrong with a value, from one of pydantic's errors, in this program's words.

    >>> validation_problem({"type": "greater_than", "msg": "Input should be greater than 0"})
    'it must be above 0'
    """
    given = details.get("ctx", {}).get("error")
    if given is not None:
        return str(given).rstrip(".")
    text = str(details["msg"]).replace(" after validation", "")
    if details["type"] in ("model_type", "model_attributes_type", "dict_type", "dataclass_type"):
        return "it must be a section, keys with values"
    if details["type"] == "int_from_float":
        return "it must be a whole number"
    text = re.sub(r" or instance of \w+$|, got .*$", "", text)
    text = re.sub(r", unable to parse .*$", "", text)
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    text = re.sub(r"^(Input|Value|List|Dictionary|String|Tuple) should ", "it must ", text)
    return f"{text[0].lower()}{text[1:]}".rstrip(".")
