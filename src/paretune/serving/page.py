"""A local page: one slider an objective, and two answers to a prompt side by side.

Needs Gradio (``pip install 'paretune[serve]'``), which is kept from calling home. Answers are
shown in text fields, which interpret nothing.
"""

import os
from collections.abc import Iterator
from typing import Any

from paretune.errors import InputError
from paretune.serving.chat import Conversation, Speaker
from paretune.serving.choose import Choice, Choices

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import

try:
    import gradio
except ImportError as error:
    raise InputError("`paretune serve` needs Gradio; run: pip install 'paretune[serve]'") from error

BASE, OTHER = "the base model", "another preference"


class Page:
    """What the page computes; every method is called by one of its elements."""

    def __init__(self, choices: Choices, speaker: Speaker, system: str | None = None) -> None:
        self.choices = choices
        self._speaker = speaker
        self._opening = Conversation.like(choices, system)

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

    def ask(self, prompt: str, versus: str, *sliders: float) -> Iterator[tuple[str, str]]:
        """The answers of both sides, the left one as soon as it is there.

        Args:
            versus: who answers on the right, `BASE` or `OTHER`.
            sliders: those on the left, then those on the right.
        """
        if not prompt.strip():
            yield "", ""
            return
        count = len(self.choices.recipe.data.objectives)
        left = self.choose(*sliders[:count]).best
        right = self.choose(*sliders[count:]).best if versus == OTHER else None
        asked = self._opening.prompt(prompt.strip())
        try:
            first = self._speaker.answer(asked, left)
            shown = first.response + ("" if first.finished else " [...]")
            yield shown, ""
            second = self._speaker.answer(asked, right)
            yield shown, second.response + ("" if second.finished else " [...]")
        except InputError as error:
            raise gradio.Error(str(error)) from error


def build_page(page: Page) -> Any:
    """The Gradio app."""
    choices = page.choices
    names = choices.recipe.data.objectives
    title = f"{choices.recipe.name}: {choices.method}"
    with gradio.Blocks(analytics_enabled=False, title=title) as app:
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
                slider.release(page.reason, sliders, reason, api_visibility="private")
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
                page.ask,
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
            footer_links=[],
        )
    except OSError as error:
        raise InputError(
            f"The page cannot be served at {host}, port {port or '7860 to 7959'} ({error}): give "
            "another --port."
        ) from error
    return str(address)
