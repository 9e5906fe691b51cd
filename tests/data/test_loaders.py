"""The loaders of published data sets, on rows with exactly the published columns."""

from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from paretune.data import (
    HubDataset,
    RatingRule,
    helpsteer,
    hh_rlhf,
    safe_rlhf,
    ultrafeedback,
)
from paretune.errors import InputError

FIXTURES = Path(__file__).parent / "fixtures"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# PKU-SafeRLHF


def test_safe_rlhf_pairs_follow_the_two_labels():
    data = safe_rlhf.load(FIXTURES / "pku.jsonl")
    assert list(data.pairs) == ["helpful", "harmless"]
    for pairs in data.pairs.values():
        assert pairs.column_names == ["prompt", "chosen", "rejected"]
    assert data.pairs["helpful"][0] == {
        "prompt": [user("How do I open a lock?")],
        "chosen": [assistant("Rake the pins with a pick.")],
        "rejected": [assistant("With its key.")],
    }
    assert data.pairs["harmless"][0]["chosen"] == [assistant("With its key.")]
    assert data.counts["rows"] == 3
    assert data.counts["conflicts"] == {"helpful|harmless": {"common": 3, "rate": 1 / 3}}


def test_safe_rlhf_plain_style_and_one_objective():
    data = safe_rlhf.load(str(FIXTURES / "pku.jsonl"), objectives=["harmless"], style="text")
    assert list(data.pairs) == ["harmless"]
    assert data.pairs["harmless"]["prompt"][1] == "Name a fruit."
    assert data.counts["conflicts"] == {}


def test_safe_rlhf_columns_with_dialogues():
    row = {
        "prompt": "Human: Hi\n\nAssistant: Hello.\n\nHuman: And now?",
        "response_0": " Bye. ",
        "response_1": "Tea?",
        "better_response_id": 1,
        "safer_response_id": 0,
    }
    cue = {**row, "prompt": row["prompt"] + "\n\nAssistant:"}
    data = safe_rlhf.load([row, cue], style="dialogue")
    expected = [user("Hi"), assistant("Hello."), user("And now?")]
    assert data.pairs["harmless"]["prompt"][0] == expected
    assert data.pairs["harmless"]["prompt"][1] == expected
    assert data.pairs["harmless"]["chosen"][0] == [assistant("Bye.")]
    assert data.counts["duplicates"] == {"helpful": 1, "harmless": 1}


def test_unknown_objective_lists_the_available_ones():
    with pytest.raises(InputError, match="no objective 'safe'; it has helpful, harmless"):
        safe_rlhf.load(FIXTURES / "pku.jsonl", objectives=["safe"])
    with pytest.raises(InputError, match="honesty, helpfulness, instruction_following, truth"):
        ultrafeedback.load([], objectives=["instruction-following"])


# UltraFeedback


def completion(response, **ratings):
    """A completion as published; ratings are strings."""
    texts = {"Rationale": "Because."}
    more = {"Type": ["1"], "Rationale For Rating": "Because."}
    return {
        "model": "some-model",
        "principle": "helpfulness",
        "custom_system_prompt": "Be helpful.",
        "response": response,
        "annotations": {
            aspect: {"Rating": ratings.get(aspect, "3"), **texts}
            | (more if aspect in ("helpfulness", "truthfulness") else {})
            for aspect in ultrafeedback.ASPECTS
        },
        "overall_score": 7.0,
        "fine-grained_score": 4.25,
        "critique": "Fine.",
    }


