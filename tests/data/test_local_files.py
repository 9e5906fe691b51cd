"""The user's own files: the formats, the two forms, and one clear sentence for each mistake."""

import csv
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from paretune.data import RatingRule, local, safe_rlhf
from paretune.errors import InputError

PAIRS = [
    {"prompt": "Q1", "chosen": "good", "rejected": "bad", "objective": "helpful", "weight": 2.0},
    {"prompt": "Q2", "chosen": "fine", "rejected": "poor", "objective": "helpful", "weight": 0.5},
    {"prompt": "Q1", "chosen": "bad", "rejected": "good", "objective": "harmless", "weight": 1.0},
]
RATINGS = [
    {"prompt": "Q1", "response": "a", "clear": 1, "short": 5},
    {"prompt": "Q1", "response": "b", "clear": 2.5, "short": 5},
    {"prompt": "Q1", "response": "c", "clear": 4, "short": None},
    {"prompt": "Q2", "response": "d", "clear": 3, "short": 2},
    {"prompt": "Q2", "response": "e", "clear": 1, "short": 4},
]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_pairs(tmp_path, suffix):
    data = local.load_pairs(write(tmp_path / f"pairs{suffix}", PAIRS))
    expected = local.load_pairs(PAIRS)
    assert list(data.pairs) == ["helpful", "harmless"]
    for name, pairs in data.pairs.items():
        assert pairs.column_names == ["prompt", "chosen", "rejected", "weight"]
        assert pairs.to_dict() == expected.pairs[name].to_dict()
    assert data.counts == expected.counts
    assert data.counts["conflicts"] == {"helpful|harmless": {"common": 1, "rate": 1.0}}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_ratings(tmp_path, suffix):
    path = write(tmp_path / f"ratings{suffix}", RATINGS)
    data = local.load_ratings(path, objectives=["clear", "short"])
    assert data.pairs["clear"].to_dict() == {
        "prompt": ["Q1", "Q2"],
        "chosen": ["c", "d"],
        "rejected": ["a", "e"],
    }
    assert data.pairs["short"].to_dict() == {"prompt": ["Q2"], "chosen": ["e"], "rejected": ["d"]}
    assert data.counts["ties"] == {"clear": 0, "short": 1}
    assert data.counts["na_dropped"] == {"clear": 0, "short": 1}
    assert data.ratings is not None
    assert data.ratings.column_names == ["prompt", "response", "clear", "short"]
    json.dumps(data.counts)


def test_counts_add_up_when_all_pairs_are_made():
    rule = RatingRule(pairing="all")
    data = local.load_ratings(RATINGS, objectives=["clear", "short"], rule=rule)
    assert data.counts["pairs"] == {"clear": 4, "short": 1}  # 3 + 1, and 2 responses rated + 1 tie
    assert data.counts["ties"] == {"clear": 0, "short": 1}
    # Counted on the ratings and on the pairs, the conflicts agree: all pairs are there.
    assert data.counts["conflicts"] == data.counts["rating_conflicts"]
    assert data.counts["conflicts"]["clear|short"] == {"common": 1, "rate": 1.0}


def test_small_differences_are_ties():
    rule = RatingRule(pairing="all", min_difference=1.6)
    data = local.load_ratings(RATINGS, objectives=["clear"], rule=rule)
    assert data.counts["pairs"] == {"clear": 2}
    assert data.counts["ties"] == {"clear": 2}
    first = RatingRule(pairing="all", min_difference=1.6, ties="first")
    pairs = local.load_ratings(RATINGS, objectives=["clear"], rule=first).pairs["clear"]
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [
        ("a", "b"),
        ("c", "a"),
        ("b", "c"),
        ("d", "e"),
    ]


def test_repeated_responses_count_once():
    rows = [*RATINGS, {"prompt": "Q2 ", "response": "e", "clear": 9, "short": 9}]
    data = local.load_ratings(rows, objectives=["clear"])
    assert data.counts["responses"] == 6
    assert data.counts["duplicate_responses"] == 1
    assert data.pairs["clear"]["chosen"][1] == "d"


