"""JSON lines: what is written is read again; what cannot be relied on is a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune import InputError
from paretune.data import local
from paretune.files import append_jsonl, parse_json, read_jsonl, read_objects, write_jsonl

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4))
def test_what_is_written_is_read_again(tmp_path_factory: Any, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    write_jsonl(path, rows[:2])
    append_jsonl(path, rows[2:])
    assert read_objects(path, nan=True) == rows
    assert [number for number, _ in read_jsonl(path, nan=True)] == list(range(1, len(rows) + 1))


def test_what_the_reader_takes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\xe2\x80\xa8"}\n[1]')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"a": "\u2028"}), (5, [1])]
    with pytest.raises(InputError, match=r"rows.jsonl', line 5 is not a JSON object"):
        read_objects(path)
    path.write_bytes(b'{"loss": NaN}\n')
    assert [str(row["loss"]) for row in read_objects(path, nan=True)] == ["nan"]
    deep = "[" * 90 + "]" * 90
    assert parse_json(deep) == json.loads(deep)
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt"', "Expecting ':'"),
        (b'{"a": 1} {"a": 2}', "Extra data"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' stands twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "Infinity is no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
        (b'{"a": "\\ud800"}', "half of a character"),
        (b'{"\\udc00": 1}', "half of a character"),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "more than 100 levels deep"),
        (b"[" * 100_000 + b"]" * 100_000, "more than 100 levels deep"),
        (b'{"a": "\xff"}', "'utf-8' codec"),
        ('{"a": 1}'.encode("utf-16"), "Expecting|Extra data|utf-8"),
        (b"\x00" * 40, "Expecting value"),
    ],
)
def test_what_cannot_be_relied_on_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"(?s)rows\.jsonl', line 2 is not valid JSON.*{problem}"):
        list(read_jsonl(path))
    with pytest.raises(InputError, match="line 2"):
        local.load_pairs({"one": path}, bad_rows="skip")


def test_files_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(InputError, match=r"rows\.jsonl' cannot be read"):
        read_objects(path)
    path.write_text('{"a": 1}', encoding="utf-16")
    with pytest.raises(InputError, match=r"line 1 .* UTF-16"):
        read_objects(path)
    monkeypatch.setattr("paretune.files._LONGEST", 12)
    path.write_text('{"a": 1}\n{"a": 1000000}\n')
    with pytest.raises(InputError, match=r"line 2 .* longer than 12 bytes"):
        read_objects(path)
    write_jsonl(path, [{"a": "\ud800"}])  # a model may have said it
    assert read_objects(path) == [{"a": "?"}]
