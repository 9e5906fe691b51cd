"""Choosing a point, talking to it, and taking it elsewhere; a run folder made by hand."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationMixin
from typer.testing import CliRunner

from paretune import cli
from paretune.baselines.score_prompts import ScorePrompt, with_scores
from paretune.errors import InputError
from paretune.evaluation.decoding import KeptPrefix
from paretune.evaluation.generation import generate_answers
from paretune.files import read_json, write_json
from paretune.models import load_model_and_tokenizer
from paretune.names import printable
from paretune.recipes import load_recipe
from paretune.results.answers import Answer, write_answers
from paretune.results.front import Front, FrontPoint, ObjectiveMetrics
from paretune.serving.chat import ChatModel, Conversation, mean_words
from paretune.serving.choose import open_run
from paretune.serving.export import export_run

LOSSES = {"harmless0.20-helpful0.80": (0.9, 0.3), "harmless0.80-helpful0.20": (0.4, 0.8)}
PROMPT = [{"role": "system", "content": "be good"}, {"role": "user", "content": "red cat"}]

Make = Callable[..., Path]


def point(name: str, losses: tuple[float, float], seed: int = 0) -> FrontPoint:
    weights = [float(part[-4:]) for part in name.split("-")]
    metrics = [ObjectiveMetrics(loss, 0.5, 0.0) for loss in losses]
    return FrontPoint(
        preference=dict(zip(("harmless", "helpful"), weights, strict=True)),
        metrics=dict(zip(("harmless", "helpful"), metrics, strict=True)),
        chebyshev=max(w * loss for w, loss in zip(weights, losses, strict=True)),
        seed=seed,
        folder=f"points/{name}",
    )


@pytest.fixture
def make(
    tmp_path: Path,
    tokenizer: Any,
    tiny_llama: Callable[..., Any],
    tiny_lora: Callable[..., Any],
) -> Make:
    """A run folder of two points, of which the second has an adapter of another rank and scale."""

    def make_run(*overrides: str, whole: bool = False, prompt: Any = PROMPT) -> Path:
        tiny_llama().save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        run = tmp_path / "run"
        (tmp_path / "tiny.yaml").write_text(
            f"""
