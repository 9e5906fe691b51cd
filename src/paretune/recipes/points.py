"""Which points of a front a recipe asks for: lists of weights, a named set, a grid, or by gaps."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from paretune.errors import InputError
from paretune.moo.preference import Preference, das_dennis, named_preferences
from paretune.names import shown
from paretune.recipes.section import Section, Seeds

MAX_POINTS = 10_000


class Sweep(Section):
    """Which points of the front to train."""

    preferences: Any = None
    """A list of points, each the objectives' weights; or a set by name (`clamp_task1`,
    `clamp_task2`, ...); or `{das_dennis: n}`, all multiples of 1/n. Needed by `placement: grid`."""
    placement: Literal["grid", "gap"] = "grid"
    """`grid`: at `preferences`. `gap`, of two objectives with `clamp` or `linear`: the ends first,
    then one point after the other in the middle of the largest gap, by validation losses."""
    points: Annotated[int, Field(ge=3, le=MAX_POINTS)] | None = None
    """How many points `placement: gap` has with each seed."""
    seeds: Seeds = Field(default=[0])
    """Each point is trained once with each seed."""
    warm_start: bool = False
    """Start each point from the nearest one before it in the list, not from a fresh adapter."""

    @model_validator(mode="after")
    def _placed(self) -> "Sweep":
        if self.placement == "grid" and self.points is not None:
            raise ValueError("points is for placement: gap; a grid has its points in preferences")
        if self.placement == "grid" and self.preferences is None:
            raise ValueError("preferences is missing: give it a value")
        if self.placement == "gap" and (self.points is None or self.preferences is not None):
            raise ValueError("placement: gap needs points, how many, and no preferences")
        return self


def resolve_points(given: Any, objectives: Sequence[str]) -> list[Preference]:
    """The points in order.

    Args:
        given: a set by name, ``{"das_dennis": n}``, or a list of points, each a list of weights in
            the objectives' order or a mapping that names them.

    Raises:
        InputError: anything else, an unknown set or objective, weights that do not sum to one, or
            a point that stands twice.
    """
    points: Sequence[Any]
    if isinstance(given, str):
        points = named_preferences(given)
    elif isinstance(given, dict) and list(given) == ["das_dennis"]:
        divisions = given["das_dennis"]
        if type(divisions) is not int or divisions < 1:
            raise InputError(f"das_dennis must be a whole number above 0, not {shown(divisions)}")
        others = len(objectives) - 1
        if divisions > MAX_POINTS or math.comb(divisions + others, others) > MAX_POINTS:
            raise InputError(
                f"das_dennis: {divisions} makes more than {MAX_POINTS:,} points of {others + 1} "
                "objectives: take a smaller number"
            )
        points = das_dennis(len(objectives), divisions)
    elif isinstance(given, list) and given:
        points = given
    else:
        raise InputError(
            f"must be a list of points, the name of a set, or {{das_dennis: n}}, not {shown(given)}"
        )
    resolved: dict[str, int] = {}
    preferences = []
    for number, point in enumerate(points, start=1):
        preference = as_preference(point, objectives, f"point {number}")
        first = resolved.setdefault(preference.slug(), number)
        if first != number:
            raise InputError(f"points {first} and {number} are the same ({preference.slug()})")
        preferences.append(preference)
    return preferences


def as_preference(point: Any, objectives: Sequence[str], where: str) -> Preference:
    """One point; objectives that a mapping does not name get weight zero.

    Raises:
        InputError: see `resolve_points`; `where` begins the message.
    """
    if isinstance(point, Mapping):
        for name in map(str, point):
            if name not in objectives:
                nearest = get_close_matches(name, objectives, n=1)
                hint = f"did you mean '{nearest[0]}'?" if nearest else "name one of these."
                raise InputError(
                    f"{where}: the recipe has no objective {shown(name)} but "
                    f"{', '.join(objectives)}; {hint}"
                )
        weights = [point.get(name, 0.0) for name in objectives]
    elif isinstance(point, Sequence) and not isinstance(point, str):
        weights = list(point)
    else:
        raise InputError(f"{where} must be a list of weights, not {shown(point)}")
    if len(weights) != len(objectives):
        raise InputError(
            f"{where}: {len(weights)} weights for {len(objectives)} objectives "
            f"({', '.join(objectives)})"
        )
    for name, weight in zip(objectives, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise InputError(
                f"{where}: the weight of {name!r} must be a number, not {shown(weight)}"
            )
    try:
        return Preference.of(dict(zip(objectives, weights, strict=True)))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