def test_one_file_for_each_objective_and_conversational_rows(tmp_path):
    message = {"role": "user", "content": "Hi"}
    row = {
        "prompt": [{"role": "system", "content": "Be kind."}, message],
        "chosen": [{"role": "assistant", "content": "Hello!"}],
        "rejected": [{"role": "assistant", "content": "Go away."}],
    }
    files = {name: write(tmp_path / f"{name}.jsonl", [row]) for name in ("kind", "brief")}
    data = local.load_pairs(files)
    assert data.pairs["kind"][0] == row
    assert data.pairs["kind"].column_names == ["prompt", "chosen", "rejected"]
    assert list(local.load_pairs(files, objectives=["brief"]).pairs) == ["brief"]
    with pytest.raises(InputError, match="no objective 'rude'; it has kind, brief"):
        local.load_pairs(files, objectives=["rude"])


@pytest.mark.parametrize("style", ["chat", "dialogue"])
def test_plain_text_becomes_messages(style):
    prompt = "Human: Hi" if style == "dialogue" else "Hi"
    rows = [{"prompt": prompt, "chosen": "a", "rejected": "b"}]
    assert local.load_pairs({"kind": rows}, style=style).pairs["kind"][0] == {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }


# Mistakes

GOOD = {"prompt": "Q", "chosen": "a", "rejected": "b"}
TURN = {"role": "user", "content": "Q"}


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"chosen": None}, "chosen", "is missing"),
        ({"chosen": "  "}, "chosen", "is empty"),
        ({"rejected": 3}, "rejected", "must be text or a list of messages, not int"),
        ({"prompt": ""}, "prompt", "is empty"),
        ({"rejected": " a"}, "rejected", "the same response as 'chosen'"),
        ({"weight": "much"}, "weight", "must be a finite number, not 'much'"),
        ({"weight": 0}, "weight", "must be positive, not 0"),
        ({"prompt": [TURN]}, "prompt", "a list of messages where earlier rows have plain text"),
        ({"chosen": [TURN]}, "chosen", "a list of messages where the prompt is plain text"),
        ({"prompt": [{"role": "me"}]}, r"prompt\[1\]\.role", "must be one of system, user"),
        ({"prompt": [{**TURN, "content": ""}]}, r"prompt\[1\]\.content", "is empty"),
        ({"prompt": []}, "prompt", "is empty"),
    ],
)
def test_bad_pair_is_named_by_file_row_and_field(tmp_path, change, field, message):
    path = write(tmp_path / "mine.jsonl", [GOOD, {**GOOD, **change}])
    sentence = (
        rf"mine\.jsonl, row 2 \(counting from 1\), field '{field}'.*{message}.*mend or remove"
    )
    with pytest.raises(InputError, match=sentence):
        local.load_pairs({"kind": path})


def test_response_of_a_conversation_is_one_assistant_message():
    with pytest.raises(InputError, match="'chosen': must be one assistant message"):
        local.load_pairs({"kind": [{**GOOD, "prompt": [TURN], "chosen": [TURN]}]})
    prompt = [TURN, {"role": "assistant", "content": "Yes?"}]
    with pytest.raises(InputError, match="'prompt': ends with an assistant turn"):
        local.load_pairs({"kind": [{**GOOD, "prompt": prompt}]})


PKU = {
    "prompt": "Human: Q",
    "response_0": "a",
    "response_1": "b",
    "better_response_id": 0,
    "safer_response_id": 1,
}


@pytest.mark.parametrize("label", [2, -1, "first", True, 0.5, None])
def test_label_must_be_0_or_1(label):
    with pytest.raises(InputError, match=r"row 2 .*field 'safer_response_id': (must be 0 or 1|is)"):
        safe_rlhf.load([PKU, {**PKU, "safer_response_id": label}])


