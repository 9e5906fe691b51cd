"""Token ids of pairs: each sequence once, no doubled special tokens, response tokens only."""

from typing import Any

import pytest
from datasets import Dataset

from paretune import InputError
from paretune.data.tokenization import pad_sequences, tokenize_pairs


def chat(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **more,
    }


def test_conversational_pairs(tokenizer: Any) -> None:
    data = tokenize_pairs({"one": [chat("the cat", "a dog", "red")]}, tokenizer)
    first, second = (tokenizer.decode(s.input_ids) for s in data.sequences)
    assert (
        first == "<|im_start|> user the cat <|im_end|> <nl> <|im_start|> assistant a dog <|im_end|>"
    )
    assert second.endswith("assistant red <|im_end|>")  # the template's newline is not a response
    start = data.sequences[0].prompt_length
    assert tokenizer.decode(data.sequences[0].input_ids[start:]) == "a dog <|im_end|>"
    assert (data.pairs["one"].chosen, data.pairs["one"].rejected) == ([0], [1])


def test_plain_pairs_get_one_end_token(tokenizer: Any) -> None:
    rows = [{"prompt": "the cat ", "chosen": "a dog", "rejected": "red <|im_end|>"}]
    data = tokenize_pairs({"one": rows}, tokenizer)
    eos = tokenizer.eos_token_id
    for sequence in data.sequences:
        assert sequence.input_ids.count(eos) == 1
        assert sequence.input_ids[-1] == eos
        assert sequence.prompt_length == 2


def test_no_second_beginning_token(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str()
        ),
        bos_token="<nl>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template="<nl> " + tokenizer.chat_template.replace(" <nl> ", " "),
    )
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="<nl> $A", special_tokens=[("<nl>", other.bos_token_id)]
    )
    rows = {
        "chat": [chat("the cat", "a dog", "red")],
        "plain": [{"prompt": "the cat ", "chosen": "a dog", "rejected": "red"}],
    }
    rows["by hand"] = [{"prompt": "<nl> the cat ", "chosen": "a dog", "rejected": "red"}]
    for sequence in tokenize_pairs(rows, other).sequences:
        assert sequence.input_ids.count(other.bos_token_id) == 1


