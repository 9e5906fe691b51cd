"""Tokenised pairs on disk: read by whoever wants the same, by nobody who wants something else."""

import copy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from paretune.data import token_cache
from paretune.data.token_cache import cached_pairs
from paretune.data.tokenization import tokenize_pairs


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Is added to with every call of `tokenize_pairs`."""
    calls: list[Any] = []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return tokenize_pairs(*args)

    monkeypatch.setattr(token_cache, "tokenize_pairs", counted)
    return calls


def same(first: Any, second: Any) -> bool:
    parts = [(list(d.sequences), d.pairs, d.counts, d.reference) for d in (first, second)]
    return bool(parts[0] == parts[1])


def test_what_is_read_is_what_was_made(
    tokenizer: Any, random_pairs: Any, tmp_path: Path, made: list[Any], caplog: Any
) -> None:
    pairs = random_pairs(n=9, weights=True)
    pairs["one"][2]["note"] = "unread"
    options = (copy.copy(tokenizer), 20, "truncate")
    options[0].chat_template = options[0].chat_template.replace(" <|im_end|> <nl> ", " <nl> ")
    first = cached_pairs(tmp_path, pairs, *options)
    told = [record.message for record in caplog.records]
    assert any("writes no token that ends" in each for each in told)
    assert any("cut off" in each for each in told)
    assert any("nobody reads the columns note" in each for each in told)
    caplog.clear()
    again = cached_pairs(tmp_path, pairs, *options)
    assert len(made) == 1
    assert same(again, first)
    assert same(again, tokenize_pairs(pairs, *options))
    assert [record.message for record in caplog.records][: len(told)] == told
    again.pairs["one"].offset = [0.0]  # a trainer's own
    assert cached_pairs(tmp_path, pairs, *options).pairs["one"].offset is None


def test_nothing_else_is_read(
    tokenizer: Any, random_pairs: Any, tmp_path: Path, made: list[Any]
) -> None:
    pairs = random_pairs(n=4)
    other = copy.deepcopy(pairs)
    other["two"][3]["chosen"][0]["content"] += " cat"
    template, more, special = (copy.deepcopy(tokenizer) for _ in range(3))
    template.chat_template = template.chat_template.replace("im_start|>", "im_start|> red")
    more.add_tokens(["cat dog"])
    special.eos_token = "<nl>"
    calls: list[Any] = [
        (pairs, tokenizer),
        (other, tokenizer),
        ({name: pairs[name] for name in ("two", "one")}, tokenizer),
        ({"one": pairs["one"]}, tokenizer),
        ({"one": pairs["one"][::-1]}, tokenizer),
        (pairs, tokenizer, 24),
        (pairs, tokenizer, 24, "truncate"),
        (pairs, template),
        (pairs, more),
        (pairs, special),
    ]
    for number, call in enumerate(calls, start=1):
        found = cached_pairs(tmp_path, *call)
        assert same(found, tokenize_pairs(*call))
        assert len(made) == number
    for call in calls:
        assert same(cached_pairs(tmp_path, *call), tokenize_pairs(*call))
    assert len(made) == len(calls)
    # The same from a data set, and a tokenizer that was told to cut and to pad before.
    sets = {name: Dataset.from_list(rows) for name, rows in pairs.items()}
    first = cached_pairs(tmp_path, sets, tokenizer)
    tokenizer(["the cat", "a"], padding=True, truncation=True, max_length=4)
    assert same(cached_pairs(tmp_path, sets, tokenizer), first)
    assert len(made) == len(calls) + 1


@pytest.mark.parametrize("how", ["empty", "cut", "one bit", "another's", "folder"])
def test_a_damaged_file_is_made_again(
    tokenizer: Any, random_pairs: Any, tmp_path: Path, made: list[Any], caplog: Any, how: str
) -> None:
    pairs = random_pairs(n=4)
    first = cached_pairs(tmp_path, pairs, tokenizer)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    if how == "folder":
        file.unlink()
        file.mkdir()
    elif how == "another's":
        cached_pairs(tmp_path, random_pairs(n=4, seed=1), tokenizer)
        (other,) = set(tmp_path.iterdir()) - {file}
        file.write_bytes(other.read_bytes())
    else:
        middle = len(content) - 40
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"empty": b"", "cut": content[:-9], "one bit": flipped}[how])
    before = len(made)
    assert same(cached_pairs(tmp_path, pairs, tokenizer), first)
    assert len(made) == before + 1
    assert f"'{file}' are damaged" in caplog.text
    if how != "folder":
        assert same(cached_pairs(tmp_path, pairs, tokenizer), first)
        assert len(made) == before + 1


def test_what_has_no_digest_is_not_kept(tokenizer: Any, random_pairs: Any, tmp_path: Path) -> None:
    pairs = random_pairs(n=3)
    clock = copy.copy(tokenizer)
    clock.chat_template = "{# strftime_now('%H') #}" + clock.chat_template
    cached_pairs(tmp_path, pairs, clock)
    cached_pairs(tmp_path, {name: iter(rows) for name, rows in pairs.items()}, tokenizer)
    cached_pairs(tmp_path, {"one": [{**pairs["one"][0], "note": object()}]}, tokenizer)
    assert not list(tmp_path.iterdir())
    cached_pairs(None, pairs, tokenizer)
    (tmp_path / "file").write_text("")
    cached_pairs(tmp_path / "file", pairs, tokenizer)  # no hindrance


def test_the_code_belongs_to_the_key(
    tokenizer: Any, random_pairs: Any, tmp_path: Path, made: list[Any], monkeypatch: Any
) -> None:
    cached_pairs(tmp_path, random_pairs(), tokenizer)
    monkeypatch.setattr(token_cache, "_code_digest", lambda: "of another version")
    cached_pairs(tmp_path, random_pairs(), tokenizer)
    assert len(made) == 2
