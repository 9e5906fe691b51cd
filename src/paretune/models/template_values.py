"""Values that a chat template is given once and for all: its variables, and the day."""

import contextlib
import copy
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from paretune.errors import InputError
from paretune.models.built_in import BUILT_IN
from paretune.models.source import model_source


def with_template_variables(tokenizer: Any, variables: Mapping[str, Any]) -> Any:
    """A copy of the tokenizer whose chat template has these values.

    Raises:
        InputError: it has no template, or several, or a name is no variable's.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = _with_variables(tokenizer.chat_template, variables)
    return tokenizer


def with_date(template: str, date: str) -> str:
    """The chat template with a clock that stands still, if it asks for the time.

    Jinja has no dates, so every directive of `strftime` is a replacement in the format.
    """
    if "strftime_now" not in template:
        return template
    moment = datetime.fromisoformat(date).replace(tzinfo=None)
    letters = "aAbBcCdDeFgGhHIjklmMnprRsStTuUVwWxXyYzZ"
    directives = [f"%{sign}{letter}" for sign in ("-", "_", "") for letter in letters]
    replacements = "".join(
        f"|replace({json.dumps(each)}, {json.dumps(moment.strftime(each))})" for each in directives
    )
    clock = f"{{% macro strftime_now(format) %}}{{{{ format{replacements} }}}}{{% endmacro %}}"
    return clock + "{{ '' }}" + template  # so that the template's first newline stays


def asks_for_date(
    name: str | os.PathLike[str], variables: Mapping[str, Any], revision: str | None = None
) -> bool:
    """Whether a model's chat template prints the day on which it is used.

    Args:
        variables: Values it is given, one of which may be the date itself (``date_string`` of
            Llama 3).
    """
    if str(name) in BUILT_IN:
        return False
    from transformers.utils.hub import cached_file

    text = ""
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        with contextlib.suppress(OSError, ValueError):
            if found := cached_file(model_source(name), file, revision=revision or "main"):
                text += Path(found).read_text(encoding="utf-8")
    kept = re.findall(r"set\s+(\w+)\s*=\s*strftime_now", text)
    return "strftime_now" in text and not (kept and set(kept) <= set(variables))


def _with_variables(template: Any, variables: Mapping[str, Any]) -> str:
    """The chat template with values set at its top, where every use of it finds them."""
    if not isinstance(template, str):
        raise InputError("Variables of a chat template need a tokenizer with one such template.")
    settings = ""
    for name, value in variables.items():
        if not name.isidentifier():
            raise InputError(f"template_variables: {name!r} is not a variable's name.")
        # JSON's literals are Jinja's: true, false, numbers, quoted strings, lists.
        settings += f"{{%- set {name} = {json.dumps(value)} -%}}"
    return settings + template
