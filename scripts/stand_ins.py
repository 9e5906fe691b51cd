"""Every shipped recipe, run to its end on a CPU in minutes: with stand-ins for its models and data.

    python scripts/stand_ins.py FOLDER                  (all recipes, then their tables)
    python scripts/stand_ins.py FOLDER saferlhf_compare weigh_mnist
    python scripts/stand_ins.py FOLDER --list           (the overrides, nothing is run)

The models are random, of two small layers, under the names, architectures and chat templates of
those that the recipes name; the data is random words with the published columns. 8-bit bases are
8-bit here, too. What a recipe is given beside that is listed in `OVERRIDES`: names, paths, numbers
of steps. The figures that come of it mean nothing; that they come, and in which types, does.
"""

import argparse
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TEXT = """the a is was to of and in you me we it can how why what when who red blue green yes no
maybe cat dog bird fish tea milk bread salt sun moon star rain wind snow run walk sit eat drink
sleep read write good bad small large fast slow warm cold please thanks sorry"""
WORDS = TEXT.split()

LLAMA = (  # 3.2's, without its tools
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}'
    '{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Cutting Knowledge Date: December 2023\n' }}{{- 'Today Date: ' + date_string + '\n\n' }}"
    "{{- system }}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
QWEN = (  # Qwen3's, without tools and earlier thoughts
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}"
    "{{- message.content + '<|im_end|>' + '\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is false"
    " %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PLANTED = ("conflicted", "duplicated", "larger", "off_topic", "shuffled")
_MARKS = {  # begin, end of turn, padding, and further special tokens
    "llama": ("<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"),
    "qwen3": (None, "<|im_end|>", "<|endoftext|>"),
    "gemma3_text": ("<bos>", "<end_of_turn>", "<pad>"),
    "chatml": (None, "<|im_end|>", "<pad>"),
    "plain": (None, "<|endoftext|>", "<|endoftext|>"),
    "bert": (None, "[SEP]", "[PAD]"),
}
_FURTHER = {
    "llama": ("<|start_header_id|>", "<|end_header_id|>"),
    "qwen3": ("<|im_start|>", "<think>", "</think>"),
    "gemma3_text": ("<start_of_turn>",),
    "chatml": ("<|im_start|>",),
}
_TEMPLATES = {"llama": LLAMA, "qwen3": QWEN, "gemma3_text": GEMMA, "chatml": CHATML}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {  # architecture, tokenizer, configuration
    "Llama-3.2-1B-Instruct": ("llama", "llama", {}),
    "Llama-3.2-3B-Instruct": ("llama", "llama", {}),
    "Llama-3.1-8B-Instruct": ("llama", "llama", {}),
    "Qwen3-8B": ("qwen3", "qwen3", {"head_dim": 16}),
    "gemma-3-1b-it": ("gemma3_text", "gemma3_text", {"head_dim": 16}),
    "smollm2": ("llama", "chatml", {}),
    "gpt2-large-harmless-reward_model": ("gpt2", "plain", {"num_labels": 1}),
    "gpt2-large-helpful-reward_model": ("gpt2", "plain", {"num_labels": 1}),
    "RewardModel-Mistral-7B-for-DPA-v1": ("mistral", "llama", {"num_labels": 10}),
    "deberta-v3-base": ("bert", "bert", {}),
}


