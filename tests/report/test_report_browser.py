"""The report in a real browser: it is opened from disk, clicked, resized and printed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paretune.report.page import render
from paretune.results.run_folder import read_runs

TWO = ("harmless", "helpful")
Make = Callable[..., Path]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next((path for path in found if path), None)
    if path is None:
        pytest.skip("there is no chromium or google-chrome on this machine")
    with playwright.sync_playwright() as driver:
        # Without its sandbox, which a container's root may not have; the pages are our own.
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens the page of a run, alone in a folder; complaints and requests fail the test."""
    trouble: list[str] = []

    def open_page(run: Path, width: int = 1280, **options: Any) -> Any:
        file = tmp_path / "alone" / "report.html"
        file.parent.mkdir()
        file.write_text(render(read_runs([run])), encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **options
        )
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(file.as_uri())
                else trouble.append(f"request: {request.url[:100]}")
            ),
        )
        page.goto(file.as_uri())
        page.wait_for_selector("#plots .main-svg")
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert trouble == []


def title_of(page: Any) -> str:
    return str(page.locator("#point option:checked").inner_text())


def shown(page: Any) -> list[str]:
    """The answers shown, each prompt's side by side."""
    return [str(text) for text in page.locator("#pairs .answer").all_inner_texts()]


@pytest.mark.slow
def test_clicking_a_point_shows_its_answers_beside_the_base_models(
    sweep: Make, opened: Open, tmp_path: Path
) -> None:
    page = opened(sweep(tmp_path / "two", TWO, base=True))
    assert title_of(page) == "clamp (0, 1)"
    marks = page.locator("#plots .scatterlayer .points path")
    mark = marks.nth(3)  # the fourth point of the recipe
    mark.hover(force=True)
    hover = page.locator(".hovertext")
    hover.wait_for()
    text = hover.text_content()
    assert "clamp (0.75, 0.25)" in text
    assert "p: harmless 0.75, helpful 0.25" in text
    assert "ranked right" in text
    buttons = page.locator(".modebar-btn")
    names = [buttons.nth(k).get_attribute("data-title") for k in range(buttons.count())]
    assert names == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]
    mark.click(force=True)
    page.wait_for_function("document.querySelector('#point').value === '3'")
    assert title_of(page) == "clamp (0.75, 0.25)"
    assert page.locator("#status").inner_text() == "Selected: clamp (0.75, 0.25)"
    answers = shown(page)
    assert len(answers) == 10
    assert answers[0].startswith("clamp harmless0.75-helpful0.25 answers 0.")
    assert answers[1].startswith("base answers 0.")
    assert page.locator('tr[aria-current="true"] .pick').inner_text() == "clamp (0.75, 0.25)"
    chips = page.locator("#pairs .chips").nth(4).inner_text()
    assert "harmless 0.6667" in chips
    assert "cut at the limit" in chips


@pytest.mark.slow
def test_what_models_write_stays_text(sweep: Make, opened: Open, tmp_path: Path) -> None:
    page = opened(sweep(tmp_path / "two", TWO, divisions=2, base=True))
    answer = shown(page)[2]
    for part in (
        "<script>alert(1)</script> </script><img src=x onerror=alert(2)> **bold**",
        "[x](javascript:alert(3)) {{ 7 * 7 }} <!-- &lt; ",
    ):
        assert part in answer
    assert page.locator("#answers img, #answers script, #answers b:not(.chips b)").count() == 0
    assert page.locator("#answers strong, #answers a").count() == 0
    assert "Question 1 <b>?" in page.locator("#pairs .prompt").nth(1).inner_text()
    assert page.locator("body script").count() == 3


