"""What a folder's results depend on: a recipe or settings, and the data and models under them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paretune.errors import InputError
from paretune.files import read_object, write_json, write_text
from paretune.recipes.written import Written, differences

_GROUND = {"data": "data of", "tokenizer": "tokenizer's"}
_GROUND |= dict.fromkeys(("model", "generation"), "base model's")
_REWARDS = "reward model's"  # any other part


class Identity(Protocol):
    """What a folder's results depend on, and the file that says so."""

    @property
    def file(self) -> str: ...

    def known(self, folder: Path) -> bool:
        """Whether the folder's file was written by such a command, and not by its user."""
        ...

    def differences(self, folder: Path) -> list[str]:
        """Keys in which the folder's file says something else, as ``key: ours, not theirs``."""
        ...

    def write(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class RecipeIdentity:
    """A recipe, in ``recipe.yaml``."""

    recipe: Written
    file: str = "recipe.yaml"

    def known(self, folder: Path) -> bool:
        try:
            self._read(folder)
        except InputError:
            return False
        return True

    def differences(self, folder: Path) -> list[str]:
        return self.recipe.differences(self._read(folder))

    def write(self, folder: Path) -> None:
        write_text(folder / self.file, self.recipe.to_yaml())

    def _read(self, folder: Path) -> Written:
        return type(self.recipe).from_file(folder / self.file)


@dataclass(frozen=True)
class SettingsIdentity:
    """Settings in a JSON file, in which they may stand under a `key` beside something else."""

    file: str
    settings: Mapping[str, Any]
    key: str | None = None

    def known(self, folder: Path) -> bool:
        return True

    def differences(self, folder: Path) -> list[str]:
        saved = read_object(folder / self.file)
        theirs = saved if self.key is None else saved.get(self.key)
        return differences(self.settings, theirs if isinstance(theirs, dict) else {})

    def write(self, folder: Path) -> None:
        whole = self.settings if self.key is None else {self.key: self.settings}
        write_json(folder / self.file, whole)


def check_ground(
    path: Path, manifest: Mapping[str, Any], ground: Mapping[str, Mapping[str, str]]
) -> None:
    """See that what a run's manifest notes of its ground is so; what it does not is not looked at.

    Raises:
        InputError: naming what has changed.
    """
    noted = manifest.get("ground", {})
    for what, parts in ground.items():
        saved = noted.get(what, parts)
        changed = [name for name in {**saved, **parts} if saved.get(name) != parts.get(name)]
        if changed:
            names = ", ".join(f"'{name}'" for name in changed[:3])
            whose = _GROUND.get(what, _REWARDS)
            raise InputError(
                f"The {whose} {names} changed since '{path}' was begun, and its results "
                "would be of different ones: restore it, or give output_dir=... or --fresh to "
                "begin a new run."
            )