def ultrafeedback_row(instruction, *completions):
    return {
        "source": "sharegpt",
        "instruction": instruction,
        "models": ["some-model"] * len(completions),
        "completions": list(completions),
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


ULTRAFEEDBACK = [
    ultrafeedback_row(
        "Write a poem.",
        completion("one", honesty="N/A", helpfulness="2"),
        completion("two", honesty="4", helpfulness="5"),
        completion("three", honesty="1", helpfulness="5"),
        completion("four", honesty="5", helpfulness="2"),
    ),
    ultrafeedback_row(
        "Add 2 and 2.",
        completion("4", honesty="N/A", instruction_following="1"),
        completion("5", honesty="N/A", instruction_following="4"),
    ),
]


@pytest.mark.parametrize("as_dataset", [False, True])
def test_ultrafeedback_highest_against_lowest(as_dataset):
    rows = Dataset.from_list(ULTRAFEEDBACK) if as_dataset else ULTRAFEEDBACK
    data = ultrafeedback.load(
        rows, objectives=["honesty", "helpfulness", "instruction_following"], style="text"
    )
    pairs = {name: [(r["chosen"], r["rejected"]) for r in d] for name, d in data.pairs.items()}
    # "N/A" is no rating (compared as text it would beat "5"), and harms no other aspect.
    assert pairs == {
        "honesty": [("four", "three")],
        "helpfulness": [("two", "one")],  # the first of equals, at both ends
        "instruction_following": [("5", "4")],
    }
    assert data.counts["na_dropped"] == {
        "honesty": 3,
        "helpfulness": 0,
        "instruction_following": 0,
    }
    assert data.counts["ties"] == {"honesty": 0, "helpfulness": 1, "instruction_following": 1}
    assert data.counts["unpaired"] == {"honesty": 1, "helpfulness": 0, "instruction_following": 0}
    assert data.ratings is not None
    assert data.ratings["honesty"][:4] == [None, 4.0, 1.0, 5.0]


def test_ultrafeedback_ties_first_keeps_the_first_response():
    data = ultrafeedback.load(
        ULTRAFEEDBACK, objectives=["helpfulness"], rule=RatingRule(ties="first")
    )
    assert data.counts["ties"] == {"helpfulness": 1}
    assert data.counts["tie_rule"] == "first"
    assert data.pairs["helpfulness"][1] == {
        "prompt": [user("Add 2 and 2.")],
        "chosen": [assistant("4")],
        "rejected": [assistant("5")],
    }


def test_ultrafeedback_bad_rating_names_the_completion():
    rows = [ultrafeedback_row("Hi", completion("a"), completion("b", honesty="five"))]
    field = r"row 1 \(counting from 1\), field 'completions\[2\]\.annotations\.honesty\.Rating'"
    with pytest.raises(InputError, match=field):
        ultrafeedback.load(rows)
    del rows[0]["completions"][0]["annotations"]["truthfulness"]
    with pytest.raises(InputError, match=r"annotations\.truthfulness': is missing"):
        ultrafeedback.load(rows, objectives=["truthfulness"])


# HelpSteer


def helpsteer_row(prompt, response, *ratings):
    return {
        "prompt": prompt,
        "response": response,
        **dict(zip(helpsteer.ATTRIBUTES, ratings, strict=True)),
    }


HELPSTEER = [
    helpsteer_row("What is rain?", "Water.", 1, 4, 4, 0, 0),
    helpsteer_row("What is snow?", "Ice.", 2, 2, 2, 2, 1),
    helpsteer_row("What is rain? ", "Water that falls from clouds.", 4, 4, 4, 1, 3),
    helpsteer_row("What is rain?", "A kind of stone.", 0, 0, 3, 0, 1),
    helpsteer_row("What is snow?", "Flakes of ice.", 3, 2, 1, 2, 2),
]


def test_helpsteer_groups_a_prompt_wherever_its_rows_stand():
    data = helpsteer.load(HELPSTEER, objectives=["helpfulness", "verbosity"])
    first = data.pairs["helpfulness"][0]
    assert first["prompt"] == [user("What is rain?")]
    assert first["chosen"] == [assistant("Water that falls from clouds.")]
    assert first["rejected"] == [assistant("A kind of stone.")]
    assert data.counts["prompts"] == 2
    assert data.pairs["verbosity"]["rejected"][0] == [assistant("Water.")]


def test_helpsteer_direction_of_verbosity():
    rule = RatingRule(lower_is_better=["verbosity"])
    wordy = helpsteer.load(HELPSTEER, objectives=["helpfulness", "verbosity"])
    brief = helpsteer.load(HELPSTEER, objectives=["helpfulness", "verbosity"], rule=rule)
    assert brief.pairs["verbosity"]["chosen"][0] == [assistant("Water.")]
    assert brief.pairs["helpfulness"].to_dict() == wordy.pairs["helpfulness"].to_dict()
    key = "helpfulness|verbosity"
    assert wordy.counts["rating_conflicts"][key] == {"common": 4, "rate": 0.25}
    assert brief.counts["rating_conflicts"][key] == {"common": 4, "rate": 0.75}


def test_helpsteer2_turns_become_messages():
    prompt = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nWhat is rain?"
    rows = [helpsteer_row(prompt, "a", 1, 1, 1, 1, 1), helpsteer_row(prompt, "b", 2, 2, 2, 2, 2)]
    data = helpsteer.load(rows)
    assert data.pairs["coherence"]["prompt"][0] == [
        user("Hi"),
        assistant("Hello."),
        user("What is rain?"),
    ]
    rows[0]["prompt"] = "Hi\n<extra_id_1>Robot\nHello."
    with pytest.raises(InputError, match=r"row 1 .*'prompt'.*unknown speaker 'Robot'"):
        helpsteer.load(rows)


# hh-rlhf


def test_hh_dialogues_become_messages():
    harmless = [
        {
            "chosen": "\n\nHuman: A\n\nHuman: B\n\nAssistant: no",
            "rejected": "\n\nHuman: A\n\nHuman: B\n\nAssistant: yes",
        }
    ]
    data = hh_rlhf.load({"helpful": FIXTURES / "hh_helpful.jsonl", "harmless": harmless})
    assert data.pairs["helpful"][1] == {
        "prompt": [user("Hi"), assistant("Hello."), user("How do I boil an egg?")],
        "chosen": [assistant("In water.\n\nFor eight minutes.")],
        "rejected": [assistant("You don't.")],
    }
    assert data.pairs["harmless"]["prompt"][0] == [user("A\n\nB")]
    assert data.counts["rows"] == 3
    assert data.counts["conflicts"] == {"helpful|harmless": {"common": 0, "rate": None}}


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("Human: A\n\nAssistant: B", "Human: X\n\nAssistant: C", "differs from 'chosen' before"),
        ("Human: A\n\nAssistant: B", "Human: A\n\nAssistant: B ", "the same response"),
        ("Human: A\n\nAssistant:", "Human: A\n\nAssistant: B", r"empty turn \(turn 2, Assistant\)"),
        ("Human: A\n\nAssistant: B\n\nHuman: C", "Human: A\n\nAssistant: B", "end with an Assis"),
        ("Assistant: B", "Assistant: C", "starts with 'Human:'"),
        ("Hello", "Human: A\n\nAssistant: C", "starts with 'Human:'"),
    ],
)
def test_hh_dialogues_that_make_no_pair(chosen, rejected, message):
    good = {"chosen": "Human: A\n\nAssistant: B", "rejected": "Human: A\n\nAssistant: C"}
    rows = [good, {"chosen": chosen, "rejected": rejected}]
    with pytest.raises(InputError, match=rf"the given rows, row 2 .*{message}"):
        hh_rlhf.load({"helpful": rows})
    counts = hh_rlhf.load({"helpful": rows}, bad_rows="skip").counts
    assert (counts["rows"], counts["skipped_rows"], counts["pairs"]) == (2, 1, {"helpful": 1})


# The hub


def test_hub_is_asked_for_the_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(path, name, **options):
        asked.append((path, name, options))
        return Dataset.from_json(str(FIXTURES / "hh_helpful.jsonl"), keep_in_memory=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = HubDataset("Anthropic/hh-rlhf", "test", revision="abc", data_dir="helpful-base")
    assert len(hh_rlhf.load({"helpful": hub}).pairs["helpful"]) == 2
    assert asked == [
        (
            "Anthropic/hh-rlhf",
            None,
            {"data_dir": "helpful-base", "split": "test", "revision": "abc"},
        )
    ]


def test_hub_id_as_text_and_a_hub_that_fails(monkeypatch):
    def load_dataset(path, name, **options):
        raise ConnectionError(f"cannot reach {path}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"hub data set nvidia/HelpSteer2 .*check the id"):
        helpsteer.load("nvidia/HelpSteer2")