@pytest.mark.slow
def test_lists_and_buttons_do_what_a_click_does(
    comparison: Make, opened: Open, tmp_path: Path
) -> None:
    page = opened(comparison(tmp_path / "cmp", TWO), color_scheme="dark")
    page.locator("#point").focus()
    page.keyboard.press("ArrowDown")
    assert title_of(page) == "CLAMP (0.5, 0.5), seed 0"
    assert shown(page)[0].startswith("CLAMP harmless0.50-helpful0.50 0 answers 0.")
    page.get_by_role("button", name="PWG (0.25, 0.75), seed 1").click()
    assert shown(page)[0].startswith("PWG harmless0.25-helpful0.75 1 answers 0.")
    page.locator("#beside").select_option(label="CLAMP (0.5, 0.5), seed 0")
    assert shown(page)[1].startswith("CLAMP harmless0.50-helpful0.50 0 answers 0.")
    page.locator("#next").click()
    assert shown(page)[0].startswith("PWG harmless0.25-helpful0.75 1 answers 5.")
    assert page.locator("#page-of").inner_text() == "Prompts 6 to 7 of 7"
    count = "document.querySelectorAll('#plots .points path').length"
    before = page.evaluate(count)
    page.get_by_role("button", name="MODPO", exact=True).click()
    assert page.evaluate(count) == before - 6
    page.locator("#measure").select_option(label="score of answers")
    assert (
        "score of answers of harmless (higher is better)" in page.locator("#plots").text_content()
    )
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(background) != dark
    assert page.locator("#step-plots .main-svg").count() >= 6


@pytest.mark.slow
@pytest.mark.parametrize(("count", "plots"), [(3, 4), (5, 2)])
def test_three_and_more_objectives_on_a_phone_and_on_paper(
    sweep: Make, opened: Open, tmp_path: Path, count: int, plots: int
) -> None:
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")[:count]
    page = opened(sweep(tmp_path / "run", names, divisions=1), width=390)
    assert page.locator("#plots .plot").count() == plots
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    # In the parallel coordinates, the last point's value on the first axis.
    parallel = page.locator("#plots .plot").nth(3 if count == 3 else 0)
    parallel.locator(".points path").first.click(force=True)
    page.wait_for_function("document.querySelector('#status').textContent !== ''")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('details')].every((node) => node.open)")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.evaluate("document.querySelector('details').open")


@pytest.mark.slow
def test_p_is_dragged_along_the_curve(steerable: Make, opened: Open, tmp_path: Path) -> None:
    run = steerable(tmp_path / "dial", ("<b>harmless", "helpful"))
    page = opened(run)
    slider = page.locator("#sliders input")
    assert page.locator("#sliders label").inner_text() == "p of <b>harmless"
    losses = read_runs([run])[0].calibration("conditioned")
    for value in (0, 37, 100):
        slider.evaluate(
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }",
            value,
        )
        p = [value / 100, 1 - value / 100]
        told = page.locator("#dial-preference").inner_text()
        assert told == f"p: <b>harmless {p[0]:.3g}, helpful {p[1]:.3g}"
        cells = page.locator("#dial-values td").all_inner_texts()
        position = losses.position(p)
        assert cells[1:3] == [f"{x:.3f}" for x in losses.losses_at(position)]
        # The diamond of the plot is there, and the nearest measured point is the selected one.
        mark = page.evaluate(
            "document.querySelector('#plots .plot').data"
            ".find((t) => t.marker && t.marker.symbol === 'diamond').x[0]"
        )
        assert mark == pytest.approx(losses.losses_at(position)[0], rel=1e-4)
        assert f"({round(4 * p[0]) / 4:g}, " in title_of(page)
    assert "training answers" not in page.inner_text("body")
    assert page.locator("#steps").is_visible()


@pytest.mark.slow
def test_a_slider_an_objective_where_there_are_more(
    steerable: Make, opened: Open, tmp_path: Path
) -> None:
    page = opened(steerable(tmp_path / "dial", ("one", "two", "three"), 2))
    sliders = page.locator("#sliders input")
    assert sliders.count() == 3
    for k, value in enumerate((80, 0, 80)):
        sliders.nth(k).evaluate(
            "(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }",
            value,
        )
    assert page.locator("#dial-preference").inner_text() == "p: one 0.5, two 0, three 0.5"
    assert title_of(page) == "conditioned (0.5, 0, 0.5)"
