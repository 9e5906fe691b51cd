"""AlpacaEval 2.0's instructions answered by a point of a run, in its form; resumable.

A folder holds ``answers.json`` (settings, and the answers so far) and, once all are there,
``outputs.json``, which is what ``alpaca_eval`` reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import InputError
from paretune.evaluation.alpaca_eval import (
    DATASET,
    Instruction,
    read_instructions,
    write_outputs,
)
from paretune.experiment.ground import model_ground
from paretune.files import read_object, write_json
from paretune.progress import Count
from paretune.results.run_folder import BASE_FOLDER, MANIFEST, point_slug, read_manifest
from paretune.results.weights import check_weights
from paretune.runs.folder import RunFolder
from paretune.runs.identity import SettingsIdentity, check_ground

if TYPE_CHECKING:
    from paretune.results.answers import Answer
    from paretune.serving.choose import Candidate, Choices

FOLDER = "alpaca_eval"
_ANSWERS = "answers.json"
_SETTINGS = ("max_new_tokens", "temperature", "top_p", "seed")


@dataclass(frozen=True)
class Outputs:
    """What was generated: the file for `alpaca_eval`, how many answers, and how many were cut."""

    path: Path
    count: int
    unfinished: int


def hub_instructions() -> list[Instruction]:
    """The 805 instructions from the hub.

    Raises:
        InputError: the hub cannot be reached, or no longer has the file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(DATASET, "alpaca_eval.json", repo_type="dataset")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"The instructions could not be had from the hub's {DATASET}: give a file with "
            "--instructions."
        ) from error
    return read_instructions(Path(path))


def find_point(choices: "Choices", name: str) -> "Candidate | None":
    """The point of this name; None is the base model, by the name ``base``.

    Raises:
        InputError: there is none.
    """
    if name == BASE_FOLDER:
        return None
    for candidate in choices.candidates:
        if candidate.name == name:
            return candidate
    known = ", ".join([*(candidate.name for candidate in choices.candidates), BASE_FOLDER])
    raise InputError(f"'{choices.run}' has no point '{name}': it has {known}.")


def generate_outputs(
    choices: "Choices",
    point: "Candidate | None",
    instructions: Sequence[Instruction],
    *,
    generator: str | None = None,
    fresh: bool = False,
    progress: Count = lambda done, total: None,
) -> Outputs:
    """Answer every instruction, as one user message, by the run's evaluation settings.

    Answers are kept as they are there; they are not generated again.

    Args:
        point: None is the base model.
        generator: What the outputs say they are of; by default recipe and point.
        fresh: Delete earlier answers.

    Raises:
        InputError: the folder has answers of other settings, or an instruction is too long.
    """
    # A comparison's methods have points of the same names.
    name = BASE_FOLDER if point is None else point_slug(point.point)
    folder = RunFolder(
        choices.run / FOLDER / name,
        SettingsIdentity(_ANSWERS, _settings(choices, point), key="settings"),
        contents=("outputs.json", _ANSWERS, MANIFEST),
        begun=(_ANSWERS,),
        holds="answers of other settings",
        advice="give --fresh to delete them",
    )
    with folder.session(fresh=fresh):
        if point is not None:
            check_weights(point.folder)
        model = choices.recipe.model
        ground = model_ground(model.name, model.revision)
        check_ground(choices.run, read_manifest(choices.run), ground)
        folder.stand_on(ground)
        kept = _Kept(folder.path / _ANSWERS)
        texts = [instruction.text for instruction in instructions]
        _answer(choices, point, texts, kept, progress)
        answers = [kept.answers[text] for text in texts]
        written = folder.path / "outputs.json"
        title = generator or f"{choices.recipe.name}-{name}"
        write_outputs(written, instructions, [answer["output"] for answer in answers], title)
        folder.note({"generator": title, "answers": len(answers)})
        folder.publish({})  # closes the session
        return Outputs(written, len(answers), sum(not answer["finished"] for answer in answers))


def _answer(
    choices: "Choices",
    point: "Candidate | None",
    texts: Sequence[str],
    kept: "_Kept",
    progress: Count,
) -> None:
    """Answer the texts that have no answer yet; as many as a batch are kept as they are there."""
    missing = [text for text in dict.fromkeys(texts) if text not in kept.answers]
    total = len(set(texts))
    progress(total - len(missing), total)
    if not missing:
        return
    from paretune.serving.chat import ChatModel

    speaker = ChatModel(choices.recipe)
    size = choices.recipe.evaluation.batch_size
    chat = speaker.tokenizer.chat_template is not None
    new = 0

    def keep(number: int, answer: "Answer") -> None:
        nonlocal new
        new += 1
        kept.answers[missing[number]] = {"output": answer.response, "finished": answer.finished}
        if new % size == 0:
            kept.write()
        progress(total - len(missing) + new, total)

    prompts = [[{"role": "user", "content": text}] if chat else text for text in missing]
    try:
        speaker.answers(prompts, point, keep)
    finally:
        kept.write()


def _settings(choices: "Choices", point: "Candidate | None") -> dict[str, Any]:
    """What answers depend on; of the point, how its training went, never twice the same."""
    evaluation = choices.recipe.evaluation
    trained = None if point is None else read_object(point.folder / "training.json")
    return {
        "model": choices.recipe.model.model_dump(mode="json", exclude={"date"}),
        **{name: getattr(evaluation, name) for name in _SETTINGS},
        "training": trained,
    }


class _Kept:
    """Answers on the disk, by the instruction, beside the settings they were made with."""

    def __init__(self, path: Path) -> None:
        self._path, self._whole = path, read_object(path)
        answers = self._whole.get("answers", {})
        if not isinstance(answers, dict) or not all(
            isinstance(each, dict) and {"output", "finished"} <= each.keys()
            for each in answers.values()
        ):
            raise InputError(f"'{path}' does not hold answers: give --fresh to delete it.")
        self.answers: dict[str, dict[str, Any]] = answers

    def write(self) -> None:
        write_json(self._path, {**self._whole, "answers": self.answers})
