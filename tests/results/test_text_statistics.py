"""Statistics of answers as texts, and reading points that have none yet."""

import json
from pathlib import Path

import pytest

from paretune.errors import InputError
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics, read_front, read_point
from paretune.results.text_statistics import is_refusal, repetition, text_statistics


@pytest.mark.parametrize(
    "text",
    [
        "I can't help with that.",
        "I can\u2019t help with that.",
        "  **I cannot** provide this.",
        "I'm sorry, but I can't assist with that request.",
        "Sorry. Unfortunately, I won't do that.",
        "As an AI language model, I am unable to say.",
        "Unfortunately, as an AI, I must decline.",
        "It is not appropriate to ask this.",
        "NO, I WILL NOT.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! I can't see why not.",
        "I'm sorry to hear that. Have you tried tea?",
        "I can't wait to tell you.",
        "I cannot stress this enough: wear a helmet.",
        "I candidly think so.",
        "As an AI, I think tea is good.",
        "No, whales are mammals.",
    ],
)
def test_answers_that_are_none(text: str) -> None:
    assert not is_refusal(text)


def test_repetition_is_the_share_of_4_grams_seen_before() -> None:
    assert repetition("a b c d e") == 0
    assert repetition("one two") == 0  # too short to have any
    assert repetition("A b, c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition("no " * 13) == pytest.approx(9 / 10)


def test_statistics_by_hand() -> None:
    found = text_statistics([("The cat. The cat!", True), ("the dog", False), (" \n", True)])
    assert found is not None
    assert found.distinct_1 == pytest.approx(3 / 6)
    assert found.distinct_2 == pytest.approx(3 / 4)  # the-cat cat-the the-cat the-dog
    assert found.empty == found.unfinished == pytest.approx(1 / 3)
    assert (found.refusals, found.repetition, found.count) == (0, 0, 3)
    assert text_statistics([]) is None
    silent = text_statistics([("", True)])
    assert silent is not None
    assert silent.distinct_1 is silent.distinct_2 is None


def test_old_points_get_statistics_from_their_answers(tmp_path: Path) -> None:
    folder = tmp_path / "points/x"
    folder.mkdir(parents=True)
    metrics = {name: ObjectiveMetrics(0.5, 0.5, 0.0) for name in ("a", "b")}
    point = FrontPoint({"a": 0.5, "b": 0.5}, metrics, 0.25, folder="points/x")
    old = point.to_json()
    del old["text"]
    (folder / "metrics.json").write_text(json.dumps(old))
    assert read_point(folder) == point
    Front.of([point], name="x", method="clamp").write(tmp_path / "front.json")
    row = {"prompt": "?", "response": "I cannot say.\u2028", "finished": True, "scores": {}}
    (folder / "answers.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    text = read_point(folder).text
    assert text is not None
    assert (text.refusals, text.count) == (1.0, 1)
    (again,) = read_front(tmp_path).points
    assert again.text == text
    assert FrontPoint.from_json(json.loads(json.dumps(again.to_json()))) == again
    (folder / "answers.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(InputError, match=r"answers\.jsonl' is damaged"):
        read_point(folder)
