"""The command line: one file a command, each of which parses, calls one function and prints.

Nothing heavy is imported before a command runs: ``paretune --help`` answers at once.
"""

import logging
import os
import signal
from collections.abc import Sequence
from typing import Annotated

import typer

from paretune._version import __version__
from paretune.cli import ending
from paretune.cli.alpaca import alpaca
from paretune.cli.chat import chat
from paretune.cli.compare import compare
from paretune.cli.evaluate import evaluate
from paretune.cli.export import export
from paretune.cli.judge import judge
from paretune.cli.output import clean_messages, echo
from paretune.cli.paper_tables import tables
from paretune.cli.plan import plan
from paretune.cli.push import push
from paretune.cli.recipes import recipes
from paretune.cli.report import report
from paretune.cli.reward import reward
from paretune.cli.serve import serve
from paretune.cli.sweep import sweep
from paretune.cli.train import train
from paretune.cli.weigh import ManyValues, weigh
from paretune.machine import join_mpi

app = typer.Typer(
    name="paretune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    recipes,
    plan,
    sweep,
    train,
    evaluate,
    compare,
    weigh,
    chat,
    export,
    push,
    serve,
    report,
    tables,
    judge,
):
    app.command(cls=ManyValues if _command is weigh else None)(_command)
app.add_typer(reward, name="reward")
app.add_typer(alpaca, name="alpaca")


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"paretune {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Align one language model to conflicting preferences: the whole front of trade-offs."""


def _wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait: on a busy machine they would hold up each other.

    It must be said before torch loads. How many there are is left as it is: sums depend on that.
    Where they would have to wait, the display of a run says so (`paretune.cli.progress.busy`).
    """
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}.items():
        os.environ.setdefault(name, value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; what goes wrong is one line and an exit code, never a traceback."""
    clean_messages()
    join_mpi()
    _wait_passively()
    if os.environ.get("PARETUNE_WORKER"):  # a shell's background jobs, and theirs, ignore SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where bitsandbytes is installed, peft imports it, and it tells of a faster 4-bit kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # No file of a run folder or a checkpoint is unpickled to anything but tensors.
    os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    raise SystemExit(
        ending.run(lambda: app(args=arguments, prog_name="paretune", standalone_mode=False))
    )