@pytest.mark.parametrize("label", [1, 1.0, "1"])
def test_label_as_files_may_hold_it(label):
    data = safe_rlhf.load([{**PKU, "safer_response_id": label}], style="text")
    assert data.pairs["harmless"]["chosen"] == ["b"]


def test_response_with_turns_of_its_own_is_bad():
    row = {**PKU, "response_1": "b\n\nHuman: And?"}
    with pytest.raises(InputError, match=r"row 1 .*'response_1'.*turn of its own"):
        safe_rlhf.load([row], style="dialogue")


@pytest.mark.parametrize("rating", ["high", float("nan"), float("inf"), True, [1]])
def test_rating_must_be_a_number(rating):
    rows = [RATINGS[0], {**RATINGS[1], "clear": rating}]
    with pytest.raises(InputError, match=r"row 2 .*'clear': must be a finite number"):
        local.load_ratings(rows, objectives=["clear"])


def test_missing_rating_column_lists_the_columns():
    with pytest.raises(InputError, match=r"'tone': is missing \(the row has prompt, response, cl"):
        local.load_ratings(RATINGS, objectives=["tone"])


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,chosen\na,b,c,d\n")
    with pytest.raises(InputError, match="has 2 columns named 'chosen'"):
        local.load_pairs({"kind": path})
    names = ["prompt", "chosen", "rejected", "chosen"]
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pa.table([["a"], ["b"], ["c"], ["d"]], names=names), path)
    with pytest.raises(InputError, match="has 2 columns named 'chosen'"):
        local.load_pairs({"kind": path})


def test_bad_rows_can_be_skipped_and_are_counted(caplog):
    rows = [GOOD, {**GOOD, "chosen": ""}, "not a record"]
    with caplog.at_level(logging.WARNING):
        data = local.load_pairs({"kind": rows}, bad_rows="skip")
    assert len(data.pairs["kind"]) == 1
    assert data.counts["rows"] == 3
    assert data.counts["skipped_rows"] == 2
    assert "row 2" in data.counts["skipped_examples"][0]
    assert "Skipped 2 of 3 rows" in caplog.text
    with pytest.raises(InputError, match=r"no data in .*all 1 rows are bad, .*'chosen': is empty"):
        local.load_pairs({"kind": rows[1:2]}, bad_rows="skip")