model: {{name: {tmp_path / "model"}}}
data: {{loader: safe_rlhf, objectives: [harmless, helpful]}}
sweep: {{preferences: [[0.2, 0.8], [0.8, 0.2]]}}
evaluation: {{n_prompts: 3, max_new_tokens: 6, temperature: 1.0, batch_size: 2}}
output_dir: {run}
"""
        )
        recipe = load_recipe(tmp_path / "tiny.yaml", ["lora=null"] * whole + list(overrides))
        for seed, name in enumerate(LOSSES):
            folder = run / "points" / name
            if whole:
                tiny_llama(seed + 1).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            else:
                model = tiny_lora(fresh=False, r=4 * (seed + 1))
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.data += 0.3 * seed
                model.save_pretrained(folder)
            prompts = [prompt, "sun" if isinstance(prompt, str) else prompt[-1:]]
            write_answers(folder / "answers.jsonl", [Answer(p, "x", True) for p in prompts])
        (run / "recipe.yaml").write_text(recipe.to_yaml())
        points = [point(name, losses) for name, losses in LOSSES.items()]
        Front.of(points, name="tiny", method="clamp").write(run / "front.json")
        return run

    return make_run


def test_the_choice_is_the_least_weighted_chebyshev_value(make: Make) -> None:
    choices = open_run(make())
    for share in (0.0, 0.1, 0.5, 0.64, 0.66, 0.9, 1.0):
        preference = choices.preference({"harmless": share, "helpful": 1 - share})
        values = {n: max(share * a, (1 - share) * b) for n, (a, b) in LOSSES.items()}
        choice = choices.choose(preference)
        assert choice.best.name == min(values, key=lambda name: values[name])
        assert all(f"{value:.4f} = " in choice.reason() for value in values.values())
        assert "test split" in choice.reason()
    assert [choice.best.name for choice in choices.ends()] == list(LOSSES)[::-1]
    assert choices.preference({}).weights == (0.5, 0.5)
    with pytest.raises(InputError, match="no objective 'harmles'"):
        choices.preference({"harmles": 1.0})


def test_of_equals_the_lower_sum_and_never_a_nan(make: Make) -> None:
    choices = open_run(make())
    losses = {"a": (0.5, 0.5), "b": (0.5, 0.4), "c": (math.nan, 0.1), "d": (0.5, math.nan)}
    made = tuple(
        replace(choices.candidates[0], name=name, point=point("x0.50-y0.50", each))
        for name, each in losses.items()
    )
    choice = replace(choices, candidates=made).choose(choices.preference({}))
    assert [each.name for each in choice.ranked] == ["b", "a", "c", "d"]
    assert "inf" not in choice.reason()
    assert "nan" in choice.reason()


def test_validation_losses_decide_where_there_are_any(make: Make) -> None:
    run = make()
    measured = run / "evaluation-validation"
    measured.mkdir()
    swapped = dict(zip(LOSSES, list(LOSSES.values())[::-1], strict=True))
    points = [point(name, losses) for name, losses in swapped.items()]
    Front.of(points, name="tiny", method="clamp", split="validation").write(measured / "front.json")

    def recipe(*overrides: str) -> None:
        text = load_recipe(run / "recipe.yaml", overrides).to_yaml()
        (measured / "recipe.yaml").write_text(text)

    recipe("evaluation.n_prompts=1")
    choices = open_run(run)
    assert choices.split == "validation"
    assert choices.ends()[0].best.name == "harmless0.20-helpful0.80"
    recipe("loss.beta=0.5")  # other losses
    assert open_run(run).split == "test"
    recipe()
    Front.of(points[:1], name="tiny", method="clamp").write(measured / "front.json")
    assert open_run(run).split == "test"


def test_a_method_of_a_comparison_is_chosen_by_name(make: Make) -> None:
    run = make()
    recipe = (run / "recipe.yaml").read_text() + "methods: [{name: clamp}, {name: linear}]\n"
    (run / "recipe.yaml").write_text(recipe)
    first, second = (point(*item) for item in LOSSES.items())
    cell = {"options": {}, "missing": [], "failure": None, "hypervolume": None}
    cells = [
        {"title": "CLAMP", "method": "clamp", "seed": 0, "points": [first.to_json()]},
        {"title": "CLAMP", "method": "clamp", "seed": 1, "points": [second.to_json()]},
        {"title": "CLAMP", "method": "clamp", "seed": 2, "points": [first.to_json()]},
        {"title": "PWG", "method": "linear", "seed": 0, "points": [second.to_json()]},
    ]
    cells[2]["points"][0]["seed"] = 2  # type: ignore[index]
    write_json(
        run / "compare.json",
        {
            "name": "tiny",
            "objectives": ["harmless", "helpful"],
            "reference_point": None,
            "base": None,
            "summary": {},
            "epsilon": {},
            "shared": {},
            "cells": [cell | each for each in cells],
        },
    )
    assert [c.name for c in open_run(run, method="pwg").candidates] == ["harmless0.80-helpful0.20"]
    names = [candidate.name for candidate in open_run(run, method="CLAMP").candidates]
    assert len(set(names)) == 3
    assert names[-1] == "harmless0.20-helpful0.80-seed2"
    with pytest.raises(InputError, match="compares 'CLAMP', 'PWG': say which with --method"):
        open_run(run)
    with pytest.raises(InputError, match="no method 'modpo' but 'CLAMP', 'PWG'"):
        open_run(run, method="modpo")


def test_each_speaks_with_its_own_weights(make: Make, tokenizer: Any) -> None:
    choices = open_run(make())
    speaker = ChatModel(choices.recipe)
    first, second = choices.candidates
    spoken = {}
    for name in ("base", "first", "second", "first again", "base again"):
        by = {"base": None, "first": first, "second": second}[name.split()[0]]
        spoken[name] = speaker.answer(PROMPT, by)
    assert spoken["first"] == spoken["first again"]
    assert spoken["base"] == spoken["base again"]
    for by, name in ((None, "base"), (first, "first"), (second, "second")):
        model: Any = AutoModelForCausalLM.from_pretrained(choices.recipe.model.name)
        if by is not None:
            model = PeftModel.from_pretrained(model, by.folder)
        settings = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 0.9, "seed": 0}
        assert generate_answers(model, tokenizer, [PROMPT], **settings) == [spoken[name]]
    assert len({spoken[name].response for name in ("base", "first", "second")}) == 3


def test_a_conversation_answers_as_one_that_reads_all_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = open_run(make())
    first, second = choices.candidates
    found: list[list[str]] = []
    for forget in (False, True):
        speaker, conversation = ChatModel(choices.recipe), Conversation.like(choices)
        for by in (first, first, second, None, None, first):
            if forget:
                speaker._kept = (None, KeptPrefix())
            conversation.ask(speaker, by, "red cat", lambda text: None)
        found.append([message["content"] for message in conversation.messages])
    assert found[0] == found[1]


def test_an_adapter_whose_loading_was_stopped_is_loaded_anew(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = open_run(make())
    first, second = choices.candidates
    expected = ChatModel(choices.recipe).answer(PROMPT, second)
    speaker = ChatModel(choices.recipe)
    speaker.answer(PROMPT, first)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("peft.peft_model.load_peft_weights", stop)
        with pytest.raises(KeyboardInterrupt):
            speaker.answer(PROMPT, second)
    assert speaker.answer(PROMPT, second) == expected


def test_an_answer_comes_in_pieces_and_can_be_stopped(make: Make) -> None:
    choices = open_run(make("evaluation.max_new_tokens=8"))
    speaker, by = ChatModel(choices.recipe), choices.candidates[0]
    pieces: list[str] = []
    answer = speaker.answer(PROMPT, by, pieces.append)
    assert "".join(pieces).strip() == answer.response.strip()
    assert len(pieces) > 1
    conversation = Conversation.like(choices)
    assert conversation.prompt("red cat") == PROMPT
    conversation.ask(speaker, by, "red cat", lambda text: None)
    assert conversation.messages[-1] == {"role": "assistant", "content": answer.response}
    assert len(conversation.prompt("and")) == 4

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    assert not conversation.ask(speaker, None, "why", stop)
    assert conversation.messages[-1]["content"] != ""
    conversation.reset()
    assert conversation.prompt("red cat") == PROMPT
    with pytest.raises(InputError, match="more than its 128"):
        conversation.ask(speaker, by, "red " * 120, lambda text: None)
    assert not conversation.messages


def test_scores_are_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make()
    scores = {"harmless": 1.5, "helpful": -1.0}
    write_json(run / "points/harmless0.20-helpful0.80/prompt.json", scores)
    choices = open_run(run)
    speaker, (told, plain) = ChatModel(choices.recipe), choices.candidates
    asked: list[Any] = []
    real = generate_answers

    def record(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> Any:
        asked.append(prompts[0])
        return real(model, tokenizer, prompts, **options)

    monkeypatch.setattr("paretune.serving.chat.generate_answers", record)
    speaker.answer(PROMPT, told)
    speaker.answer(PROMPT, plain)
    assert asked == [with_scores(PROMPT, scores), PROMPT]


def test_whole_models_and_plain_prompts(make: Make, tmp_path: Path) -> None:
    choices = open_run(make(whole=True, prompt="red cat"))
    speaker = ChatModel(choices.recipe)
    conversation = Conversation.like(choices)
    assert conversation.prompt("sun moon") == "sun moon"
    texts = [speaker.answer("red", by).response for by in (None, *choices.candidates, None)]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3
    layout = export_run(choices, tmp_path / "out")
    assert layout.serve_line() == "vllm serve models/harmless0.20-helpful0.80"
    for candidate in choices.candidates:
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(folder).state_dict()
            for folder in (candidate.folder, tmp_path / "out/models" / candidate.name)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_mean_words(make: Make) -> None:
    choices = open_run(make())
    speaker = ChatModel(choices.recipe)
    prompts = [PROMPT, PROMPT[1:]]
    (score, _) = mean_words(speaker, [choices.candidates[0], None], prompts)
    words = [len(speaker.answer(p, choices.candidates[0]).response.split()) for p in prompts]
    assert score.mean == pytest.approx(sum(words) / 2)
    assert score.count == 2


@pytest.mark.parametrize("whole", [False, True])
def test_several_answer_as_each_alone(
    make: Make, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = open_run(make("evaluation.batch_size=8", whole=whole))
    speakers = [choices.candidates[1], None, *choices.candidates]
    alone = ChatModel(choices.recipe)
    prompts = [PROMPT, PROMPT[1:]]
    expected = [alone.answers(prompts, by) for by in speakers]
    rows: list[int] = []
    speaker = ChatModel(choices.recipe)
    generate = GenerationMixin.generate

    def counted(self: Any, **options: Any) -> Any:
        rows.append(len(options["input_ids"]))
        return generate(self, **options)

    monkeypatch.setattr(GenerationMixin, "generate", counted)
    assert speaker.answers_of(prompts, speakers) == expected
    assert max(rows) == (2 if whole else 6)
    assert speaker.answers(prompts, None) == expected[1]
    assert speaker.answers_of(prompts, [None]) == [expected[1]]


def test_several_are_told_their_own_scores(make: Make) -> None:
    choices = open_run(make())
    one = choices.candidates[0]
    told = replace(one, asked=ScorePrompt({"harmless": 2.0, "helpful": 1.0}))
    speaker = ChatModel(choices.recipe)
    expected = [speaker.answers([PROMPT], by) for by in (told, one)]
    assert expected[0][0].prompt != expected[1][0].prompt
    assert speaker.answers_of([PROMPT], [told, one]) == expected


def test_all_points_are_asked(make: Make) -> None:
    choices = open_run(make())
    typed = "sun\n/all red cat\n/all\n/quit\n"
    result = CliRunner().invoke(cli.app, ["chat", str(choices.run)], input=typed)
    assert result.exit_code == 0, result.output
    speaker = ChatModel(choices.recipe)
    for by in (None, *choices.candidates):
        answer = speaker.answer(PROMPT, by)
        name = "base model" if by is None else by.name
        assert f"\n{name}:\n{answer.response}" in result.output
    assert result.output.count("/all PROMPT") == 2


def test_chat_without_a_terminal(make: Make) -> None:
    run = make()
    typed = ["red cat", "", "/prefer harmless=1", "red cat", "/prefer harmless=-2", "/prefer", "/x"]
    result = CliRunner().invoke(
        cli.app,
        ["chat", str(run), "--prefer", "harmless=0.1", "helpful=0.9"],
        input="\n".join([*typed, "/reset", "/quit", "never"]),
    )
    assert result.exit_code == 0, result.output
    answers = ChatModel(open_run(run).recipe)
    first = open_run(run).candidates[0]
    assert f"> red cat\n{answers.answer(PROMPT, first).response}" in result.output
    assert "For harmless 0.1, helpful 0.9: harmless0.20-helpful0.80" in result.output
    assert "For harmless 1, helpful 0: harmless0.80-helpful0.20" in result.output
    assert result.output.count("error: ") == 2
    assert "never" not in result.output
    again = CliRunner().invoke(cli.app, ["chat", str(run), "--lengths", "2"])
    assert "first 2 test prompts" in again.output
    assert "harmless0.80-helpful0.20  (best for harmless 1)" in again.output
    with pytest.raises(InputError, match="answers to 2 test prompts, not 3"):
        CliRunner().invoke(cli.app, ["chat", str(run), "--lengths", "3"], catch_exceptions=False)


def test_a_terminal_obeys_no_answer() -> None:
    text = "a\tb\n\x1b[2J\x9b\r\u202ecod <script> *c* é 👍🏽"
    assert printable(text) == "a\tb\n�[2J���cod <script> *c* é 👍🏽"


FRESH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "paretune":
            raise ImportError("refused")

sys.meta_path.insert(0, Refuse())
import json, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ids = AutoTokenizer.from_pretrained("base")("red cat how sun", return_tensors="pt")["input_ids"]
found = {}
for point in json.load(open("manifest.json"))["points"]:
    base = AutoModelForCausalLM.from_pretrained("base")
    models = {
        "adapter": PeftModel.from_pretrained(base, point["path"]),
        "by its own base": AutoPeftModelForCausalLM.from_pretrained(point["path"]),
        "merged": AutoModelForCausalLM.from_pretrained("models/" + point["name"]),
    }
    with torch.no_grad():
        found[point["name"]] = {n: m.eval()(ids).logits.tolist() for n, m in models.items()}
assert "paretune" not in sys.modules
json.dump({"ids": ids.tolist(), "logits": found}, open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_an_export_needs_nothing_of_paretune(make: Make, tmp_path: Path) -> None:
    run, target = make(), tmp_path / "out"
    choices = open_run(run)
    layout = export_run(choices, target, merge=True)
    assert layout.serve_line() == (
        "vllm serve base --enable-lora --max-lora-rank 8 --lora-modules "
        + " ".join(f"{name}=adapters/{name}" for name in LOSSES)
    )
    assert layout.serve_line() in (target / "README.md").read_text()
    (tmp_path / "fresh.py").write_text(FRESH)
    command = [sys.executable, "-I", str(tmp_path / "fresh.py"), str(tmp_path / "found.json")]
    subprocess.run(command, cwd=target, check=True, capture_output=True)
    (run.parent / "model").rename(run.parent / "moved")  # where the adapters still point
    found = json.loads((tmp_path / "found.json").read_text())
    for candidate in choices.candidates:
        base = AutoModelForCausalLM.from_pretrained(run.parent / "moved")
        model = PeftModel.from_pretrained(base, candidate.folder)
        with torch.no_grad():
            expected = model.eval()(torch.tensor(found["ids"])).logits
        for logits in found["logits"][candidate.name].values():
            torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-5)


def test_what_an_export_holds(make: Make, tmp_path: Path) -> None:
    run, target = make(), tmp_path / "out"
    export_run(open_run(run), target)
    manifest = read_json(target / "manifest.json")
    files = [path for path in target.rglob("*") if path.is_file()]
    assert set(manifest["sha256"]) | {"manifest.json"} == {
        path.relative_to(target).as_posix() for path in files
    }
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((target / name).read_bytes()).hexdigest() == digest
    assert manifest["points"][0]["preference"] == {"harmless": 0.2, "helpful": 0.8}
    assert manifest["points"][0]["metrics"]["harmless"]["loss"] == 0.9
    for path in files:
        assert str(tmp_path).encode() not in path.read_bytes(), path
    (target / "old").touch()
    export_run(open_run(run), target, base=False)  # an earlier export is replaced
    assert sorted(path.name for path in target.iterdir()) == [
        "README.md",
        "adapters",
        "manifest.json",
    ]
    with pytest.raises(InputError, match="holds something else"):
        export_run(open_run(run), run)
    assert (run / "front.json").exists()


def test_an_adapter_names_the_hub_s_model(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make()

    def load(name: str, **options: Any) -> Any:
        folder = run.parent / "model" if name == "org/model-1b" else name
        return load_model_and_tokenizer(folder, **options)

    monkeypatch.setattr("paretune.serving.export.load_model_and_tokenizer", load)
    text = (run / "recipe.yaml").read_text().replace(str(run.parent / "model"), "org/model-1b")
    (run / "recipe.yaml").write_text(text)
    layout = export_run(open_run(run), tmp_path / "out")
    assert layout.serve_line().startswith("vllm serve org/model-1b --enable-lora")
    for path in (tmp_path / "out").rglob("adapter_config.json"):
        assert read_json(path)["base_model_name_or_path"] == "org/model-1b"
    assert not (tmp_path / "out/base").exists()


@pytest.mark.slow
def test_the_page(make: Make, closed_loops: None) -> None:
    pytest.importorskip("gradio", reason="needs paretune[serve]")
    from paretune.serving.page import BASE, OTHER, Page, build_page

    choices = open_run(make())
    speaker = ChatModel(choices.recipe)
    page = Page(choices, speaker)
    assert page.choose(0.2, 0.6).preference.weights == pytest.approx((0.25, 0.75))
    assert page.choose(0, 0).preference.weights == (0.5, 0.5)
    first, second = choices.candidates
    steps = list(page.ask("red cat", OTHER, 0, 1, 1, 0))
    assert [side.name for side in steps[-1]] == [first.name, second.name]
    assert steps[0][1].text == ""
    assert steps[-1][0].text.startswith(speaker.answer(PROMPT, first).response)
    assert steps[-1][1].text.startswith(speaker.answer(PROMPT, second).response)
    (*_, last) = page.ask("red cat", BASE, 0, 1, 1, 0)
    assert last[1].name == BASE
    assert last[1].text.startswith(speaker.answer(PROMPT, None).response)
    assert list(page.ask(" ", BASE, 0, 1, 1, 0))[-1][0].text == ""
    app = build_page(page)
    kinds = {type(block).__name__ for block in app.blocks.values()}
    assert not kinds & {"Markdown", "Chatbot"}  # which would interpret what a model says
    assert app.analytics_enabled is False
    assert all(fn.api_visibility == "private" for fn in app.fns.values())
