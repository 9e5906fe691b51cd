"""What PPO learns from: answers as token ids, and their log-probabilities and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paretune.data.tokenization import TokenSequence, pad_sequences
from paretune.evaluation.decoding import SeededSampling, decode, seeded_uniforms
from paretune.evaluation.generation import (
    answer_text,
    encode_prompt,
    end_token_ids,
    prompt_seeds,
)
from paretune.logprobs import output_embeddings
from paretune.results.answers import Prompt


@dataclass(frozen=True)
class Rollouts:
    """N sampled answers.

    Attributes:
        sequences: Prompt and answer as tokens, with the end token if the answer has one.
        texts: The answers.
        finished: ``(N,)`` bool, whether the answer ended by itself and is not empty.
        mask: ``(N, T)`` bool, the answers' tokens; T is the length of the longest.
    """

    sequences: list[TokenSequence]
    texts: list[str]
    finished: Tensor
    mask: Tensor


class TokenScores(NamedTuple):
    """Of the answers' tokens, each ``(N, T)`` float32 and zero beyond an answer's end."""

    logps: Tensor
    values: Tensor
    entropies: Tensor


class PolicyWithValue(nn.Module):
    """A causal language model and a linear value head on the hidden states its logits come from.

    Args:
        model: A PEFT model, whose base is the reference policy.
        temperature: Divides the logits.
    """

    def __init__(self, model: Any, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        # In float32 whatever the model is in; at zero the first advantages are plain returns.
        self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1)
        for parameter in self.value_head.parameters():
            nn.init.zeros_(parameter)
        self.value_head.to(next(model.parameters()).device)

    def forward(self, sequences: Sequence[TokenSequence]) -> TokenScores:
        """Score answers in one pass of the model; entropies carry no gradient.

        The value of a token is that of the state before it, the same hidden state that its logits
        are projected from. Only those states are projected: logits are ``(1, K, V)`` for the K
        answer tokens.
        """
        batch = pad_sequences(sequences, self.model.config.pad_token_id)
        batch = {name: tensor.to(self.value_head.weight.device) for name, tensor in batch.items()}
        answer = batch["completion_mask"]
        before = torch.zeros_like(answer)
        before[:, :-1] = answer[:, 1:]
        states: list[Tensor] = []

        def select(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, *rest = args
            states.append(hidden[before])
            return states[0].unsqueeze(0), *rest

        handle = output_embeddings(self.model).register_forward_pre_hook(select)
        try:
            output = self.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            )
        finally:
            handle.remove()
        all_logps = (output.logits.squeeze(0).float() / self.temperature).log_softmax(-1)
        with torch.no_grad():
            entropies = -(all_logps.exp() * all_logps).sum(-1)
        logps = all_logps.gather(-1, batch["input_ids"][answer].unsqueeze(-1)).squeeze(-1)
        values = self.value_head(states[0].to(self.value_head.weight.dtype)).squeeze(-1)
        mask = answer_mask(sequences).to(logps.device)

        def by_answer(flat: Tensor) -> Tensor:
            return flat.new_zeros(mask.shape).masked_scatter(mask, flat)

        return TokenScores(by_answer(logps), by_answer(values), by_answer(entropies))


def answer_mask(sequences: Sequence[TokenSequence]) -> Tensor:
    """``(N, T)`` bool: which of T positions are tokens of the answer."""
    lengths = torch.tensor([sequence.completion_length for sequence in sequences])
    return torch.arange(int(lengths.max())) < lengths[:, None]


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Rollouts:
    """Answer all prompts in one batch, from the whole distribution (no nucleus: PPO's ratios are
    of untruncated probabilities). An answer depends on its prompt and ``seed`` alone.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    eos_ids = end_token_ids(model, tokenizer, prompts)
    draws = [seeded_uniforms(each, max_new_tokens) for each in prompt_seeds(encoded, seed)]
    sampling = SeededSampling(temperature, 1.0, torch.stack(draws))
    pad_id = tokenizer.pad_token_id
    answers = decode(model, encoded, max_new_tokens, eos_ids, pad_id, len(encoded), sampling)
    sequences, texts, finished = [], [], []
    for prompt_ids, answer in zip(encoded, answers, strict=True):
        ended = answer[-1] in eos_ids
        text = answer_text(tokenizer, answer[:-1] if ended else answer)
        sequences.append(TokenSequence((*prompt_ids, *answer), len(prompt_ids)))
        texts.append(text)
        finished.append(ended and bool(text.strip()))
    return Rollouts(sequences, texts, torch.tensor(finished), answer_mask(sequences))
