"""How a command ends: what went wrong as one line on standard error, and the exit code.

A traceback says nothing to who runs a command. With ``PARETUNE_TRACEBACK=1`` it is shown all the
same; of a fault that nobody foresaw it is kept in a file, to be reported.
"""

import os
import sys
import traceback
from collections.abc import Callable

from paretune.cli.output import echo
from paretune.errors import InputError, TrainingStoppedError

VARIABLE = "PARETUNE_TRACEBACK"
_LONGEST = 2000  # letters of a message


def run(command: Callable[[], object]) -> int:
    """Run a command of typer's (not in its standalone mode); the exit code of the process.

    2 is a mistake of the user's, or something the machine lacks; 1 something that failed; 130 is
    Ctrl-C.
    """
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:  # `paretune ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        if os.environ.get(VARIABLE, "") not in ("", "0"):
            traceback.print_exc()
        return _ended(error)
    return code if isinstance(code, int) else 0


def _ended(error: BaseException) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        return 2
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        echo("Stopped.", err=True)
        return 130
    if isinstance(error, TrainingStoppedError):
        return _say(str(error), 1)
    message = _mistake(error)
    if message is not None:
        return _say(message, 2)
    return _say(
        f"paretune met something it has no sentence for ({type(error).__name__}: {error}). What is "
        f"done is kept. Please report it with {_keep(error)} and the command.",
        1,
    )


def _mistake(error: BaseException) -> str | None:
    """The sentence for what the user, or the machine, can mend; None for anything else."""
    if isinstance(error, InputError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's, about the command line
        context = getattr(error, "ctx", None)
        see = f" See `{context.command_path} --help`." if context else ""
        message = error.format_message().rstrip(".")
        return f"{message}{'' if message.endswith('?') else '.'}{see}"
    if isinstance(error, OSError):
        about = " and ".join(f"'{file}'" for file in (error.filename, error.filename2) if file)
        reason = error.strerror or str(error) or type(error).__name__
        return f"{f'{about}: ' if about else ''}{reason}. What is done is kept."
    if isinstance(error, RecursionError):
        return "Something that was given is nested too deeply to be read."
    memory = ("OutOfMemoryError", "not enough memory", "CUDA out of memory")
    if isinstance(error, MemoryError) or any(
        sign in f"{type(error).__name__}: {error}" for sign in memory
    ):
        return (
            "There is not enough memory: take smaller batches (train.per_device_train_batch_size "
            "with more train.gradient_accumulation_steps, evaluation.batch_size), shorter texts "
            "(train.max_length) or a smaller model. What is done is kept."
        )
    return None


def _say(message: str, code: int) -> int:
    line = " ".join(message.split())
    echo(f"error: {line if len(line) <= _LONGEST else line[:_LONGEST] + ' ...'}", err=True)
    return code


def _keep(error: BaseException) -> str:
    """Where the traceback is: in a file, or, if that cannot be written, on standard error."""
    from paretune.files import cache_folder

    text = "".join(traceback.format_exception(error))
    path = cache_folder() / "last-traceback.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError:
        echo(text, err=True)
        return "the traceback above"
    return f"'{path}'"
