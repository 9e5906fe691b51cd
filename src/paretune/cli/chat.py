"""``paretune chat``."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paretune.cli.arguments import (
    AnswerOverrides,
    Method,
    Prefer,
    TrustRemoteCode,
    weights_and_overrides,
)
from paretune.cli.output import echo

if TYPE_CHECKING:
    from paretune.results.answers import Prompt
    from paretune.serving.chat import ChatModel
    from paretune.serving.choose import Candidate, Choice, Choices

_HELP = (
    "/prefer NAME=WEIGHT ... asks another point, /all PROMPT every point, /reset forgets, "
    "/quit ends; ctrl-C stops."
)


def chat(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    overrides: AnswerOverrides = None,
    prefer: Prefer = None,
    method: Method = None,
    system: Annotated[
        str | None, typer.Option(help="Open with this system message, not with the run's.")
    ] = None,
    lengths: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Do not chat: print the mean length of the answers to the run's first N test "
            "prompts, at --prefer, or at each end of the front.",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to the point of a run that best meets a preference.

    Without --prefer all objectives weigh the same. Answers follow the run's evaluation settings;
    evaluation.max_new_tokens=200 and the like change them. Prompts may be piped in, one a line.
    """
    from paretune.cli.progress import quiet_libraries
    from paretune.serving.choose import open_run

    weights, keys = weights_and_overrides(prefer, overrides)
    choices = open_run(run, keys, method)
    choices.recipe.model.check_place()
    quiet_libraries(choices.recipe.model.name)
    choice = choices.choose(choices.preference(weights))
    if lengths is not None:
        _print_lengths(choices, [choice] if weights else choices.ends(), lengths)
        return
    echo(choice.reason())
    _talk(choices, choice, system)


def _talk(choices: "Choices", choice: "Choice", system: str | None) -> None:
    from paretune.errors import InputError
    from paretune.names import printable
    from paretune.serving.chat import ChatModel, Conversation

    conversation = Conversation.like(choices, system)
    speaker = ChatModel(choices.recipe)
    echo(f"\n{_HELP}")
    for line in _lines():
        command, _, rest = line.partition(" ")
        try:
            match command:
                case "/quit":
                    return
                case "/reset":
                    conversation.reset()
                case "/prefer":
                    choice = choices.choose(choices.preference(_weights(rest)))
                    echo(choice.reason())
                case "/all" if rest:
                    with suppress(KeyboardInterrupt):
                        _ask_all(choices, speaker, conversation.prompt(rest, first=True))
                case _ if command.startswith("/"):
                    echo(_HELP)
                case _:
                    finished = conversation.ask(
                        speaker, choice.best, line, lambda text: _write(printable(text))
                    )
                    _write("\n" if finished else " [...]\n")
        except InputError as error:
            echo(f"error: {error}", err=True)


def _ask_all(choices: "Choices", speaker: "ChatModel", prompt: "Prompt") -> None:
    """Print the answers of the base model and of every point."""
    from paretune.names import printable

    speakers = [None, *choices.candidates]
    for by, (answer,) in zip(speakers, speaker.answers_of([prompt], speakers), strict=True):
        echo(f"\n{'base model' if by is None else by.name}:")
        echo(f"{printable(answer.response)}{'' if answer.finished else ' [...]'}")


def _lines() -> Iterator[str]:
    """What the user says, without empty lines; on a terminal with a prompt and editing."""
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives `input` editing and a history)
    while True:
        try:
            line = input("\n> ") if terminal else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            echo("")
            return
        if not terminal and not line:
            return
        line = line.strip()
        if line and not terminal:
            echo(f"\n> {line}")
        if line:
            yield line


def _weights(text: str) -> Mapping[str, float]:
    from paretune.errors import InputError

    weights, others = weights_and_overrides(text.replace(",", " ").split(), None)
    if others or not weights:
        raise InputError("/prefer wants weights, for example /prefer harmless=0.7 helpful=0.3")
    return weights


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_lengths(choices: "Choices", asked: "list[Choice]", count: int) -> None:
    from paretune.errors import InputError
    from paretune.serving.chat import ChatModel, asked_prompts, mean_words

    prompts = asked_prompts(choices)
    if len(prompts) < count:
        raise InputError(
            f"'{choices.run}' has answers to {len(prompts)} test prompts, not {count}: "
            f"ask for fewer, or run `paretune evaluate` with evaluation.n_prompts={count}."
        )
    speaker = ChatModel(choices.recipe)
    echo(f"Mean words of the answers to the first {count} test prompts (± standard error):")
    rows: list[tuple[Candidate | None, str]] = [(None, "base model")]
    rows += [(each.best, f"{each.best.name}  (best for {_listed(each)})") for each in asked]
    means = mean_words(speaker, [by for by, _ in rows], prompts[:count])
    for (_, name), mean in zip(rows, means, strict=True):
        echo(f"  {mean.mean:6.1f} ± {mean.standard_error:4.1f}  {name}")


def _listed(choice: "Choice") -> str:
    from paretune.results.text import preference_text

    return preference_text({name: weight for name, weight in choice.preference.items() if weight})
