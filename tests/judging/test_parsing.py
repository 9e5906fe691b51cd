"""What counts as a rating or a verdict."""

import pytest

from paretune.judging.parsing import parse_rating, parse_verdict
from paretune.judging.templates import ASPECTS, pair_messages, rating_messages


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Rating: 4\nRationale: Good.", 4),
        ("**Rating:** 4", 4),
        ("**Rating**: 4\n", 4),
        ("### Rating: [5]", 5),
        ("### Output\nRating: 3\nRationale: I'm sorry to say it is average.", 3),
        ("Rating: 4/5", 4),
        ("Rating: **2** / 5", 2),
        ("Rating: 4 out of 5 points", 4),
        ("rating：1", 1),
        ("Rating (1-5): 4", 4),
        ("Overall Rating: 4.5", 4.5),
        ("Helpfulness Rating - 2", 2),
        ('{"rating": "3", "rationale": "x"}', 3),
        ('{\n  "rating": 3\n}', 3),
        ("Rating:\n4", 4),
        ("4", 4),
        (" **5** ", 5),
        ("<think>Rating: 2? No.</think>\nRating: 4", 4),
        ("so Rating: 2\n</think>\n\nRating: 5", 5),
        ("Rating: 3\nRationale: ...\nRating: 3", 3),
        ("Rating: [Rating for the response]\nRating: 2", 2),
        ('Rating: 1\nRationale: The text says "Rating: 5", which is no answer.', 1),
        ("I am sorry, this is poor.\nRating: 1", 1),
    ],
)
def test_ratings(text: str, value: float) -> None:
    assert parse_rating(text).value == value


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("Rating: N/A", "not_applicable"),
        ("**Rating**: **N/A**\nRationale: creative", "not_applicable"),
        ('Rating: "NA"', "not_applicable"),
        ("Rating: Not applicable, a poem", "not_applicable"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("I cannot rate this response.", "refused"),
        ("As an AI language model, I can’t judge people.", "refused"),
        ("Unfortunately, I am not able to rate it", "refused"),
        ("", "unparsable"),
        ("The response is quite good, maybe a four.", "unparsable"),
        ("Rating: 7", "unparsable"),
        ("Rating: 0", "unparsable"),
        ("Rating: 45", "unparsable"),
        ("Rating: 8/10", "unparsable"),
        ("Rating: 3-4", "unparsable"),
        ("Rating: 3 or 4", "unparsable"),
        ("Rating: 5%", "unparsable"),
        ("Rating: good", "unparsable"),
        ("Rating: NaN", "unparsable"),
        ("Rating: 2\nOn second thought\nRating: 4", "unparsable"),
        ("Rating: [Rating for the response]", "unparsable"),
        ("<think>Rating: 4", "unparsable"),
        ("2024", "unparsable"),
        ("9", "unparsable"),
    ],
)
def test_no_ratings(text: str, status: str) -> None:
    assert parse_rating(text).status == status


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("Verdict: A", "A"),
        ("**Verdict:** B\nB is right.", "B"),
        ("Verdict: tie", "tie"),
        ("Verdict: a tie", "tie"),
        ("Verdict: [A]", "A"),
        ("Verdict: Answer B is better", "B"),
        ("Verdict: A. It is shorter.", "A"),
        ("<think>Verdict: A</think>Verdict: B", "B"),
        ("Verdict: A\nVerdict: A", "A"),
        ("Verdict: A\nVerdict: B", None),
        ("Verdict: A and B are equal", None),
        ("Verdict: a draw", None),
        ("Verdict: C", None),
        ("A is better", None),
        ("", None),
    ],
)
def test_verdicts(text: str, side: str | None) -> None:
    assert parse_verdict(text) == side


@pytest.mark.parametrize("aspect", ASPECTS)
def test_what_models_wrote_is_never_a_template(aspect: str) -> None:
    messages = rating_messages(aspect, "Say {response}", "{instruction} {0} {{}} %s")
    assert (
        "Instruction: Say {response}\nResponse: {instruction} {0} {{}} %s\n"
        in (messages[1]["content"])
    )
    assert messages[1]["content"].endswith("### Output")
    pair = pair_messages("{first}", "{second}", "{instruction}")[1]["content"]
    assert "# Instruction\n{first}\n" in pair
    assert "# Answer A\n{second}\n" in pair


def test_conversations_show_who_said_what() -> None:
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
    assert (
        "Instruction: System: Be short.\n\nUser: Why?\n"
        in (rating_messages("honesty", turns, "x")[1]["content"])
    )
    assert "Instruction: Why?\n" in rating_messages("honesty", turns[1:], "x")[1]["content"]
