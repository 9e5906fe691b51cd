"""Code that comes with a checkpoint: it runs only where the user of this process allows it."""

import os

from paretune.errors import InputError, first_line

TRUST_VARIABLE = "PARETUNE_TRUST_REMOTE_CODE"
"""Set to 1, it lets recipes and run folders that ask for it run code of a checkpoint."""


def remote_code_is_allowed() -> bool:
    """Whether the user of this process lets code of checkpoints run."""
    return os.environ.get(TRUST_VARIABLE, "") == "1"


def check_remote_code(name: str | os.PathLike[str], wanted: bool) -> None:
    """See that code of a checkpoint, if it is `wanted`, is allowed to run.

    Raises:
        InputError: it is not.
    """
    if wanted and not remote_code_is_allowed():
        raise InputError(
            f"the code that comes with model '{name}' would run with your rights, as its recipe "
            f"asks with trust_remote_code: read it, then give --trust-remote-code (or set "
            f"{TRUST_VARIABLE}=1)"
        )


def does_not_run(name: str | os.PathLike[str], error: Exception) -> InputError:
    """What is said where the code of a checkpoint fails."""
    import transformers

    return InputError(
        f"the code that comes with model '{name}' does not run with transformers "
        f"{transformers.__version__} ({first_line(error)}); if its architecture is one of "
        "transformers' own, set trust_remote_code to false, else take a model without code"
    )


def needs_own_code(name: str | os.PathLike[str], weight: str) -> InputError:
    """What is said of a score head that transformers' own class would not read whole."""
    return InputError(
        f"model '{name}' has weights ({weight}) that only the code in its checkpoint reads, so it "
        "would score otherwise: set trust_remote_code to true"
    )
