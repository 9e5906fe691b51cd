"""Greedy tokens of exported adapters by llama.cpp and by transformers, on the embedded model.

    paretune export RUN --points 3 --gguf --to out
    npm install --prefix node node-llama-cpp        # carries llama.cpp, built
    python benchmarks/llama_cpp.py out --node node

llama.cpp is given the embedded model's weights in float32. Each adapter answers alone; and of a run
with one adapter for all preferences the two ends, mixed by scales as the export's README says,
answer as the point between them.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import gguf
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from paretune.files import read_json
from paretune.models.built_in import embedded_gguf

PROMPTS = ("Why is the sky blue?", "How do I boil an egg?", "What should I do on a rainy day?")


def in_float32(target: Path) -> None:
    """Write the embedded model's GGUF file with all its weights in float32."""
    source = gguf.GGUFReader(embedded_gguf())
    fields = source.fields
    writer = gguf.GGUFWriter(target, fields["general.architecture"].contents())
    for name, field in fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value: Any = 0 if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[-1])
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(asked: dict[str, Any], node: Path) -> list[list[int]]:
    """What llama_cpp.mjs finds; Node looks for its packages beside the script."""
    script = node / "llama_cpp.mjs"
    shutil.copyfile(Path(__file__).with_suffix(".mjs"), script)
    (node / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        ["node", script.name, "asked.json"], cwd=node, capture_output=True, text=True, check=True
    )
    found: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


@torch.inference_mode()
def transformers(model: Any, ids: torch.Tensor, count: int) -> list[int]:
    """The likeliest tokens, one after another, whatever they are."""
    found: list[int] = []
    cache = None
    for _ in range(count):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        found.append(int(ids))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("export", type=Path, help="what paretune export --gguf has written")
    parser.add_argument("--node", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    export = options.export.resolve()
    points = read_json(export / "manifest.json")["points"]
    tokenizer = AutoTokenizer.from_pretrained(export / "base")
    files = {p["name"]: str(export / "gguf" / f"{p['name']}.gguf") for p in points}
    asked = [[{"filePath": file, "scale": 1.0}] for file in files.values()]
    names, models = [*files], [*files]
    at = [p["position"] for p in points]
    if len(points) > 2 and all(at) and len(at[0]) == 2:  # the middle, as a mixture of both ends
        share = (at[len(at) // 2][0] - at[0][0]) / (at[-1][0] - at[0][0])
        first, *_, last = files.values()
        mixed = ((first, 1 - share), (last, share))
        asked.append([{"filePath": file, "scale": scale} for file, scale in mixed])
        names, models = [*names, "the ends, mixed"], [*models, models[len(at) // 2]]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.gguf"
        in_float32(base)
        for text in PROMPTS:
            chat = [{"role": "user", "content": text}]
            encoded = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            ids = encoded["input_ids"]
            question = {"model": str(base), "prompt": ids[0].tolist(), "count": options.tokens}
            theirs = llama_cpp({**question, "adapters": asked}, options.node.resolve())
            for name, point, found in zip(names, models, theirs, strict=True):
                plain = AutoModelForCausalLM.from_pretrained(export / "base")
                adapted = PeftModel.from_pretrained(plain, export / "adapters" / point).eval()
                ours = transformers(adapted, ids, options.tokens)
                pairs = zip(ours, found, strict=False)
                alike = next((n for n, (a, b) in enumerate(pairs) if a != b), len(found))
                print(
                    f"{text} {name}: {alike} of {len(ours)} tokens alike (llama.cpp {len(found)})"
                )
                if text == PROMPTS[0]:
                    print(f"    {tokenizer.decode(found)!r}")


if __name__ == "__main__":
    main()
