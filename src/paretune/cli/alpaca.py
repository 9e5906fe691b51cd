"""``paretune alpaca``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paretune.cli.arguments import AnswerOverrides, Method, TrustRemoteCode, resumable
from paretune.cli.output import echo

if TYPE_CHECKING:
    from paretune.evaluation.alpaca_eval import WinRate
    from paretune.evaluation.length_control import LengthControlled
    from paretune.results.table import Table

alpaca = typer.Typer(no_args_is_help=True, help="AlpacaEval 2.0.")

Instructions = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The instructions, JSON or JSON lines."),
]


@alpaca.callback()
def _group() -> None:
    """AlpacaEval 2.0: outputs in its form, and win rates from its annotations."""


@alpaca.command()
def generate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    point: Annotated[
        str, typer.Option(metavar="NAME", help="Which point, or 'base' for the base model.")
    ],
    overrides: AnswerOverrides = None,
    method: Method = None,
    instructions: Instructions = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The first N instructions only.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the outputs say they are of (their generator).")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the point's answers.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Let a point of a run answer the instructions.

    Without --instructions they are from the hub. Answers follow the run's evaluation settings,
    which evaluation.max_new_tokens=2048 and the like change. Generation that was stopped resumes
    when the same command is given again.
    """
    with resumable():
        from paretune.cli.progress import console_count, quiet_libraries
        from paretune.evaluation.alpaca_eval import read_instructions
        from paretune.runs.alpaca import find_point, generate_outputs, hub_instructions
        from paretune.serving.choose import open_run

        choices = open_run(run, overrides or [], method)
        choices.recipe.model.check_place()
        chosen = find_point(choices, point)
        quiet_libraries(choices.recipe.model.name)
        asked = hub_instructions() if instructions is None else read_instructions(instructions)
        with console_count("answered") as count:
            made = generate_outputs(
                choices, chosen, asked[:limit], generator=name, fresh=fresh, progress=count
            )
    echo(f"{made.count} answers, {made.unfinished} of them cut at max_new_tokens, in {made.path}")


@alpaca.command()
def score(
    annotations: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="annotations.json of alpaca_eval, one a model."),
    ],
    gamed: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="df_gamed.csv: length control as on the leaderboard (v1)."
        ),
    ] = None,
    difficulty: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="instruction_difficulty.csv: length control without df_gamed.csv."
        ),
    ] = None,
    instructions: Instructions = None,
) -> None:
    """Win rates, plain and length-controlled, from a judge's annotations.

    They are kept beside each file, in win_rate.json, where `paretune tables` finds them.

    With --instructions (all of them) annotations may be of some instructions only and in any order.
    """
    from paretune.cli.output import print_table
    from paretune.errors import InputError
    from paretune.evaluation.alpaca_eval import read_annotations, read_instructions, win_rate
    from paretune.evaluation.length_control import (
        length_controlled,
        read_difficulties,
        read_gamed,
    )
    from paretune.files import write_json

    if gamed is not None and difficulty is not None:
        raise InputError("Give --gamed or --difficulty: the gamed table has the difficulties.")
    listed = None if instructions is None else read_instructions(instructions)
    table = None if gamed is None else read_gamed(gamed)
    known = None if difficulty is None else read_difficulties(difficulty)
    difficulties = known if table is None else table.difficulties
    rows = []
    for path in annotations:
        read = read_annotations(path, listed, None if difficulties is None else len(difficulties))
        controlled = length_controlled(read, gamed=table, difficulties=known)
        rate = win_rate(read)
        rows.append((read[0].generator_2, rate, controlled))
        record = {"model": read[0].generator_2, "lc_win_rate": controlled.win_rate}
        record |= {"standard_error": controlled.standard_error, "formula": controlled.formula}
        write_json(path.with_name("win_rate.json"), {**record, "win_rate": rate.win_rate})
    print_table(_table(rows))


def _table(rows: "list[tuple[str, WinRate, LengthControlled]]") -> "Table":
    from paretune.results.table import Column, Table, left, numbers

    columns = [left("model"), *numbers(["LC win rate", "win rate", "win / draw / loss"])]
    columns += [Column("no verdict"), Column("characters", ".0f")]
    cells = [
        [
            name,
            f"{controlled.win_rate:.2f} ± {controlled.standard_error:.2f}",
            f"{raw.win_rate:.2f} ± {raw.standard_error:.2f}",
            f"{raw.wins} / {raw.draws} / {raw.losses}",
            raw.missing,
            raw.mean_length,
        ]
        for name, raw, controlled in rows
    ]
    title = f"AlpacaEval, in percent ± standard error; LC: {rows[0][2].formula}"
    return Table(columns, cells, title)
