"""The token that pads a batch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that model families reserve for padding, looked for when the tokenizer names none.
_PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]")


def set_pad_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make the padding token differ from the end token where the vocabulary allows it.

    Where it does not (GPT-2), the end token pads: batches carry their masks by length, so this is
    harmless here.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token != tokenizer.eos_token:
        return
    known = tokenizer.get_vocab()
    candidates = (*_PAD_TOKENS, tokenizer.unk_token)
    usable = (token for token in candidates if token in known and token != tokenizer.eos_token)
    tokenizer.pad_token = next(usable, tokenizer.eos_token)
