"""Rows and batches: who shares sequences, and what an epoch is."""

from collections import Counter
from typing import Any

import pytest
import torch

from paretune import InputError
from paretune.data import local, split_by_prompt
from paretune.data.sampling import PairCollator, PairRows, joint_rows
from paretune.data.tokenization import PairIndex, TokenizedPairs, TokenSequence, tokenize_pairs


def sequence(prompt: int, response: int) -> TokenSequence:
    return TokenSequence((prompt, 100 + response), 1)


def test_joint_rows_match_the_same_responses_first() -> None:
    sequences = [sequence(1, k) for k in range(4)] + [sequence(2, k) for k in range(3)]
    data = TokenizedPairs(
        sequences,
        {
            # prompt 1: (0,1), (2,3); prompt 2: (4,5)
            "one": PairIndex([0, 2, 4], [1, 3, 5], [1, 1, 2], [1.0] * 3),
            # prompt 1: (3,2) is the same pair turned round, (0,2) is another; prompt 2: (4,6)
            "two": PairIndex([0, 3, 4], [2, 2, 6], [1, 1, 2], [1.0] * 3),
        },
    )
    rows = [{"one": 1, "two": 1}, {"one": 0, "two": 0}, {"one": 2, "two": 2}]
    assert joint_rows(data, ["one", "two"]) == rows


def test_joint_rows_leave_out_what_has_no_counterpart() -> None:
    sequences = [sequence(1, 0), sequence(1, 1), sequence(2, 0), sequence(2, 1)]
    data = TokenizedPairs(
        sequences,
        {
            "one": PairIndex([0, 2], [1, 3], [1, 2], [1.0] * 2),
            "two": PairIndex([1], [0], [1], [1.0]),
        },
    )
    assert joint_rows(data, ["one", "two"]) == [{"one": 0, "two": 0}]


def test_auto_sampling(tokenizer: Any, random_pairs: Any) -> None:
    shared = tokenize_pairs(random_pairs(shared=True), tokenizer)
    apart = tokenize_pairs(random_pairs(shared=False), tokenizer)
    assert PairRows(shared, ["one", "two"]).joint
    assert not PairRows(apart, ["one", "two"]).joint
    assert not PairRows(shared, ["one", "two"], "independent").joint
    with pytest.raises(InputError, match="sampling='independent'"):
        PairRows(apart, ["one", "two"], "joint")


def test_auto_sampling_is_measured_on_the_largest_set(
    tokenizer: Any, random_pairs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = random_pairs(n=12)
    pairs["two"] = pairs["two"][:4]  # all of them have a counterpart
    data = tokenize_pairs(pairs, tokenizer)
    auto = PairRows(data, ["one", "two"])
    assert (auto.joint, len(auto), auto.unmatched) == (False, 12, {})
    joint = PairRows(data, ["one", "two"], "joint")
    assert (len(joint), joint.unmatched) == (4, {"one": 8})
    assert "8 of 12 pairs of 'one' have no counterpart" in caplog.text


def test_prompts_that_differ_in_white_space_make_one_row(tokenizer: Any) -> None:
    one, two = (
        [{"prompt": prompt, "chosen": "the cat", "rejected": "the dog"}]
        for prompt in ("tell me a joke", "tell me a joke ")
    )
    data = tokenize_pairs({"one": one, "two": two}, tokenizer)
    assert joint_rows(data, ["one", "two"]) == [{"one": 0, "two": 0}]
    rows = [{"prompt": f"{p} {n}", "chosen": "a", "rejected": "b"} for n in range(9) for p in "ab"]
    spaced = [{**row, "prompt": row["prompt"] + " \n"} for row in rows]
    splits = split_by_prompt(local.load_pairs({"one": rows, "two": spaced}))
    for split in splits.values():
        first, second = ({p.strip() for p in t["prompt"]} for t in split.pairs.values())
        assert first == second


def test_an_objective_without_weight_takes_no_rows_away(tokenizer: Any, random_pairs: Any) -> None:
    pairs = random_pairs()
    pairs["two"] = pairs["two"][:4]
    data = tokenize_pairs(pairs, tokenizer)
    assert len(PairRows(data, ["one", "two"])) == 4
    alone = tokenize_pairs({"one": pairs["one"]}, tokenizer)
    rows, expected = PairRows(data, ["one"]), PairRows(alone, ["one"])
    assert [rows[i] for i in range(6)] == [expected[i] for i in range(6)]


def test_an_independent_epoch_ends_with_the_longest(tokenizer: Any, random_pairs: Any) -> None:
    pairs = random_pairs(n=10, shared=False)
    pairs["two"] = pairs["two"][:4]
    rows = PairRows(tokenize_pairs(pairs, tokenizer), ["one", "two"], "independent", seed=3)
    assert len(rows) == 10
    epochs = []
    for epoch in range(2):
        rows.set_epoch(epoch)
        epochs.append([rows[i] for i in range(10)])
        assert sorted(row["one"] for row in epochs[-1]) == list(range(10))
        counts = Counter(row["two"] for row in epochs[-1])
        assert set(counts.values()) <= {2, 3}
        # each pass over the shorter set is a permutation of it
        assert sorted(row["two"] for row in epochs[-1][:4]) == list(range(4))
        assert sorted(row["two"] for row in epochs[-1][4:8]) == list(range(4))
    assert epochs[0] != epochs[1]
    rows.set_epoch(0)
    assert [rows[i] for i in range(10)] == epochs[0]


def test_a_batch_holds_each_sequence_once(tokenizer: Any, random_pairs: Any) -> None:
    data = tokenize_pairs(random_pairs(n=5, weights=True), tokenizer)
    data.reference = torch.arange(len(data.sequences), dtype=torch.float32)
    rows = PairRows(data, ["one", "two"])
    batch = PairCollator(data, tokenizer.pad_token_id)([rows[i] for i in (3, 1)])
    assert batch["input_ids"].shape[0] == 4
    for name, index in data.pairs.items():
        for side in ("chosen", "rejected"):
            positions = [getattr(index, side)[i] for i in (3, 1)]
            assert batch["reference"][batch["pairs"][name][side]].tolist() == positions
            for place, position in zip(batch["pairs"][name][side], positions, strict=True):
                ids = batch["input_ids"][place][batch["attention_mask"][place].bool()]
                assert tuple(ids.tolist()) == data.sequences[position].input_ids
        assert batch["pairs"][name]["weight"].tolist() == [3.5, 1.5]
