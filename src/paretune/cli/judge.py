"""``paretune judge``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paretune.cli.arguments import TrustRemoteCode, resumable
from paretune.cli.output import echo
from paretune.errors import InputError

if TYPE_CHECKING:
    from paretune.judging.endpoint import EndpointJudge
    from paretune.judging.questions import Judge
    from paretune.judging.summary import Summary
    from paretune.runs.judge import Forecast


# Options of requests, which a model on this machine does not get.
_ENDPOINT = (
    *("base_url", "api_key_env", "temperature", "option", "concurrency", "per_minute"),
    *("timeout", "attempts", "backoff", "price_in", "price_out"),
)


def judge(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    model: Annotated[
        str | None,
        typer.Option(envvar="PARETUNE_JUDGE_MODEL", help="The judge, by the endpoint's name."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(envvar="OPENAI_BASE_URL", help="Of an OpenAI-compatible endpoint."),
    ] = None,
    api_key_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    local: Annotated[
        bool,
        typer.Option("--local", help="The judge is a transformers model (name, folder, hub id)."),
    ] = False,
    aspect: Annotated[
        list[str] | None,
        typer.Option(help="Rate this aspect only; may be repeated; 'none' rates nothing."),
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Also compare with the base model, in both orders.")
    ] = False,
    prompts: Annotated[
        int | None, typer.Option(metavar="N", help="Judge the first N prompts only.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Ask again where a reply had no rating in it.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of the judge's sampling.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 512,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A further field of each request; VALUE as YAML."),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.")] = 8,
    per_minute: Annotated[
        float | None, typer.Option(metavar="N", help="Requests a minute, at most.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one reply.")] = 120.0,
    attempts: Annotated[int, typer.Option(help="How often a question is tried.")] = 7,
    backoff: Annotated[float, typer.Option(help="Seconds before the second attempt.")] = 1.0,
    price_in: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Price of a million input tokens.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(metavar="X", min=0, help="Price of a million output tokens.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before paid calls.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Let a language model rate a run's answers, and compare them with the base model's.

    Every reply is kept in RUN/judge: nothing is asked or paid for twice. If questions failed, the
    exit code is 1, and the same command asks them again.
    """
    with resumable():
        from paretune.judging.session import Wanted
        from paretune.judging.templates import ASPECTS
        from paretune.runs.judge import FOLDER, Prices, judge_run

        if model is None:
            raise InputError("Name the judge: --model, or PARETUNE_JUDGE_MODEL.")
        if (price_in is None) != (price_out is None):
            raise InputError("Give both prices, --price-in and --price-out, or none.")
        prices = None
        if price_in is not None and price_out is not None:
            prices = Prices(price_in, price_out)
        aspects = ASPECTS if aspect is None else tuple(a for a in aspect if a != "none")
        wanted = Wanted(aspects, pairs, prompts, again)
        if local:
            _refuse_endpoint_options(context)
            from paretune.judging.local import LocalJudge

            chosen: Judge = LocalJudge(model, max_tokens=max_tokens)
        else:
            from paretune.judging.endpoint import OPENAI_URL, EndpointJudge

            chosen = EndpointJudge(
                model,
                base_url or OPENAI_URL,
                os.environ.get(api_key_env) or None,
                temperature=temperature,
                max_tokens=max_tokens,
                options=_options(option or []),
                concurrency=concurrency,
                per_minute=per_minute,
                timeout=timeout,
                attempts=attempts,
                backoff=backoff,
            )
            _check_key(chosen, api_key_env)
        from paretune.cli.progress import console_count, console_progress
        from paretune.runs.candidates import base_answers, load_run, read_candidates

        recipe = load_run(run)
        with console_progress(recipe.model.name) as progress:
            read_candidates(recipe, run)  # may complain, before there is work done for nothing
            base_answers(recipe, run, progress)
        with console_count("questions") as count:
            summary = judge_run(
                run,
                chosen,
                wanted,
                prices=prices,
                confirm=lambda forecast: _confirmed(forecast, chosen, yes),
                count=count,
                detached=True,
            )
    if summary is None:
        echo("Nothing was asked.")
        raise typer.Exit(1)
    _show(summary, run / FOLDER)


def _show(summary: "Summary", folder: Path) -> None:
    """Print what a judge found; the exit code is 1 where questions failed."""
    from paretune.cli.output import print_table
    from paretune.report.judges import account_text, improvements

    print_table(improvements(summary))
    echo(f"{account_text(summary)}; {summary.asked} asked now.")
    names = ("judge.md", "judge.png", "judge.json")
    shown = [name for name in names if (folder / name).exists()]
    echo(f"In {folder}: {', '.join(shown)}")
    if summary.failures:
        for reason, times in list(summary.failures.items())[:3]:
            echo(f"failed: {times} × {reason}", err=True)
        raise typer.Exit(1)


def _confirmed(forecast: "Forecast", judge: "Judge", yes: bool) -> bool:
    """Say what is about to be asked and, where it may cost money, whether to go on."""
    calls = forecast.questions - forecast.kept
    kept = f", {forecast.kept} are answered already" if forecast.kept else ""
    echo(f"{calls} questions for {judge.model} at {judge.where}{kept}.")
    if not judge.paid:
        return True
    if forecast.cost is None:
        cost = "cost unknown, as no prices were given (--price-in, --price-out)"
    else:
        cost = f"{forecast.cost:.2f} at the prices given, at most"
    echo(
        f"About {forecast.input_tokens:,} tokens of input (four bytes each) and at most "
        f"{forecast.output_tokens:,} of output: {cost}. Prompts and answers are sent there."
    )
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError("Nobody is there to confirm these calls: give --yes.")
    return typer.confirm("Go on?")


def _options(given: Sequence[str]) -> dict[str, Any]:
    from paretune.names import shown
    from paretune.yaml_syntax import parse

    options = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise InputError("--option takes KEY=VALUE, such as reasoning_effort=none.")
        if key in options:
            raise InputError(f"--option gives {shown(key)} twice: give each field once.")
        options[key] = parse(value, f"--option {key}")
    return options


def _refuse_endpoint_options(context: typer.Context) -> None:
    """Raise InputError for an option that a model on this machine has no use for."""
    given = [name for name in _ENDPOINT if _given(context, name)]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise InputError(f"{flag} is for an endpoint: leave it out with --local.")


def _check_key(judge: "EndpointJudge", variable: str) -> None:
    """See that an endpoint that wants a key has one."""
    if judge.paid and judge.api_key is None:
        raise InputError(
            f"{judge.base_url} needs a key: put it into the environment variable {variable}, or "
            "name another one with --api-key-env."
        )


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
