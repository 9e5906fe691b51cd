"""The one reader of YAML: what it takes, what it refuses with a line, and how fast."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.yaml_syntax import MAX_BYTES, dump, parse, read

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "line 1, column 8.*stands within itself"),
        ("x: 1\na: &a {b: *a}", "line 2.*stands within itself"),
        (BOMB, "line 5.*more than 50,000 values"),
        ("[" * 100_000, "nested more than 40 deep"),
        ("- " * 100_000 + "x", "nested more than 40 deep"),
        ("{a: " * 50_000, "nested more than 40 deep"),
        ("? [a, b]\n: 1", "line 1, column 3.*a key must be text"),
        ("? {a: b}\n: 1", "a key must be text"),
        ("a: 1\n1: x", "line 2.*put '1' into quotes"),
        ("null: x", "put 'null' into quotes"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2, column 11.*key 'c' stands twice"),
        ("a: !!python/object/apply:os.system [ls]", "tag 'tag:yaml.org,2002:python/.*no meaning"),
        ("a: !mine x", "tag '!mine' has no meaning"),
        ("a: !!set {x}", "no meaning"),
        ("a: !!binary aGk=", "no meaning"),
        ("a: !!int abc", "'abc' is not of the type !!int"),
        ("a: !!float [1]", "no meaning"),
        ("a: !!bool maybe", "not of the type !!bool"),
        ("a: " + "9" * 5000, "line 1.*the whole number .* is too large"),
        ("a: 9223372036854775808", "too large"),
        ("a: 1e999", "the number '1e999' is too large"),
        ("a: b\x1b[31m", r"line 1: the character U\+001B"),
        ("x: 1\na: \x00", r"line 2: the character U\+0000"),
        ("a: \udcff", r"U\+DCFF"),
        ("a: *b", "line 1.*undefined alias"),
        ("a: [1", "line 1"),
        ("\ta: 1", "not valid YAML"),
        ("a: 1\n---\nb: 2", "line 2.*document"),
        ("%YAML 3.0\n---\na: 1", "incompatible"),
        ("a: " + "x" * MAX_BYTES, "larger than 256 kB"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=words) as caught:
        parse(text, "'mine.yaml'")
    assert time.perf_counter() - start < 20  # what would hang takes hours
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a: é".encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("a: 1\nb: é".encode("latin-1"), "line 2: not UTF-8"),
        (b"a: " + b"x" * MAX_BYTES, "larger than"),
    ],
)
def test_files_in_other_encodings(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words):
        read(path, "'mine.yaml'")


def test_a_byte_order_mark_and_other_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: [x, &y z, *y]\r\n")
    assert parse(read(path, "mine"), "mine") == {"a": 1, "b": ["x", "z", "z"]}


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    st.sampled_from(["1e3", "no", "010", "1:30", "null", "~", ".inf", "2024-01-01", "=", "<<", ""]),
)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        TEXTS,
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert parse(dump(value), "dumped") == value
