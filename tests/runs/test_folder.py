"""Run folders: whose they are, who is at work in them, and what their results stand on."""

import contextlib
import errno
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.claims import BusyError
from paretune.errors import InputError
from paretune.experiment.ground import data_ground, file_ground, model_ground
from paretune.files import read_json, write_json
from paretune.recipes import Recipe, recipe_from_text
from paretune.runs.folder import RunFolder
from paretune.runs.identity import RecipeIdentity, SettingsIdentity

RECIPE = """
data: {loader: demo, objectives: [concise, personal]}
sweep: {preferences: [[0.5, 0.5]]}
"""


def recipe(*overrides: str) -> Recipe:
    return recipe_from_text(RECIPE, "the test", "test", overrides)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., RunFolder]:
    def make(*overrides: str, **more: Any) -> RunFolder:
        contents = ("points", "recipe.yaml", "manifest.json")
        identity = RecipeIdentity(recipe(*overrides))
        return RunFolder(tmp_path / "run", identity, contents=contents, **more)

    return make


def work(folder: RunFolder, name: str = "points/one") -> None:
    write_json(folder.path / name / folder.mark, {})


def test_work_is_finished_once_and_sessions_are_noted(folder: Callable[..., RunFolder]) -> None:
    first = folder()
    with first.session():
        assert not first.finished("points/one")
        first.note(data={"all": 3})
        work(first)
        first.publish({"made.json": {"a": 1}, "made.md": "text", "made.txt": Path.touch})
    second = folder()
    with second.session():
        assert second.finished("points/one")
        second.note({"dropped": {"concise": 2}})
        assert first.manifest["sessions"][0]["started"].startswith(second.started())
    manifest = second.manifest
    assert manifest["data"] == {"all": 3}
    assert [set(each) & {"ended", "dropped"} for each in manifest["sessions"]] == [
        {"ended"},
        {"dropped"},
    ]
    assert manifest["sessions"][0]["torch"]
    assert manifest["sessions"][0]["machine"].startswith("load 0.0 on ")
    assert sorted(path.name for path in first.path.iterdir()) == [
        "made.json",
        "made.md",
        "made.txt",
        "manifest.json",
        "points",
        "recipe.yaml",
    ]


def test_a_folder_belongs_to_one_recipe(folder: Callable[..., RunFolder]) -> None:
    first = folder("train.max_steps=1")
    with first.session():
        pass
    with folder("train.max_steps=2").session():  # no work was begun: another recipe may have it
        work(first)
    with (
        pytest.raises(InputError, match=r"another recipe \(train.max_steps: 1, not 2\).*--fresh"),
        first.session(),
    ):
        pass
    with folder("train.max_steps=1", may_differ=("train",)).session():
        assert "max_steps: 1" in (first.path / "recipe.yaml").read_text()
        assert first.finished("points/one")
    with folder("train.max_steps=3").session(fresh=True):
        assert not first.finished("points/one")


def test_a_recipe_that_is_lost_or_damaged(folder: Callable[..., RunFolder]) -> None:
    one = folder()
    with one.session():
        one.note()
        work(one)
    saved = one.path / "recipe.yaml"
    for text in ("", "a: [", "\x00", "[1, 2]"):
        saved.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"recipe.yaml"), folder().session():
            pass
    saved.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"recipe.yaml"), folder().session():
        pass
    saved.unlink()
    with pytest.raises(InputError, match="restore that file"), folder().session():
        pass
    with folder().session(fresh=True):
        assert not one.finished("points/one")


def test_a_users_own_files_are_left_alone(folder: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "points").mkdir(parents=True)
    for fresh in (False, True):
        with pytest.raises(InputError, match="holds 'points'"), folder().session(fresh=fresh):
            pass
    (run / "recipe.yaml").write_text("soup: tomato")
    for fresh in (False, True):
        with pytest.raises(InputError, match="not a run folder"), folder().session(fresh=fresh):
            pass
    assert (run / "recipe.yaml").read_text() == "soup: tomato"


def test_settings_as_identity(tmp_path: Path) -> None:
    def make(**settings: Any) -> RunFolder:
        identity = SettingsIdentity("kept.json", settings, key="settings")
        return RunFolder(tmp_path, identity, begun=("kept.json",))

    with make(a={"b": 1}).session():
        pass
    whole = read_json(tmp_path / "kept.json")
    write_json(tmp_path / "kept.json", {**whole, "answers": {"x": 1}})
    with make(a={"b": 1, "new": None}).session():
        assert read_json(tmp_path / "kept.json")["answers"] == {"x": 1}
    with pytest.raises(InputError, match=r"a.b: 2, not 1"), make(a={"b": 2}).session():
        pass


# ------------------------------------------------------------------ one session at a time


def test_one_session_at_a_time(folder: Callable[..., RunFolder]) -> None:
    one, two = folder(), folder()
    with one.session():
        with pytest.raises(BusyError, match=r"is at work in .*run.*wait for it"), two.session():
            pass
        with one.alone(), one.alone():
            pass
        with pytest.raises(BusyError), two.alone(patience=0.0):
            pass
    with two.session():
        pass


