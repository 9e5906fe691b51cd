"""Make the toy model that comes with paretune: a Llama of half a million parameters.

    python scripts/make_toy_model.py          # rewrites src/paretune/toy_model, about a minute

It reads nothing but the demo's answers (docs/results/demo-data.md), those of the questions that the
recipe `toy` tests with left out, and learns them nearly by heart. It is there so that every command
can be tried without a download; what it says is no measure of anything.
"""

import argparse
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paretune.data import demo, split_by_prompt
from paretune.data.demo import DEMO_FILE, as_messages
from paretune.data.messages import prompt_key
from paretune.files import read_objects
from paretune.models.built_in import TOY_FOLDER
from paretune.recipes import load_recipe

WORDS = 1024  # entries of the vocabulary
EPOCHS = 40
BATCH = 16
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def examples(tokenizer: PreTrainedTokenizerFast) -> list[tuple[list[int], int]]:
    """Token ids of each finished answer with its question, and where the answer begins."""
    recipe = load_recipe("toy")
    data = demo.load(objectives=recipe.data.objectives)
    splits = split_by_prompt(data, recipe.data.split, recipe.data.seed)
    tables = splits["test"].pairs.values()
    held = {prompt_key(pair["prompt"]) for table in tables for pair in table}
    found = []
    for answer in read_objects(DEMO_FILE):
        messages = as_messages(answer["prompt"])
        if not answer["finished"] or prompt_key(messages) in held:
            continue
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        ids = tokenizer(f"{answer['response']}<|im_end|>")["input_ids"]
        found.append((prompt + ids, len(prompt)))
    return found


def train(model: LlamaForCausalLM, rows: list[tuple[list[int], int]], pad: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = EPOCHS * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        random.shuffle(rows)
        total = 0.0
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            batch = rows[start : start + BATCH]
            longest = max(len(ids) for ids, _ in batch)
            ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in batch])
            labels = ids.clone()
            for k, (row, begin) in enumerate(batch):
                labels[k, :begin] = -100
                labels[k, len(row) :] = -100
            loss = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / (len(rows) // BATCH):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=TOY_FOLDER)
    output = parser.parse_args().output
    torch.manual_seed(0)
    random.seed(0)
    answers = read_objects(DEMO_FILE)
    texts = [f"{row['prompt']}{demo.REQUEST} {row['response']}" for row in answers]
    tokenizer = make_tokenizer(texts)
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, examples(tokenizer), tokenizer.pad_token_id)
    tokenizer.save_pretrained(output)
    model.to(torch.bfloat16).save_pretrained(output)


if __name__ == "__main__":
    main()
