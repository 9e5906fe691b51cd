"""What an export holds, and the README that says how to use it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paretune.results.gates import read_calibration
from paretune.results.table import Table, left, numbers
from paretune.results.text import markdown_code, markdown_text
from paretune.serving.choose import Choices
from paretune.serving.fold import ends, mixture

BASE, ADAPTERS, MODELS, GGUF = "base", "adapters", "models", "gguf"
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of those that vLLM's --max-lora-rank takes
_STEPS = 4  # of p, between two ends, whose scales the README has


@dataclass(frozen=True)
class Layout:
    """What an export holds.

    Attributes:
        choices: the run and its points.
        model: name of the base model; of a folder, its last part.
        base: where the base model is found: a path in the export, or an id on the hub.
        adapters: configuration of each adapter, by name; empty if the points are whole models.
        models: names of the points that are there as models by themselves.
        gguf: whether the adapters are there as GGUF files, too.
    """

    choices: Choices
    model: str
    base: str
    adapters: Mapping[str, Mapping[str, Any]]
    models: tuple[str, ...]
    gguf: bool = False

    def serve_line(self) -> str:
        """The command that serves it with vLLM, to be given in the folder."""
        if not self.adapters:
            return f"vllm serve {MODELS}/{self.models[0]}"
        rank = max(int(config["r"]) for config in self.adapters.values())
        fitting = [each for each in _VLLM_RANKS if each >= rank]
        return shlex.join(
            ["vllm", "serve", self.base, "--enable-lora"]
            + ["--max-lora-rank", str(fitting[0] if fitting else rank), "--lora-modules"]
            + [f"{name}={ADAPTERS}/{name}" for name in self.adapters]
        )


def readme(layout: Layout) -> str:
    choices = layout.choices
    names = choices.recipe.data.objectives
    columns = [left("point"), *numbers(names, ".3g")]
    columns += numbers([f"loss {name}" for name in names], ".4f")
    rows = [
        [candidate.name, *(candidate.point.preference[name] for name in names)]
        + [candidate.point.losses[name] for name in names]
        for candidate in choices.candidates
    ]
    parts = [
        f"# {markdown_text(f'{choices.recipe.name}: {choices.method}')}",
        f"Weight of each objective{_what_weights_are(choices)}, and losses on the {choices.split} "
        "split; `manifest.json` has all figures and the checksum of every file.",
        Table(columns, rows).to_markdown(),
        "All paths are relative to this folder: give the commands here.",
    ]
    if layout.adapters:
        first = next(iter(layout.adapters))
        parts += [
            "## vLLM",
            _code(layout.serve_line(), "sh"),
            "A request chooses the point by its name, as `model`.",
            "## PEFT",
            _code(
                "from peft import PeftModel\n"
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(layout.base)})\n"
                f"base = AutoModelForCausalLM.from_pretrained({json.dumps(layout.base)})\n"
                f'model = PeftModel.from_pretrained(base, "{ADAPTERS}/{first}")',
                "python",
            ),
        ]
    parts += _llama_cpp(layout) if layout.gguf else []
    if layout.models:
        parts += [
            "## Models by themselves",
            f"Each folder of `{MODELS}/` is a whole model with its tokenizer:",
            _code(f"vllm serve {MODELS}/{layout.models[0]}", "sh"),
        ]
    return "\n\n".join([*parts, *_warnings(layout)]) + "\n"


def _what_weights_are(choices: Choices) -> str:
    if any(candidate.position for candidate in choices.candidates):
        return ", served by one gated adapter (losses by its calibration)"
    return " in training"


def _llama_cpp(layout: Layout) -> list[str]:
    """Commands for llama.cpp: one point, and mixing the ends of a dial in each request."""
    first, corners = next(iter(layout.adapters)), ends(layout.choices)
    base = f"{layout.model.rpartition('/')[2]}.gguf"
    source = layout.base if layout.base == BASE else f"PATH/TO/{layout.model.rpartition('/')[2]}"
    parts = [
        "## llama.cpp",
        "The base model as a GGUF file, by llama.cpp's own script, or any quantisation of it; and "
        "a point of its own choice (its scale multiplies the adapter):",
        _code(
            f"python convert_hf_to_gguf.py {shlex.quote(source)} --outfile {shlex.quote(base)}\n"
            f"llama-server -m {shlex.quote(base)} --lora-scaled {GGUF}/{first}.gguf:1.0",
            "sh",
        ),
        "(Versions before late 2025 take `--lora-scaled FILE SCALE`.) With all points loaded and "
        "none applied, a request chooses by number, in the order of the command:",
        _code(
            shlex.join(
                ["llama-server", "-m", base, "--lora-init-without-apply"]
                + [part for n in layout.adapters for part in ("--lora", f"{GGUF}/{n}.gguf")]
            )
            + "\ncurl localhost:8080/v1/chat/completions -d '"
            + json.dumps(_request([(0, 1.0)]))
            + "'",
            "sh",
        ),
    ]
    return parts + (_mixing(layout, corners) if corners else [])


def _mixing(layout: Layout, corners: list[Any]) -> list[str]:
    """The scales with which the ends add up to any preference between them."""
    choices = layout.choices
    names, numbers_of = choices.recipe.data.objectives, list(layout.adapters)
    assert choices.dial is not None
    calibration = read_calibration(choices.dial, names)
    preferences = [[corner.point.preference[name] for name in names] for corner in corners]
    ids = [numbers_of.index(corner.name) for corner in corners]
    middle = [sum(weights) / len(corners) for weights in zip(*preferences, strict=True)]
    scales = mixture(calibration.position(middle), corners)
    columns = numbers([f"p {name}" for name in names], ".3g")
    columns += numbers([f"scale of {corner.name}" for corner in corners], ".4f")
    rows: list[list[object]] = []
    for k in range(_STEPS + 1) if len(names) == 2 else ():
        share = k / _STEPS
        p = [(1 - share) * a + share * b for a, b in zip(*preferences, strict=True)]
        rows.append([*p, *mixture(calibration.position(p), corners)])
    return [
        "The ends are enough for every preference between them: the change of the weights is "
        "linear in the scales, which add up to one (exactly, unless ranks were lowered). Half-way "
        "between them, in a request:",
        _code(json.dumps(_request(list(zip(ids, scales, strict=True)))), "json"),
        *([Table(columns, rows).to_markdown()] if rows else []),
    ]


def _request(scales: list[tuple[int, float]]) -> dict[str, Any]:
    lora = [{"id": number, "scale": round(scale, 4)} for number, scale in scales]
    return {"messages": [{"role": "user", "content": "Hello"}], "lora": lora}


def _warnings(layout: Layout) -> list[str]:
    """What a user of the export has to know besides."""
    model, found = layout.choices.recipe.model, []
    if layout.base == BASE and layout.adapters:
        found.append(f"`{BASE}/` is the base model, {markdown_code(layout.model)}.")
    if model.quantization and layout.adapters:
        found.append(
            f"The adapters were trained over the base model in {model.quantization}; over the "
            "model in full precision, answers differ slightly."
        )
    if model.template_variables and layout.base != BASE:
        variables = markdown_code(json.dumps(model.template_variables))
        found.append(
            f"The chat template was used with {variables}: pass them to it "
            "(`chat_template_kwargs`)."
        )
    asked = [each.asked for each in layout.choices.candidates if each.asked is not None]
    if asked:
        how = (
            "end the user's words with `<NAME_score> VALUE` for each of `prompt_scores` in the "
            "manifest."
            if asked[0].template == "chat"
            else "without a chat template, ask "
            f"{markdown_code(repr(asked[0].prompt('QUESTION')))}, with that point's "
            "`prompt_scores` of the manifest in their order."
        )
        found.append(
            f"The points differ in what their prompts ask for, not in their weights: {how}"
        )
    return ["## Note", *found] if found else []


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
