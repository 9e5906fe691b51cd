"""Prompts that name the scores an answer should have, as Rewards-in-Context asks for them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from paretune.data.messages import assistant, without_system
from paretune.evaluation.scorers import text_of
from paretune.files import read_object, write_json
from paretune.results.answers import Prompt

ScoreTemplate = Literal["chat", "authors"]
"""Where scores stand: in the model's own chat template, or in the RiC authors' plain dialogue."""

_ASSISTANT = "\n\nAssistant:"
_HUMAN = "\n\nHuman:"
_FILE = "prompt.json"


@dataclass(frozen=True)
class ScorePrompt:
    """What a policy is asked that is told in its prompt which scores to reach.

    Attributes:
        scores: By objective, rounded to one decimal where they are asked for (Yang et al., 2024).
        template: ``chat``: as `with_scores` has it. ``authors``: ``<rm1_score> 1.2 <rm2_score>
            0.3`` in the objectives' order before the last ``Assistant:`` of a plain dialogue,
            outside of any chat template, and a plain answer behind one space.
    """

    scores: Mapping[str, float]
    template: ScoreTemplate = "chat"

    @classmethod
    def of(cls, folder: Path) -> "ScorePrompt | None":
        """What the point in a folder is asked; None where no scores are asked for."""
        if not (folder / _FILE).exists():
            return None
        kept = read_object(folder / _FILE)
        named = isinstance(kept.get("template"), str)  # an objective's score is a number
        return cls(**kept) if named else cls(kept)

    def write(self, folder: Path) -> None:
        """``prompt.json``: the scores; of the authors' template, ``scores`` and ``template``."""
        write_json(folder / _FILE, self.scores if self.template == "chat" else asdict(self))

    def prompt(self, prompt: Prompt) -> Prompt:
        """The prompt with the scores in it."""
        if self.template == "chat":
            return with_scores(prompt, self.scores)
        wanted = (f"<rm{i}_score> {value:.1f}" for i, value in enumerate(self.scores.values(), 1))
        return f"{_dialogue(prompt)} {' '.join(wanted)} {_ASSISTANT}"

    def response(self, prompt: Prompt, text: str) -> Prompt:
        """What is to be said after `prompt`, which has no scores yet."""
        if self.template == "authors":
            return f" {text.strip()}"
        return text if isinstance(prompt, str) else assistant(text)

    def words(self, answer: str) -> str:
        """The answer to such a prompt, without what stands before it."""
        return answer.strip() if self.template == "authors" else answer

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of pairs, asked and answered in this way."""
        asked = {**row, "prompt": self.prompt(row["prompt"])}
        if self.template == "chat":
            return asked
        sides = ("chosen", "rejected")
        return asked | {key: self.response(row["prompt"], text_of(row[key])) for key in sides}


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


def _dialogue(prompt: Prompt) -> str:
    """A prompt as ``Human: ... Assistant: ... Human: ...``; a system message is the user's."""
    if isinstance(prompt, str):
        words = prompt.rstrip().removesuffix(_ASSISTANT).rstrip()
        return words if words.lstrip().startswith("Human:") else f"{_HUMAN} {words}"
    speakers = {"user": _HUMAN, "assistant": _ASSISTANT}
    turns = ((m["role"], m["content"].strip()) for m in without_system(prompt, "merge"))
    return "".join(f"{speakers.get(role, _HUMAN)} {text}" for role, text in turns)
