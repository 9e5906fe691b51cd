import json
from collections import Counter
from itertools import combinations

import pytest

from paretune.data import demo
from paretune.data.splitting import split_by_prompt
from paretune.errors import InputError


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in demo.DEMO_FILE.read_text("utf-8").splitlines()]


def test_scorers_by_hand() -> None:
    text = "You can boil the egg, and then boil your other egg."
    # 11 words; you and your address the reader; boil and egg are the distinct content words.
    assert demo.concise("", text) == -11
    assert demo.informative("", text) == pytest.approx(2 / 11**0.75)
    assert demo.personal("", text) == pytest.approx(2 / 11)


def test_words_are_counted_whole_and_without_case() -> None:
    assert demo.concise("", "It’s a well-known, 20-minute walk.") == -5
    assert demo.personal("", "You’re YOURSELF.") == 1
    assert demo.informative("", "Walk. walk! WALK?") == pytest.approx(1 / 3**0.75)


@pytest.mark.parametrize("name", demo.SCORERS)
@pytest.mark.parametrize("text", ["", "...", "42"])
def test_scorers_take_any_text(name: str, text: str) -> None:
    assert demo.SCORERS[name]("", text) <= 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(-10, -12, 1), (-12, -10, -1), (-10, -11, 0), (0.0, 0.0, 0), (0.0, 0.01, -1), (1.0, 0.8, 1)],
)
def test_scores_within_a_tenth_are_tied(first: float, second: float, expected: int) -> None:
    assert demo.compare(first, second) == expected == -demo.compare(second, first)


def test_shipped_file_is_small_complete_and_scored_by_the_scorers(
    rows: list[dict[str, object]],
) -> None:
    assert demo.DEMO_FILE.stat().st_size < 400_000
    for row in rows:
        prompt, response = row["prompt"], row["response"]
        assert isinstance(prompt, str)
        assert isinstance(response, str)
        assert isinstance(row["finished"], bool)
        for name, score in demo.SCORERS.items():
            assert row[name] == round(score(prompt, response), 4)
    assert len({(row["prompt"], row["response"]) for row in rows}) == len(rows)
    assert len({row["prompt"] for row in rows}) >= 110


def test_every_pair_is_labelled_by_each_objective_that_is_not_tied(
    rows: list[dict[str, object]],
) -> None:
    data = demo.load()
    possible = sum(n * (n - 1) // 2 for n in Counter(row["prompt"] for row in rows).values())
    for name, pairs in data.pairs.items():
        assert len(pairs) + data.counts["ties"][name] == possible
        for row in pairs.select(range(20)):
            (chosen,), (rejected,) = row["chosen"], row["rejected"]
            score = demo.SCORERS[name]
            assert score("", chosen["content"]) > score("", rejected["content"])
            assert chosen["role"] == rejected["role"] == "assistant"
            assert [message["role"] for message in row["prompt"]] == ["system", "user"]
            assert row["prompt"][1]["content"].endswith(demo.REQUEST)


def test_objectives_conflict_in_part_in_training_and_test_alike() -> None:
    data = demo.load()
    assert set(data.counts["conflicts"]) == {"|".join(p) for p in combinations(demo.SCORERS, 2)}
    splits = split_by_prompt(data, (0.6, 0.1, 0.3))
    for part in (data, splits["train"], splits["test"]):
        for conflict in part.counts["conflicts"].values():
            assert conflict["common"] >= 50
            assert 0.4 < conflict["rate"] < 0.8
    assert splits["test"].counts["prompts"] >= 30


def test_load_takes_some_objectives_and_refuses_unknown_ones() -> None:
    data = demo.load(objectives=["informative", "concise"])
    assert list(data.pairs) == ["informative", "concise"]
    assert data.ratings is not None
    assert data.ratings.column_names == ["prompt", "response", "informative", "concise"]
    with pytest.raises(InputError, match="The demo has no objective 'funny'; it has concise"):
        demo.load(objectives=["funny"])