def test_jsonl_rows_are_numbered_by_line(tmp_path):
    path = tmp_path / "gaps.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({"prompt": "Q"}) + "\n")
    with pytest.raises(InputError, match=r"row 3 .*'chosen': is missing \(the row has prompt\)"):
        local.load_pairs({"kind": path})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "a.jsonl: it is empty"),
        ("a.json", "[]", "a.json: it is empty"),
        ("a.csv", "prompt,chosen,rejected\n", "a.csv: it is empty"),
        ("a.jsonl", '{"prompt"', r"a\.jsonl', line 1 is not valid JSON"),
        ("a.json", '{"a": 1}\n{"a": 2}', r"a\.json is not valid JSON .* name it \.jsonl"),
        ("a.json", '{"a": 1}', "must hold a JSON list of objects, not one dict"),
        ("a.csv", "prompt,chosen,rejected\nQ,a,b,c\n", "row 1 .*more cells than the header"),
        ("a.csv", "prompt,chosen,rejected\nQ,a\n", "row 1 .*'rejected': is missing"),
        ("a.parquet", "no", "a.parquet is not a parquet file"),
        ("a.txt", "Q", r"a\.txt is not a data file: give a file that ends in \.jsonl"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        local.load_pairs({"kind": tmp_path / name})


def test_missing_file_and_empty_rows():
    with pytest.raises(InputError, match=r"data file nowhere/pairs\.jsonl does not exist"):
        local.load_pairs({"kind": "nowhere/pairs.jsonl"})
    with pytest.raises(InputError, match="There is no data in the given rows: it is empty"):
        local.load_pairs([])


def test_long_csv_cells_can_be_read(tmp_path):
    path = write(tmp_path / "long.csv", [{**GOOD, "chosen": "a" * 200_000}])
    assert len(local.load_pairs({"kind": path}).pairs["kind"]["chosen"][0]) == 200_000


def test_objective_left_without_pairs():
    rows = [{**row, "clear": 3} for row in RATINGS]
    with pytest.raises(
        InputError, match=r"'clear' has no pairs left \(rows: 5.*ties: .*'clear': 2"
    ):
        local.load_ratings(rows, objectives=["clear"])


@pytest.mark.parametrize(
    "options",
    [
        {"rule": {"pairing": "best"}},
        {"rule": {"ties": "last"}},
        {"rule": {"min_difference": -1}},
        {"rule": {"lower_is_better": "clear"}},
        {"rule": {"lower_is_better": ["tone"]}},
        {"style": "dialog"},
        {"bad_rows": "ignore"},
        {"objectives": []},
        {"objectives": "clear"},
    ],
)
def test_unknown_options(options):
    options = {"objectives": ["clear"], **options}
    with pytest.raises(InputError):
        local.load_ratings(RATINGS, **{**options, "rule": RatingRule(**options.pop("rule", {}))})


def test_white_space_inside_a_response_counts():
    rows = [{**GOOD, "chosen": "if x:\n    y", "rejected": "if x:\n  y"}]
    assert len(local.load_pairs({"kind": rows}).pairs["kind"]) == 1


def test_columns_that_nobody_reads_are_counted_and_told(caplog):
    turn = {"role": "user", "content": "Why?", "ts": 1}
    row = {"prompt": [turn], "chosen": [say("So.")], "rejected": [say("No.")], "source": "web"}
    data = local.load_pairs({"a": [row, {**row, "source": None}]})
    assert data.counts["unread_columns"] == {"source": 1, "prompt.ts": 2}
    assert "nobody reads the columns source, prompt.ts" in caplog.text


def test_pairs_of_whole_conversations():
    """As in ultrafeedback_binarized, where the prompt is the text of the first message."""
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "2+2?"}]
    sides = {"chosen": [*turns, say("4")], "rejected": [*turns, say("5")]}
    for prompt in ({}, {"prompt": "2+2? "}, {"prompt": turns}):
        (pair,) = local.load_pairs({"a": [{**prompt, **sides}]}).pairs["a"]
        assert pair == {"prompt": turns, "chosen": [say("4")], "rejected": [say("5")]}
    for change, complaint in (
        ({"prompt": "3+3?"}, "'prompt': is not what 'chosen' begins with"),
        ({"rejected": [turns[1], say("5")]}, "'rejected': differs from 'chosen' before its last"),
        ({"chosen": turns}, "'chosen': must end with an assistant message"),
        ({"rejected": [*turns, say("4 ")]}, "is the same response"),
        ({"chosen": [*turns, say("a"), say("b")]}, "'rejected': differs from 'chosen' before"),
    ):
        with pytest.raises(InputError, match=complaint):
            local.load_pairs({"a": [{**sides, **change}]})


def test_tools_go_with_the_prompt():
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Rome"}}}]
    asked = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "no", "name": "weather"},
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    row = {"prompt": asked, "chosen": [say("No.")], "rejected": [say("Yes.")], "tools": tools}
    other = {**row, "prompt": asked[:1], "tools": None}
    data = local.load_pairs({"a": [row, other]})
    prompts = data.pairs["a"]["prompt"]
    assert json.loads(prompts[0][0]["tools"]) == tools
    assert json.loads(prompts[0][1]["tool_calls"]) == calls
    assert prompts[0][2]["name"] == "weather"
    assert prompts[1][0].get("tools") is None
    assert data.counts["prompts"] == 2
    assert data.counts["unread_columns"] == {}
    with pytest.raises(InputError, match="'tools': needs a chat template"):
        local.load_pairs({"a": [{"prompt": "a", "chosen": "b", "rejected": "c", "tools": tools}]})


def say(text):
    return {"role": "assistant", "content": text}
