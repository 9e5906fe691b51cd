import json
import math
import subprocess
import sys

import pytest

from paretune.errors import InputError
from paretune.moo import Preference, das_dennis, named_preferences


def test_preference_is_an_ordered_frozen_mapping():
    preference = Preference.of({"harmless": 0.8, "helpful": 0.2, "short": 0.0})
    assert preference["helpful"] == 0.2
    assert dict(preference) == {"harmless": 0.8, "helpful": 0.2, "short": 0.0}
    assert preference.live == ("harmless", "helpful")
    assert preference.array().tolist() == [0.8, 0.2, 0.0]
    assert json.loads(json.dumps(dict(preference))) == dict(preference)
    assert hash(preference) == hash(Preference.of(dict(preference)))
    with pytest.raises(KeyError):
        preference["unknown"]
    with pytest.raises(AttributeError):
        preference.names = ("a",)


def test_bare_weights_get_names():
    assert Preference.of([0.25, 0.75]) == Preference.of({"f1": 0.25, "f2": 0.75})


@pytest.mark.parametrize(
    ("weights", "slug"),
    [
        ({"harmless": 0.8, "helpful": 0.2}, "harmless0.80-helpful0.20"),
        ({"a b/c": 1 / 3, "d": 2 / 3}, "a_b_c0.3333-d0.6667"),
    ],
)
def test_slug(weights, slug):
    assert Preference.of(weights).slug() == slug


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.8, "b": 0.3}, "a=0.8, b=0.3 sum to 1.1"),
        ({"a": 1.5, "b": -0.5}, "'b' is -0.5"),
        ({"a": math.nan, "b": 1.0}, "'a' is nan"),
        ({"a": "much", "b": 1.0}, "'a' must be a number"),
        ({}, "at least one objective"),
    ],
)
def test_mistakes_name_the_offender(weights, message):
    with pytest.raises(InputError, match=message):
        Preference.of(weights)


@pytest.mark.parametrize(("size", "divisions"), [(1, 3), (2, 10), (3, 12), (5, 6)])
def test_das_dennis_is_the_whole_grid(size, divisions):
    grid = das_dennis(size, divisions)
    assert len(grid) == len(set(grid)) == math.comb(divisions + size - 1, size - 1)
    assert grid == sorted(grid)
    for point in grid:
        Preference.of(point)
        assert all(round(w * divisions) / divisions == w for w in point)


def test_named_sets_are_valid_preferences():
    for name, count in [("clamp_task1", 6), ("clamp_task2", 7), ("mobl_strong", 5)]:
        points = named_preferences(name)
        assert len({Preference.of(point) for point in points}) == count
    assert named_preferences("mobl_slight")[2] == (0.04, 0.04, 0.84, 0.04, 0.04)
    with pytest.raises(InputError, match="clamp_task1, clamp_task2"):
        named_preferences("task9")


def test_drawing_is_loaded_when_something_is_drawn():
    code = "import sys, paretune.moo.solvers; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_preferences_do_not_import_torch():
    code = "import sys, paretune; paretune.Preference; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
