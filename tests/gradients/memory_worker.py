"""One process of test_layerwise: the peak of a step of full fine-tuning.

In units of one gradient of all weights, above the loaded model.
"""

import gc
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.data.sampling import PairCollator
from paretune.data.tokenization import PairIndex, TokenizedPairs, TokenSequence
from paretune.gradients import ObjectiveGradients
from paretune.losses import CPO


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config).train()
    size = sum(p.numel() for p in model.parameters())
    sequences = [TokenSequence((5, 6, 7, 8 + n, 9 + n), 3) for n in range(2)]
    pairs = {f"o{m}": PairIndex([m % 2], [1 - m % 2], [0], [1.0]) for m in range(3)}
    batch = PairCollator(TokenizedPairs(sequences, pairs), 0)([dict.fromkeys(pairs, 0)])
    model(input_ids=batch["input_ids"]).logits.sum().backward()  # touches every weight
    model.zero_grad(set_to_none=True)
    gc.collect()
    before = status("VmRSS")
    losses = {name: CPO() for name in pairs}
    engine = ObjectiveGradients(model, losses, sys.argv[1], single=True)  # type: ignore[arg-type]
    for step in range(2):  # the first one proves the way
        engine.bank.zero()
        engine.accumulate(batch)
        engine.bank.finish()
        engine.bank.gramian()
        engine.bank.combine(torch.ones(3, dtype=torch.float64))
        model.zero_grad(set_to_none=True)
        if step == 0:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    assert engine.method == sys.argv[1]
    sys.stdout.write(f"{(status('VmHWM') - before) / (4 * size):.2f}\n")


if __name__ == "__main__":
    main()
