"""A local page: one slider an objective, and two answers to a prompt side by side.

Needs Gradio, which is kept from calling home. Answers are shown in text fields, which interpret
nothing.
"""

import html
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from paretune.errors import InputError
from paretune.extras import require
from paretune.serving.chat import ChatModel, Conversation
from paretune.serving.choose import Candidate, Choice, Choices
from paretune.serving.guard import Guard

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import

require("gradio", "`paretune serve`")
import gradio  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

BASE, OTHER = "the base model", "another preference"


class Side(NamedTuple):
    """Who answers on one side, and what."""

    name: str
    text: str = ""


class Page:
    """What the page computes; every method is called by one of its elements."""

    def __init__(self, choices: Choices, speaker: ChatModel) -> None:
        self.choices = choices
        self._speaker = speaker
        self._opening = Conversation.like(choices)

    def choose(self, *sliders: float) -> Choice:
        """The choice for the sliders' values, which are divided by their sum; all 0 is equal."""
        names = self.choices.recipe.data.objectives
        total = sum(sliders)
        weights = [value / total for value in sliders] if total else []
        named = dict(zip(names, weights, strict=False))
        return self.choices.choose(self.choices.preference(named))

    def reason(self, *sliders: float) -> str:
        """Why that choice."""
        return self.choose(*sliders).reason()

    def ask(self, prompt: str, versus: str, *sliders: float) -> Iterator[tuple[Side, Side]]:
        """The answers of both sides, the left one as soon as it is there.

        Args:
            versus: who answers on the right, `BASE` or `OTHER`.
            sliders: those on the left, then those on the right.

        Raises:
            InputError: the prompt does not fit the model.
        """
        count = len(self.choices.recipe.data.objectives)
        left = self.choose(*sliders[:count]).best
        right = self.choose(*sliders[count:]).best if versus == OTHER else None
        sides = Side(left.name), Side(BASE if right is None else right.name)
        if prompt.strip():
            sides = self._answered(sides[0], prompt, left), sides[1]
            yield sides
            sides = sides[0], self._answered(sides[1], prompt, right)
        yield sides

    def _answered(self, side: Side, prompt: str, by: Candidate | None) -> Side:
        answer = self._speaker.answer(self._opening.prompt(prompt.strip()), by)
        return Side(side.name, answer.response + ("" if answer.finished else " [...]"))


def build_page(page: Page) -> Any:
    """The Gradio app."""
    choices = page.choices
    names = choices.recipe.data.objectives

    def answer(*inputs: Any) -> Iterator[list[Any]]:
        try:
            for sides in page.ask(*inputs):
                yield [gradio.update(label=side.name, value=side.text) for side in sides]
        except InputError as error:
            raise gradio.Error(html.escape(str(error))) from error

    title = f"{choices.recipe.name}: {choices.method}"
    with gradio.Blocks(analytics_enabled=False, title=title) as app:
        gradio.HTML(f"<h1>{html.escape(title)}</h1>")
        with gradio.Row():
            with gradio.Column():
                left = _sliders(names, True)
                left_reason = _text("Point on the left, and why", page.reason(*[1.0] * len(names)))
            with gradio.Column():
                versus = gradio.Radio([BASE, OTHER], value=BASE, label="Beside it")
                right = _sliders(names, False)
                right_reason = _text("Point on the right, and why", "", visible=False)
        prompt = gradio.Textbox(label="Prompt", lines=2, max_lines=8, autofocus=True)
        button = gradio.Button("Ask", variant="primary")
        with gradio.Row():
            answers = [_text("Left", "", lines=10), _text("Right", "", lines=10)]
        for sliders, reason in ((left, left_reason), (right, right_reason)):
            for slider in sliders:
                slider.change(
                    page.reason,
                    sliders,
                    reason,
                    show_progress="hidden",
                    trigger_mode="always_last",
                    api_visibility="private",
                )
        versus.change(
            lambda chosen, *values: [
                *(gradio.update(visible=chosen == OTHER) for _ in names),
                gradio.update(visible=chosen == OTHER, value=page.reason(*values)),
            ],
            [versus, *right],
            [*right, right_reason],
            api_visibility="private",
        )
        for asking in (button.click, prompt.submit):
            asking(
                answer,
                [prompt, versus, *left, *right],
                answers,
                concurrency_limit=1,  # one model answers
                concurrency_id="model",
                api_visibility="private",
            )
    return app


def _sliders(names: list[str], visible: bool) -> list[Any]:
    return [gradio.Slider(0, 1, value=1.0, step=0.01, label=n, visible=visible) for n in names]


def _text(label: str, value: str, lines: int = 4, visible: bool = True) -> Any:
    return gradio.Textbox(
        value, label=label, lines=lines, max_lines=40, interactive=False, visible=visible
    )


def serve(app: Any, host: str, port: int | None) -> str:
    """Start serving in the background; the page's address.

    Raises:
        InputError: the host or port cannot be used.
    """
    try:
        _, address, _ = app.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            inbrowser=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(Guard, host=host)]},
        )
    except OSError as error:
        raise InputError(
            f"The page cannot be served at {host}, port {port or '7860 to 7959'} ({error}): give "
            "another --port."
        ) from error
    return str(address)
