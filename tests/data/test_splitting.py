import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.data import local, split_by_prompt
from paretune.data.splitting import SPLITS
from paretune.errors import InputError


def ratings(prompts=40):
    return [
        {"prompt": f"Q{i}" + " " * (j % 2), "response": f"answer {j}", "a": j, "b": (j * 7) % 3}
        for i in range(prompts)
        for j in range(3)
    ]


def load(rows):
    return local.load_ratings(rows, objectives=["a", "b"])


def prompts_of(data):
    return {prompt.strip() for pairs in data.pairs.values() for prompt in pairs["prompt"]}


def test_no_prompt_is_in_two_splits_and_none_is_lost():
    parts = split_by_prompt(load(ratings()))
    assert tuple(parts) == SPLITS
    sets = [prompts_of(part) for part in parts.values()]
    assert [len(s) for s in sets] == [32, 4, 4]
    assert len(set.union(*sets)) == 40
    for part, prompts in zip(parts.values(), sets, strict=True):
        assert part.counts["pairs"] == {"a": len(prompts), "b": len(prompts)}
        assert part.ratings is not None
        assert {p.strip() for p in part.ratings["prompt"]} == prompts
        assert len(part.ratings) == 3 * len(prompts)


def test_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    rows = ratings()
    shuffled = random.Random(1).sample(rows, len(rows))
    sets = [prompts_of(split_by_prompt(load(r))["test"]) for r in (rows, shuffled)]
    assert sets[0] == sets[1]
    assert sets[0] != prompts_of(split_by_prompt(load(rows), seed=1)["test"])


def test_prompts_that_differ_by_white_space_stay_together():
    rows = [
        {"prompt": f"Q{i}{end}", "chosen": f"yes{end}", "rejected": f"no{j}"}
        for i in range(20)
        for j, end in enumerate(["", " ", "\n"])
    ]
    parts = split_by_prompt(local.load_pairs({"a": rows}))
    assert [len(part.pairs["a"]) for part in parts.values()] == [48, 6, 6]
    assert len(set.union(*(prompts_of(p) for p in parts.values()))) == 20


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 60), st.integers(0, 5))
def test_every_split_has_at_least_one_prompt(prompts, seed):
    rows = [{"prompt": f"Q{i}", "chosen": "yes", "rejected": "no"} for i in range(prompts)]
    parts = split_by_prompt(local.load_pairs({"a": rows}), seed=seed)
    sizes = [len(part.pairs["a"]) for part in parts.values()]
    assert min(sizes) >= 1
    assert sum(sizes) == prompts
    assert abs(sizes[1] - prompts / 10) <= 1


def test_conversational_prompts():
    rows = [
        {"prompt": [{"role": "user", "content": f"Q{i}"}], "chosen": "yes", "rejected": "no"}
        for i in range(10)
    ]
    parts = split_by_prompt(local.load_pairs({"a": rows}))
    assert [len(part.pairs["a"]) for part in parts.values()] == [8, 1, 1]


def test_split_that_would_be_empty():
    rows = [{"prompt": f"Q{i}", "chosen": "yes", "rejected": "no"} for i in range(2)]
    with pytest.raises(InputError, match=r"has no pairs of objective 'a' \(2 prompts"):
        split_by_prompt(local.load_pairs({"a": rows}))


@pytest.mark.parametrize("fractions", [(0.8, 0.2), (0.8, 0.2, 0.0), (0.8, 0.3, 0.1), (1, 0, 0)])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(InputError, match="three positive shares with sum 1"):
        split_by_prompt(load(ratings()), fractions)