def test_a_template_that_opens_with_the_end_token(tokenizer: Any) -> None:
    """Some families use one token to begin a text and to end a turn."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "<|im_end|> " + tokenizer.chat_template.replace("<|im_end|>", "")
    (first, _) = tokenize_pairs({"one": [chat("the cat", "a dog", "red")]}, other).sequences
    answer = other.decode(first.input_ids[first.prompt_length :])
    assert answer == "a dog <nl> <|im_end|>"


def test_shared_responses_stand_once(tokenizer: Any) -> None:
    pairs = {
        "one": [chat("the cat", "a dog", "red"), chat("the cat", "red", "blue")],
        "two": [chat("the cat", "red", "a dog", weight=2)],
    }
    data = tokenize_pairs(pairs, tokenizer)
    assert len(data.sequences) == 3
    assert data.pairs["two"].chosen == [data.pairs["one"].rejected[0]]
    assert (data.pairs["one"].weight, data.pairs["two"].weight) == ([1.0, 1.0], [2.0])


def test_overlong_pairs(tokenizer: Any) -> None:
    rows = [chat("cat", "a dog", "red blue green"), chat("cat", "a", "red")]
    dropped = tokenize_pairs({"one": rows}, tokenizer, max_length=10)
    assert len(dropped.pairs["one"]) == 1
    assert dropped.counts["one"].too_long == dropped.counts["one"].dropped == 1
    cut = tokenize_pairs({"one": rows}, tokenizer, max_length=10, overlong="truncate")
    assert len(cut.pairs["one"]) == 2
    assert (cut.counts["one"].cut, cut.counts["one"].dropped) == (1, 0)
    assert max(len(s.input_ids) for s in cut.sequences) == 10
    with pytest.raises(InputError, match="all 2 are longer than max_length=3"):
        tokenize_pairs({"one": rows}, tokenizer, max_length=3, overlong="truncate")


def test_what_is_left_out_is_counted_and_told(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        chat("cat", "a dog", "red blue green yes no maybe", source="web"),
        chat("cat", "a  dog", "a dog", source=None),  # the same words to this tokenizer
        chat("cat", "a", "red", source="web"),
    ]
    counts = tokenize_pairs({"one": rows}, tokenizer, max_length=10).counts["one"]
    assert counts.to_json() == {
        "given": 3,
        "too_long": 1,
        "equal": 1,
        "cut": 0,
        "unread": {"source": 2},
    }
    for told in (
        "1 of 3 pairs of 'one' are longer than max_length=10 and are left out",
        "1 of 3 pairs of 'one' have two responses of the same tokens and are left out",
        "Of the pairs of 'one' nobody reads the columns source.",
    ):
        assert told in caplog.text
    with pytest.raises(InputError, match="all 1 have two responses of the same tokens"):
        tokenize_pairs({"one": rows[1:2]}, tokenizer)
    with pytest.raises(InputError, match="'images' cannot be trained on"):
        tokenize_pairs({"one": [chat("cat", "a", "red", images=[1])]}, tokenizer)


def test_padding_and_masks(tokenizer: Any) -> None:
    data = tokenize_pairs({"one": [chat("the cat", "a dog", "red")]}, tokenizer)
    batch = pad_sequences(data.sequences, tokenizer.pad_token_id)
    assert batch["lengths"].tolist() == [3, 2]
    assert batch["completion_mask"].sum(1).tolist() == [3, 2]
    assert batch["input_ids"][1, -1] == tokenizer.pad_token_id
    assert batch["attention_mask"].sum(1).tolist() == [len(s.input_ids) for s in data.sequences]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chat("the cat", "a dog", ""), None),
        (
            {"prompt": "the", "chosen": "a"},
            "row 2 of the 'one' pairs, the column 'rejected' is",
        ),
        ({"prompt": "the", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "the", "chosen": "a", "rejected": [{}]}, "must both be strings"),
        (chat("the", "a", "red", weight=-1), "weight must be a positive number, not -1"),
        (chat("the", "a", "red", weight="x"), "weight must be a positive number, not 'x'"),
        (chat("the", "a", "red", weight=True), "weight must be a positive number, not True"),
        (chat("the", "a", "red", weight=1e39), "weight must lie between 1e-30 and 1e\\+30"),
        (chat("the", "a", "red", weight=1e-50), "weight must lie between 1e-30 and 1e\\+30"),
        ({"prompt": "a", "rejected": "b"}, "the column 'chosen' is missing; there are prompt, rej"),
        ({"prompt": "a", "chosen": 5, "rejected": "b"}, "'chosen' must be text or a list"),
        ("a.jsonl", "a row must be a record with prompt, chosen and rejected, not 'a.jsonl'"),
    ],
)
def test_bad_rows_are_named(tokenizer: Any, row: Any, message: str | None) -> None:
    rows = [chat("the cat", "a dog", "red"), row]
    if message is None:  # an empty answer that ends its turn is a response like any other
        assert len(tokenize_pairs({"one": rows}, tokenizer).pairs["one"]) == 2
        return
    with pytest.raises(InputError, match=message):
        tokenize_pairs({"one": rows}, tokenizer)


def test_conversation_without_chat_template(tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        tokenize_pairs({"one": [chat("the", "a", "red")]}, bare)


def test_tokenised_in_parts_as_row_by_row(
    tokenizer: Any, random_pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the batches, and where texts repeat: the same ids, positions and messages."""
    pairs = random_pairs(n=9, weights=True)
    pairs["two"] += [pairs["one"][3], {**pairs["one"][3], "weight": 2.0}]
    whole = tokenize_pairs(pairs, tokenizer, max_length=24, overlong="truncate")
    monkeypatch.setattr("paretune.data.tokenization._BATCH", 2)
    parts = tokenize_pairs(
        {name: Dataset.from_list(rows) for name, rows in pairs.items()},
        tokenizer,
        max_length=24,
        overlong="truncate",
    )
    assert list(parts.sequences) == list(whole.sequences)
    assert (parts.pairs, parts.counts) == (whole.pairs, whole.counts)
    assert parts.sequences[-1] == parts.sequences[len(parts.sequences) - 1]
    assert parts.sequences[1:3] == list(parts.sequences)[1:3]
    with pytest.raises(IndexError):
        parts.sequences[len(parts.sequences)]
    rows = [chat("the cat", "a", "dog"), {**chat("the cat", "a", "b"), "rejected": []}, {}]
    with pytest.raises(InputError, match="row 2 of the 'one' pairs, 'rejected' is empty"):
        tokenize_pairs({"one": rows}, tokenizer)


def test_what_no_pair_uses_is_left_out(tokenizer: Any) -> None:
    rows = [chat("the cat", "a dog", "red " * 30), chat("the cat", "a", "red"), chat("x", "a", "b")]
    data = tokenize_pairs({"one": rows}, tokenizer, max_length=20)
    used = {*data.pairs["one"].chosen, *data.pairs["one"].rejected}
    assert used == set(range(len(data.sequences)))
    assert data.counts["one"].too_long == 1
