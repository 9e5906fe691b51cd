"""Prompts that name the scores an answer should have, as Rewards-in-Context asks for them."""

from collections.abc import Mapping

from paretune.results.answers import Prompt

_ASSISTANT = "\n\nAssistant:"


def with_scores(prompt: Prompt, scores: Mapping[str, float]) -> Prompt:
    """The prompt with ``<name_score> 1.2`` for every score at the end of the user's words.

    Of a conversation that is its last message; of a plain dialogue, what stands before the last
    ``Assistant:``. Scores are rounded to one decimal (Yang et al., 2024).
    """
    wanted = " ".join(f"<{name}_score> {value:.1f}" for name, value in scores.items())
    if isinstance(prompt, str):
        words = prompt.removesuffix(_ASSISTANT)
        return f"{words} {wanted}{prompt[len(words) :]}"
    *before, last = prompt
    return [*before, {**last, "content": f"{last['content']} {wanted}"}]
