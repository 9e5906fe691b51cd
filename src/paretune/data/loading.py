"""What a loader can be told, read off its parameters, and calling it with what a recipe says.

The first parameter, ``source`` or (one for each objective) ``sources``, is where rows come from; a
loader without it has its own file, and one whose default is a `HubDataset` a published data set.
The others are keywords: ``objectives``; ``bad_rows``, ``style`` and ``rule`` (a `RatingRule`), if
the loader has them; and any of its own.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin

from paretune.data.ratings import RatingRule
from paretune.data.records import PreferenceData
from paretune.data.sources import HubDataset, pinned
from paretune.errors import InputError

Loader = Callable[..., PreferenceData]

RATING_OPTIONS = tuple(field.name for field in fields(RatingRule))
"""Keys that say how ratings become pairs."""
_SOURCES = ("source", "sources")
_COMMON = ("objectives", "bad_rows", "rule", "revision")


@dataclass(frozen=True)
class LoaderOptions:
    """What a loader can be told.

    Attributes:
        source: its default; `inspect.Parameter.empty` where one must be given, None where there is
            no such parameter.
        one: whether it takes one source.
        several: whether it takes a source for each objective.
        options: the other keys of a recipe that it has, each with its type.
    """

    source: Any
    one: bool
    several: bool
    options: Mapping[str, Any]

    @classmethod
    def of(cls, loader: Loader) -> "LoaderOptions":
        parameters = inspect.signature(loader, eval_str=True).parameters
        named = next((parameters[name] for name in _SOURCES if name in parameters), None)
        options = {
            name: each.annotation
            for name, each in parameters.items()
            if name not in (*_SOURCES, *_COMMON)
        }
        if "rule" in parameters:
            options |= {field.name: field.type for field in fields(RatingRule)}
        if named is None:
            return cls(None, False, False, options)
        kinds = (named.annotation, *get_args(named.annotation))
        mapping = any(get_origin(kind) is Mapping for kind in kinds)
        several = named.name == "sources" or (mapping and named.default is inspect.Parameter.empty)
        return cls(named.default, named.name == "source", several, options)

    @property
    def required(self) -> bool:
        """Whether a source must be given."""
        return self.source is inspect.Parameter.empty


def load(
    loader: Loader,
    objectives: Sequence[str],
    path: str | Mapping[str, str] | None = None,
    revision: str | None = None,
    **options: Any,
) -> PreferenceData:
    """Call a loader with what a recipe says; options that are None are the loader's own."""
    parameters = inspect.signature(loader).parameters
    given = {name: value for name, value in options.items() if value is not None}
    rule = {name: given.pop(name) for name in RATING_OPTIONS if name in given}
    if rule:
        given["rule"] = RatingRule(**rule)
    source = LoaderOptions.of(loader).source if path is None else path
    source = pinned(source, revision)
    if "bad_rows" in given and "bad_rows" not in parameters:
        del given["bad_rows"]
    args = () if source is None else (source,)
    return loader(*args, objectives=objectives, **given)


def rated(data: PreferenceData, loader: str) -> Any:
    """The ratings that the pairs were made of.

    Raises:
        InputError: the loader reads pairs.
    """
    if data.ratings is None:
        raise InputError(f"The loader {loader!r} reads pairs, and here responses are to be rated.")
    return data.ratings


def hub_id(loader: Loader) -> str | None:
    """The id of the data set that a loader reads unless it is told another."""
    source = LoaderOptions.of(loader).source
    first = next(iter(source.values()), None) if isinstance(source, Mapping) else source
    return first.path if isinstance(first, HubDataset) else None