def overrides(folder: Path) -> dict[str, list[str]]:
    """What each recipe is given beside what it says: names, paths, steps."""

    def model(name: str, key: str = "model.name") -> str:
        return f"{key}={folder / 'models' / name}"

    def data(name: str, key: str = "data.path") -> str:
        return f"{key}={folder / 'data' / name}"

    one, three, eight = (f"Llama-3.{n}-Instruct" for n in ("2-1B", "2-3B", "1-8B"))
    dpa = "RewardModel-Mistral-7B-for-DPA-v1"
    steps = ["train.max_steps=2"]
    cpu = ["train.use_cpu=true"]  # bf16 wants to be told
    short = ["evaluation.n_prompts=2", "evaluation.max_new_tokens=8"]
    ppo = ["steps=1", "batch_size=8", "max_new_tokens=8"]
    ric = ["offline_steps=2", "online_steps=2", "online_prompts=32"]
    methods = [
        *(f"methods.MORLHF.options.{each}" for each in ppo),
        *(f"methods.Rewarded Soups (PPO).options.ppo.{each}" for each in ppo),
        *(of_ric := [f"methods.RiC.options.{each}" for each in ric]),
    ]
    ultra = [data("ultrafeedback.jsonl"), *steps, *cpu, *short]
    scores = [
        model(dpa, f"rewards.{name}.name")
        for name in ("honesty", "helpfulness", "instruction_following")
    ] + [
        f"rewards.{name}.trust_remote_code=false"
        for name in ("honesty", "helpfulness", "instruction_following")
    ]
    pairs = [model("smollm2"), data("dialogues.jsonl")]
    weigh = ["steps=2", "budget=60", "seeds=[0]", "polish_steps=2"]
    strong = "preferences=[mobl_strong]"
    language = ["task.rows=8", "task.batch_size=4", "task.micro_batch=4"]
    inner = [f"methods.{name}.inner_steps=2" for name in ("moml", "moco")]
    small = [model("smollm2"), *steps]
    planted = [model("smollm2"), "seeds=[0]", "retrain_steps=2"]
    return {
        "saferlhf_clamp": [model(one), data("saferlhf.jsonl"), *steps, *cpu, *short],
        "saferlhf_compare": [
            *[model(one), data("saferlhf.jsonl"), *steps, *cpu, *short, *methods],
            *(
                model(f"gpt2-large-{name}-reward_model", f"rewards.{name}.name")
                for name in ("harmless", "helpful")
            ),
        ],
        "ultrafeedback_clamp": [model(one), *ultra],
        "ultrafeedback_compare": [model(one), *ultra, *methods, *scores],
        "ultrafeedback_clamp_llama8b": [model(eight), *ultra],
        "ultrafeedback_clamp_qwen8b": [model("Qwen3-8B"), *ultra],
        "hh_local": [*pairs, *steps],
        "hh_compare": [
            *[*pairs, *steps, *short],
            *(f"methods.MORLHF.options.{each}" for each in ("steps=1", "max_new_tokens=8")),
            *(f"methods.RiC.options.{each}" for each in ric),
        ],
        "conditioned_hh_compare": [*pairs, *steps],
        "conditioned_demo_compare": small,
        "demo": [*small, *short],
        "demo_sweep": [*small, *short],
        "toy": [*small, *short],
        "demo_objectives": small,
        "demo_mu_compare": small,
        "demo_batch_size_compare": small,
        "demo_compare": [
            *[*small, *short, "methods.MORLHF.options.max_new_tokens=8"],
            *(f"methods.RiC.options.{each}" for each in ("offline_steps=2", "online_steps=2")),
        ],
        "conditioned_triangle_compare": [*small, "sweep.seeds=[0]"],
        "ultrafeedback_compare_llama8b": [model(eight), *ultra, *of_ric, *scores],
        "ultrafeedback_compare_qwen8b": [model("Qwen3-8B"), *ultra, *of_ric, *scores],
        **{f"weigh_planted_{case}": planted for case in PLANTED},
        "weigh_llm_helpsteer_1b": [
            *[model(one, "task.model.name"), data("helpsteer.jsonl", "task.path")],
            *[*weigh, *language, *inner, "methods.itd.inner_steps=2", strong],
        ],
        "weigh_llm_helpsteer_3b": [
            *[model(three, "task.model.name"), data("helpsteer.jsonl", "task.path")],
            *[*weigh, *language, *inner],
        ],
        "weigh_llm_helpsteer_8b": [
            *[model(eight, "task.model.name"), data("helpsteer.jsonl", "task.path")],
            *[*weigh, *language],
        ],
        "weigh_llm_topicalchat": [
            *[model("smollm2", "task.model.name"), data("topical_chat.json", "task.path")],
            *["steps=2", "budget=20"],
        ],
        "weigh_mnist": [data("mnist.csv", "task.path"), "budget=60", "seeds=[0]"],
        "weigh_reward_helpsteer": [
            *[model("deberta-v3-base", "task.encoder"), data("helpsteer.jsonl", "task.path")],
            *["task.components=16", *weigh, *inner, strong],
            *[f"methods.{name}.inner_steps=2" for name in ("itd", "forum")],
        ],
        "weigh_reward_summeval": [
            *[model("deberta-v3-base", "task.encoder"), data("summeval.jsonl", "task.path")],
            *["budget=60", "seeds=[0]"],
        ],
        "weigh_reward_topicalchat": [
            *[model("deberta-v3-base", "task.encoder"), data("topical_chat.json", "task.path")],
            *["budget=60", "seeds=[0]"],
        ],
    }


OVERRIDES = overrides(Path("STAND-INS"))
"""The overrides of every recipe, for a folder of this name."""


