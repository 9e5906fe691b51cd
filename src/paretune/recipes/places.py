"""Which keys there are at each place of a recipe, read off the classes of its sections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from paretune.recipes.choice import Chosen

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    """A place with a list of sections, each found by its label or its name, such as `methods`."""

    section: type[BaseModel]


@dataclass(frozen=True)
class Named:
    """A place with a section under each of any names, such as `rewards`."""

    section: type[BaseModel]


Place = type[BaseModel] | Named | Listed


def fields_of(place: Place) -> list[str]:
    if isinstance(place, Named | Listed):
        return []
    more = getattr(place, "more_keys", None)  # that depend on what is chosen there
    return [*place.model_fields, *(more() if more else ())]


def knows(places: Sequence[Place], key: str) -> bool:
    return any(
        isinstance(place, Named | Listed)
        or key in place.model_fields
        or place.model_config.get("extra") == "allow"
        for place in places
    )


def has_own(places: Sequence[Place], key: str) -> bool:
    """Whether a place has a key of its own by this name."""
    return any(key in fields_of(place) for place in places)


def inside(places: Sequence[Place], key: str) -> list[Place]:
    """The places below a key that is a section itself: several where one of them is chosen."""
    found: list[Place] = []
    for place in places:
        if isinstance(place, Named | Listed):
            found.append(place.section)
        elif key in place.model_fields:
            annotation = place.model_fields[key].annotation
            for choice in place.model_fields[key].metadata:
                if isinstance(choice, Chosen):
                    found += choice.sections()
                    found += [Named(each) for each in choice.sections() if choice.single]
            for kind in (annotation, *get_args(annotation)):
                if _is_section(kind):
                    found.append(kind)
                elif get_origin(kind) is dict and _is_section(get_args(kind)[1]):
                    found.append(Named(get_args(kind)[1]))
                elif get_origin(kind) is list and _is_section(get_args(kind)[0]):
                    found.append(Listed(get_args(kind)[0]))
    return found


def names_of(place: Place) -> tuple[Any, ...]:
    """The values of `name` by which a section is chosen."""
    field = None if isinstance(place, Named | Listed) else place.model_fields.get("name")
    return () if field is None else get_args(field.annotation)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
