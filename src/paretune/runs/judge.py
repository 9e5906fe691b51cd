"""Judging a run: every answer rated or compared, as far as that is not done, and summed up.

In the run folder, ``judge/<judge>/`` holds ``replies.jsonl`` (the cache), ``failures.jsonl`` (of
the last time), ``results.jsonl`` (each answer's result with the judge's words) and
``summary.json``; ``judge/judge.json``, ``judge.md`` and ``judge.png`` show all judges, and
``judge/manifest.json`` has the sessions.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paretune.files import read_object, write_json, write_jsonl, write_text
from paretune.judging.endpoint import EndpointJudge
from paretune.judging.questions import Cache, Judge, Question, keep_replies
from paretune.judging.session import JudgeSession, Wanted
from paretune.judging.summary import Summary, base_summary, most_frequent
from paretune.judging.templates import rough_tokens
from paretune.judging.worker import ask_detached
from paretune.progress import Count
from paretune.runs.candidates import base_answers, common_prompts, load_run, read_candidates
from paretune.runs.folder import RunFolder

FOLDER = "judge"
_PATIENCE = 150.0  # for replies that a killed run has left to come in


@dataclass(frozen=True)
class Prices:
    """For a million tokens of input and of output, in whatever currency."""

    input: float
    output: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Forecast:
    """What is about to be asked.

    Attributes:
        questions: distinct ones.
        kept: those that are answered already.
        input_tokens: of the others, roughly.
        output_tokens: the most there can be.
        cost: at most, roughly; None if no prices were given.
    """

    questions: int
    kept: int
    input_tokens: int
    output_tokens: int
    cost: float | None


def judge_run(
    run: Path,
    judge: Judge,
    wanted: Wanted,
    *,
    prices: Prices | None = None,
    confirm: Callable[[Forecast], bool] = lambda forecast: True,
    count: Count = lambda done, total: None,
    detached: bool = False,
) -> Summary | None:
    """Judge the answers of a run that this judge has not judged yet, and sum up.

    Args:
        prices: of the judge's tokens, for forecast and cost.
        confirm: asked before any call is made; None is returned if it says no.
        count: Told the questions done and to do as replies come, maybe from another thread.
        detached: ask an endpoint from a process of its own, which takes in the replies that are
            under way even if this process is killed.

    Raises:
        InputError: no run folder, no answers, another process at work, or a judge that cannot be
            asked. What was answered before is kept.
    """
    recipe = load_run(run)
    candidates = read_candidates(recipe, run)
    folder = run / FOLDER / slug(judge.model)
    judged = RunFolder(run / FOLDER, identity=None)
    with judged.session():
        base = base_answers(recipe, run)
        prompts = common_prompts(candidates, base)[: wanted.prompts]
        cache = Cache(folder).read(_PATIENCE)
        session = JudgeSession(judge, wanted, candidates, base, prompts, cache)
        todo = session.todo()
        if todo and not confirm(_forecast(session, todo, prices)):
            return None
        judged.note({"judge": judge.model, "where": judge.where, "asked": len(todo)})
        if todo and detached and isinstance(judge, EndpointJudge):
            ask_detached(judge, todo, folder, count)
            cache.read()
        elif todo:
            keep_replies(judge, todo, cache, count)
        reasons = cache.failures() if todo else []
        summary = _summary(session, len(todo), reasons, prices)
        _publish(session, summary, folder, run / FOLDER)
        judged.publish({})  # closes the session
        return summary


def slug(model: str) -> str:
    """A judge's name as a folder's."""
    return re.sub(r"[^a-z0-9._]+", "-", model.lower()).strip("-._") or "judge"


def _forecast(session: JudgeSession, todo: Sequence[Question], prices: Prices | None) -> Forecast:
    given = sum(rough_tokens(asked.messages) for asked in todo)
    most = session.judge.max_tokens * len(todo)
    cost = None if prices is None else prices.of(given, most)
    return Forecast(len(session.kinds), len(session.kinds) - len(todo), given, most, cost)


def _summary(
    session: JudgeSession, asked: int, reasons: Sequence[str], prices: Prices | None
) -> Summary:
    replies = [reply for key in session.kinds if (reply := session.cache.get(key)) is not None]
    given = sum(reply.input_tokens or 0 for reply in replies)
    written = sum(reply.output_tokens or 0 for reply in replies)
    judge, aspects = session.judge, session.wanted.aspects
    return Summary(
        judge={"model": judge.model, "where": judge.where, "settings": dict(judge.identity)},
        aspects=aspects,
        prompts=len(session.prompts),
        questions=len(session.kinds),
        counts=session.counts(),
        asked=asked,
        tokens={"input": given, "output": written},
        cost=None if prices is None else prices.of(given, written),
        failures=most_frequent(reasons),
        base=base_summary({aspect: session.ratings(aspect) for aspect in aspects}),
        rows=session.rows(),
    )


def _publish(session: JudgeSession, summary: Summary, folder: Path, shown: Path) -> None:
    """Write the results of this judge, and what shows all judges of the run."""
    from paretune.report.judge_figure import draw_judges
    from paretune.report.judges import markdown, read_judges

    write_jsonl(folder / "results.jsonl", session.results())
    write_json(folder / "summary.json", summary.to_json())
    summaries = [read_object(path) for path in sorted(shown.glob("*/summary.json"))]
    write_json(shown / "judge.json", {"judges": summaries})
    judges = read_judges(shown.parent)
    write_text(shown / "judge.md", markdown(judges))
    draw_judges(judges, shown / "judge.png")