KEYS = {
    *("name", "path", "encoder", "trust_remote_code", "seeds", "use_cpu"),
    *("max_steps", "steps", "offline_steps", "online_steps", "inner_steps", "retrain_steps"),
    *("polish_steps", "preferences"),
    *("batch_size", "micro_batch", "rows", "components", "budget", "online_prompts"),
    *("n_prompts", "max_new_tokens"),
}
"""The last parts of all keys that are overridden."""


# ------------------------------------------------------------------ models


def make_tokenizer(kind: str) -> Any:
    """A byte-level tokenizer with a family's special tokens and chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    begin, end, pad = _MARKS[kind]
    special = [each for each in (begin, end, pad, *_FURTHER.get(kind, ())) if each is not None]
    special += ["[CLS]", "[UNK]"] if kind == "bert" else []
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    demo = kind == "chatml"  # which also reads the demo, whose texts have to fit into 128 tokens
    trainer = trainers.BpeTrainer(
        vocab_size=2048 if demo else 320,
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = [" ".join(WORDS)] * 4
    backend.train_from_iterator([*texts, *_demo()] if demo else texts, trainer)
    if begin is not None:
        place = backend.token_to_id(begin)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, place)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        chat_template=_TEMPLATES.get(kind),
    )


def _demo() -> Iterator[str]:
    from paretune.data import demo

    for row in demo.load().ratings:
        yield from (message["content"] for message in (*row["prompt"], *row["response"]))


def make_model(name: str, folder: Path) -> None:
    """A random model of two small layers, with its tokenizer."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    kind, family, options = MODELS[name]
    tokenizer = make_tokenizer(family)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }
    if kind == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024}
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**sizes, **options},
    )
    makes: Any = AutoModelForSequenceClassification if "num_labels" in options else None
    torch.manual_seed(len(name))
    if makes is None:
        makes = AutoModel if kind == "bert" else AutoModelForCausalLM
    makes.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------ data


def _text(source: random.Random, low: int = 3, high: int = 12) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(low, high)))


def saferlhf(source: random.Random, rows: int = 120) -> Iterator[dict[str, Any]]:
    """The columns of PKU-SafeRLHF-10K."""
    for _ in range(rows):
        safe = [source.random() < 0.5 for _ in range(2)]
        yield {
            "prompt": _text(source, 4, 12),
            "response_0": _text(source),
            "response_1": _text(source),
            "is_response_0_safe": safe[0],
            "is_response_1_safe": safe[1],
            "better_response_id": source.randint(0, 1),
            "safer_response_id": source.randint(0, 1),
        }


def dialogues(source: random.Random) -> Iterator[dict[str, Any]]:
    """The same, with dialogues as prompts."""
    for row in saferlhf(source):
        asked = f"\n\nHuman: {_text(source)}\n\nAssistant: {_text(source)}"
        yield {**row, "prompt": f"{asked}\n\nHuman: {row['prompt']}\n\nAssistant:"}


def ultrafeedback(source: random.Random, rows: int = 80) -> Iterator[dict[str, Any]]:
    """The columns of UltraFeedback: ratings are texts, and some are N/A."""
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    for n in range(rows):
        completions = []
        for model in ("alpaca-7b", "gpt-4", "llama-2-7b-chat", "wizardlm-7b"):
            annotations = {
                name: {
                    "Rating": source.choice(
                        ["1", "2", "3", "4", "5", "N/A" if n % 9 == 0 else "3"]
                    ),
                    "Rationale": _text(source),
                }
                for name in aspects
            }
            response = "" if n == 7 and model == "gpt-4" else _text(source)
            completions.append(
                {
                    "model": model,
                    "response": response,
                    "annotations": annotations,
                    "overall_score": float(source.randint(1, 10)),
                }
            )
        yield {
            "source": "evol_instruct",
            "instruction": _text(source, 4, 12),
            "completions": completions,
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }


def helpsteer(source: random.Random, rows: int = 40) -> Iterator[dict[str, Any]]:
    """The columns of HelpSteer, four responses a prompt."""
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    for _ in range(rows):
        prompt = _text(source, 4, 12)
        for level in (0.6, 1.6, 2.6, 3.6):  # so that there are good ones and bad ones
            ratings = {name: max(0, min(4, round(source.gauss(level, 0.8)))) for name in names}
            yield {"prompt": prompt, "response": _text(source), **ratings}


def topical_chat(source: random.Random, rows: int = 30) -> Iterator[dict[str, Any]]:
    """UniEval's topical_chat.json."""
    names = ("understandability", "naturalness", "coherence", "engagingness", "groundedness")
    tops = {"understandability": 1.0, "groundedness": 1.0}
    for _ in range(rows):
        history = _text(source, 4, 10) + "\n"
        for _ in range(6):
            scores = {name: round(source.random() * tops.get(name, 3.0), 2) for name in names}
            yield {
                "source": history,
                "system_output": _text(source),
                "context": _text(source),
                "scores": {**scores, "overall": round(1 + 4 * source.random(), 2)},
            }


