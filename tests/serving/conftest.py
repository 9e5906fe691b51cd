"""What the tests of the local page share."""

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture
def closed_loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gradio makes event loops and leaves them open."""
    made: list[asyncio.AbstractEventLoop] = []
    real = asyncio.new_event_loop

    def make_loop() -> asyncio.AbstractEventLoop:
        made.append(real())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", make_loop)
    yield
    for loop in made:
        loop.close()
    asyncio.set_event_loop(None)