def test_a_shared_folder_is_nobodys_own(folder: Callable[..., RunFolder]) -> None:
    one, two = folder(), folder()
    with one.shared_session(), two.shared_session():
        with one.alone(), pytest.raises(BusyError), two.alone(patience=0.0):
            pass
        with pytest.raises(BusyError, match=r"at work in .*run"), folder().session():
            pass
        with pytest.raises(BusyError, match="at work"), folder().shared_session(fresh=True):
            pass
    with folder().shared_session(fresh=True), pytest.raises(BusyError), folder().session():
        pass
    with folder().session():
        pass


def test_everybody_notes_in_one_manifest(folder: Callable[..., RunFolder]) -> None:
    workers = [folder() for _ in range(4)]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker.shared_session())

        def note(number: int) -> None:
            for each in range(5):
                workers[number].note({"mine": number}, **{f"{number} {each}": each})

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(note, range(4)))
    manifest = workers[0].manifest
    assert sorted(each["mine"] for each in manifest.pop("sessions")) == [0, 1, 2, 3]
    assert len(manifest) == 20


def test_processes_of_one_start_are_one_session(
    folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = folder()
    with one.session(), monkeypatch.context() as patch:
        patch.setenv("RANK", "1")
        with folder().session():
            pass


# ------------------------------------------------------------------ the ground


def test_what_changed_is_named(folder: Callable[..., RunFolder]) -> None:
    one = folder()
    with one.session():
        one.stand_on({"data": {"concise": "1", "personal": "2"}, "model": {"config.json": "3"}})
        one.stand_on({"data": {"concise": "1", "personal": "2"}})
        with pytest.raises(InputError, match="The data of 'personal' changed since"):
            one.stand_on({"data": {"concise": "1", "personal": "0"}})
        with pytest.raises(InputError, match=r"The base model's 'config.json', 'x.safetensors'"):
            one.stand_on({"model": {"config.json": "4", "x.safetensors": "1"}})
        one.stand_on({"tokenizer": {"tokenizer.json": "5"}})  # not noted by earlier versions
        with pytest.raises(InputError, match=r"The tokenizer's 'tokenizer.json'"):
            one.stand_on({"tokenizer": {}})


PARTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3)
GROUND = st.dictionaries(st.sampled_from(["data", "model", "tokenizer", "rewards"]), PARTS)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(sessions=st.lists(GROUND, min_size=2, max_size=4))
def test_any_sessions_of_a_folder_stand_on_the_same(
    sessions: list[dict[str, dict[str, str]]],
) -> None:
    """Each has the digests that those before it noted, or a sentence names one that differs."""
    noted: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as place:
        for ground in sessions:
            run = RunFolder(Path(place) / "run", RecipeIdentity(recipe()))
            differs = [what for what in ground if noted.get(what, ground[what]) != ground[what]]
            with run.session():
                if differs:
                    with pytest.raises(InputError, match="changed since") as caught:
                        run.stand_on(ground)
                    parts = {**noted[differs[0]], **ground[differs[0]]}
                    assert any(f"'{part}'" in str(caught.value) for part in parts)
                else:
                    run.stand_on(ground)
                    noted |= ground
                assert run.manifest.get("ground", {}) == noted
            (run.path / "points" / "one").mkdir(parents=True, exist_ok=True)


def test_digests_of_data_and_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Any,
    tiny_llama: Callable[..., Any],
) -> None:
    from paretune.data import demo

    data = demo.load(objectives=["concise", "personal"])
    whole = data_ground(data)["data"]
    assert set(whole) == {"concise", "personal"}
    swapped = data.pairs["concise"].rename_columns({"chosen": "rejected", "rejected": "chosen"})
    other = replace(data, pairs={**data.pairs, "concise": swapped})
    changed = data_ground(other)["data"]
    assert changed["concise"] != whole["concise"]
    assert changed["personal"] == whole["personal"]
    assert data_ground(demo.load(objectives=["concise", "personal"]))["data"] == whole

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("paretune.experiment.ground._LARGE", 1)
    tiny_llama(seed=0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    before = model_ground(str(tmp_path / "model"))
    assert before == model_ground(str(tmp_path / "model"))
    assert "model.safetensors" in before["model"]
    assert "tokenizer.json" in before["tokenizer"]
    (tmp_path / "model" / "README.md").write_text("words")
    assert before == model_ground(str(tmp_path / "model"))
    tiny_llama(seed=1).save_pretrained(tmp_path / "model")
    after = model_ground(str(tmp_path / "model"))
    assert [name for name in after["model"] if after["model"][name] != before["model"][name]] == [
        "model.safetensors"
    ]
    assert after["tokenizer"] == before["tokenizer"]
    for kept in (tmp_path / "cache").rglob("*.json"):
        kept.write_text("")  # a damaged cache is made again
    assert after == model_ground(str(tmp_path / "model"))


def test_a_json_files_layout_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1, "b": 2}')
    first = file_ground([path])
    path.write_text('{"b":2,"a":1}\n')
    assert file_ground([path]) == first


# ------------------------------------------------------------------ the disk


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), r"Permission denied \('x'\)"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos"), "full?"),
    ],
)
def test_the_disk(folder: Callable[..., RunFolder], error: Exception, words: str) -> None:
    with pytest.raises(InputError, match=words), folder().session():
        raise error
    with pytest.raises(ConnectionError), folder().session():
        raise ConnectionError(errno.ECONNREFUSED, "refused")
    with pytest.raises(ZeroDivisionError), folder().session():
        raise ZeroDivisionError