def summeval(source: random.Random, rows: int = 20) -> Iterator[dict[str, Any]]:
    """The hub's mteb/summeval: a row an article, lists of summaries and ratings."""
    names = ("coherence", "consistency", "fluency", "relevance")
    for _ in range(rows):
        count = 16
        yield {
            "text": _text(source, 20, 40),
            "human_summaries": [_text(source)],
            "machine_summaries": [_text(source) for _ in range(count)],
            **{name: [round(1 + 4 * source.random(), 2) for _ in range(count)] for name in names},
        }


def mnist(source: random.Random, each: int = 500) -> Iterator[str]:
    """A CSV of 28 x 28 grey values and the digit, which lights its own stripe."""
    for n in range(10 * each):
        digit = n % 10
        pixels = [
            source.randint(120, 255)
            if 2 * digit <= column - 4 < 2 * digit + 2
            else source.randint(0, 60)
            for _ in range(28)
            for column in range(28)
        ]
        yield ",".join(map(str, [*pixels, digit]))


def write_stand_ins(folder: Path, models: Sequence[str] = tuple(MODELS)) -> None:
    """Write the models and the data that are not there yet."""
    for name in models:
        if not (folder / "models" / name / "config.json").exists():
            make_model(name, folder / "models" / name)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    for make in (saferlhf, dialogues, ultrafeedback, helpsteer, summeval):
        rows = map(json.dumps, make(random.Random(0)))
        (data / f"{make.__name__}.jsonl").write_text("\n".join(rows))
    (data / "topical_chat.json").write_text(json.dumps(list(topical_chat(random.Random(0)))))
    (data / "mnist.csv").write_text("\n".join(mnist(random.Random(0))))


# ------------------------------------------------------------------ runs


def command_of(recipe: str) -> str:
    """The command that a shipped recipe is of."""
    from paretune.recipes import shipped_recipes

    return next(each for each in ("sweep", "compare", "weigh") if recipe in shipped_recipes(each))


def run(recipe: str, folder: Path, further: Sequence[str] = ()) -> int:
    """Run a recipe, after the reward models that it needs; the exit code."""
    given = [*overrides(folder)[recipe], *further, f"output_dir={folder / 'runs' / recipe}"]
    if recipe == "hh_compare":
        rewards = folder / "runs" / "hh_local" / "rewards"
        made = [*overrides(folder)["hh_local"], f"output_dir={folder / 'runs' / 'hh_local'}"]
        made += ["reward.max_length=128", "reward.train={max_steps: 2}"]
        if code := paretune("reward", "train", "hh_local", *made):
            return code
        given += [f"rewards.{name}.name={rewards}" for name in ("harmless", "helpful")]
    return paretune(command_of(recipe), recipe, *given)


def paretune(*arguments: str) -> int:
    """The command, in this process; its exit code."""
    from paretune.cli import main as command

    try:
        command(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def adapter_types(folder: Path) -> Counter[str]:
    """How many tensors of the adapters below a folder are of which type."""
    found: Counter[str] = Counter()
    for path in folder.rglob("adapter_model.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found.update(each["dtype"] for name, each in header.items() if name != "__metadata__")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipes", nargs="*", default=list(OVERRIDES), metavar="RECIPE")
    parser.add_argument("--list", action="store_true", help="print the overrides and stop")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if options.list:
        for recipe in options.recipes:
            print(f"{command_of(recipe)} {recipe}", *overrides(folder)[recipe], sep="\n    ")
        return
    write_stand_ins(folder)
    failed = []
    for recipe in options.recipes:
        started, worked = time.monotonic(), time.process_time()
        code = run(recipe, folder)
        types = dict(adapter_types(folder / "runs" / recipe))
        sys.stdout.flush()
        took = f"{time.monotonic() - started:.0f} s ({time.process_time() - worked:.0f} of the CPU)"
        print(f"{recipe}: exit {code}, {took}, adapters {types}", flush=True)
        failed += [recipe] if code or set(types) - {"F32"} else []
    with contextlib.suppress(FileNotFoundError):
        runs = sorted(
            each for each in (folder / "runs").iterdir() if (each / "manifest.json").exists()
        )
        paretune("tables", *map(str, runs), "--output", str(folder / "tables"))
    print(f"failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
