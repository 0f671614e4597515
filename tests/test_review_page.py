"""The review page in a browser: a batch judged by keyboard, pairs looked at, landmarks placed."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page
from review_helpers import (
    PHONE,
    WIDE,
    needs_browser,
    open_page,
    open_pair,
    running_review,
)

from review_page.report_page import write_batch_report

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_browser]


def verdicts_of(results: Path) -> dict[str, tuple[str, str]]:
    path = results / "review.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["id"]: (row["verdict"], row["note"]) for row in csv.DictReader(file)}


def wait_for_verdicts(results: Path, expected: dict[str, tuple[str, str]]) -> None:
    deadline = time.monotonic() + 5
    while verdicts_of(results) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert verdicts_of(results) == expected


def selected(page: Page) -> str | None:
    return page.locator("#cards article[aria-current]").get_attribute("data-id")


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_batch_is_judged_by_keyboard_and_survives_a_crash(browser, results, viewport):
    with running_review(results) as (address, server):
        page, faults = open_page(browser, address, viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        shown = page.eval_on_selector_all("#cards article", "all => all.map(a => a.dataset.id)")
        assert shown == ["p3", "p1", "p2", "p4", "<b>5</b>"], "least sure first"
        assert page.locator("#progress").inner_text() == "0 of 5 judged"
        page.keyboard.press("r")
        page.keyboard.press("a")
        page.keyboard.press("j")
        assert selected(page) == "p4"
        page.keyboard.press("k")
        page.keyboard.press("n")
        page.keyboard.type("dark, jr")
        page.keyboard.press("Enter")
        page.keyboard.press("u")
        expected = {"p3": ("reject", ""), "p1": ("accept", ""), "p2": ("unsure", "dark, jr")}
        wait_for_verdicts(results, expected)
        assert page.locator("#progress").inner_text() == "3 of 5 judged"
        card = page.locator("#cards article[data-id=p1] .verdict")
        assert "accepted" in card.inner_text(), "the verdict is a word, not a colour alone"
        assert page.locator("#cards b").count() == 5 + 3, "an id is text, never markup"
        assert not faults
        server.kill()
        page.close()
    with running_review(results) as (address, _):
        page, faults = open_page(browser, address, viewport)
        assert page.locator("#progress").inner_text() == "3 of 5 judged"
        page.select_option("#filter", "open")
        assert page.locator("#cards article").count() == 2
        page.select_option("#filter", "all")
        page.keyboard.press("Escape")
        page.fill("#search", "dark")
        assert page.locator("#cards article").count() == 1 and selected(page) == "p2"
        assert not faults
        page.close()
    assert verdicts_of(results) == expected


def test_verdicts_wait_for_a_server_that_is_away(browser, results):
    with running_review(results) as (address, server):
        page, _ = open_page(browser, address)
        page.keyboard.press("a")
        wait_for_verdicts(results, {"p3": ("accept", "")})
        server.kill()
        server.wait()
        page.keyboard.press("r")
        page.wait_for_selector("#banner:not([hidden])")
        assert "not saved" in page.locator("#cards article[data-id=p1] .verdict").inner_text()
        page.close(run_before_unload=False)


def test_two_windows_do_not_overwrite_each_other(browser, results):
    with running_review(results) as (first, _), running_review(results) as (second, _):
        (one, faults), (other, more_faults) = open_page(browser, first), open_page(browser, second)
        one.keyboard.press("a")
        other.keyboard.press("j")
        other.keyboard.press("r")
        expected = {"p3": ("accept", ""), "p1": ("reject", "")}
        wait_for_verdicts(results, expected)
        # Selectors, not functions: the page forbids to evaluate text as code.
        one.wait_for_selector("#cards article[data-id=p1][data-verdict=reject]")
        other.wait_for_selector("#cards article[data-id=p3][data-verdict=accept]")
        assert one.locator("#progress").inner_text() == "2 of 5 judged"
        assert not faults and not more_faults
        one.close()
        other.close()


def test_a_page_without_writing(browser, results):
    with running_review(results, "--read_only") as (address, _):
        page, faults = open_page(browser, address)
        page.keyboard.press("a")
        assert page.locator("#judge .verdicts button").first.is_disabled()
        assert page.locator("#progress").inner_text() == "0 of 5 judged" and not faults
        page.close()
    assert not (results / "review.csv").exists()


def pixels(page: Page, pane: int = 0, layer: int = 0) -> tuple[int, float]:
    """Size of the canvas of a layer, and the share of its pixels that are not black."""
    return tuple(
        page.evaluate(
            """([pane, layer]) => {
              const canvas = document.querySelectorAll(`#pane-${pane} .layer canvas`)[layer];
              const {width, height} = canvas;
              const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
              let lit = 0;
              for (let i = 0; i < data.length; i += 4)
                if (data[i] + data[i + 1] + data[i + 2] > 30) lit += 1;
              return [width, lit / (width * height)]; }""",
            [pane, layer],
        )
    )


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_pair_is_shown_in_every_view(browser, results, viewport):
    with running_review(results) as (address, _):
        page, faults = open_page(browser, address, viewport)
        open_pair(page, "p1")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert pixels(page)[1] > 0.15 and pixels(page, 1)[1] > 0.15
        over = page.locator("#pane-0 .layer").nth(1)

        def style(name: str) -> str:
            return over.evaluate("(element, name) => getComputedStyle(element)[name]", name)

        page.keyboard.press("2")
        page.wait_for_selector("#pane-0[data-ready=true]")
        assert "50%" in style("clipPath") and pixels(page, 0, 1)[1] > 0.15
        page.keyboard.press(".")
        assert "52%" in style("clipPath")
        page.keyboard.press("4")
        assert "conic-gradient" in style("maskImage") and style("clipPath") == "none"
        before = style("maskSize")
        page.keyboard.press(".")
        assert style("maskSize") != before
        page.keyboard.press("5")
        assert style("mixBlendMode") == "screen"
        page.keyboard.press("6")
        assert style("mixBlendMode") == "difference"
        page.keyboard.press("3")
        page.wait_for_selector("#pane-0 .layer:nth-child(2)", state="hidden")
        page.wait_for_selector("#pane-0 .layer:nth-child(2)", state="visible")
        if viewport == PHONE:
            page.locator(".show-tones").click()
        page.locator("[data-tone=fixed-brightness]").fill("2")
        under = page.locator("#pane-0 canvas").first
        assert "brightness(2)" in under.evaluate("element => getComputedStyle(element).filter")
        page.keyboard.press("Escape")
        assert page.locator("#list").is_visible() and not faults
        page.close()


def test_the_cursor_and_the_zoom_are_linked_in_both_frames(browser, results):
    with running_review(results) as (address, _):
        page, faults = open_page(browser, address)
        open_pair(page, "p2")
        page.keyboard.press("w")
        page.wait_for_selector("#pane-1[data-ready=true]")
        box = page.locator("#pane-0").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.wheel(0, -600)
        page.wait_for_selector("#pane-0[data-ready=true]")
        assert pixels(page)[1] > 0.9, "zoomed into the retina"
        marks = """() => { const canvas = document.querySelector('#pane-1 canvas.marks');
          const {width, height} = canvas;
          const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
          let n = 0, x = 0, y = 0;
          for (let i = 3; i < data.length; i += 4) if (data[i] > 0) {
            n += 1; x += (i >> 2) % width; y += Math.floor((i >> 2) / width); }
          return [n, x / n / width, y / n / height]; }"""
        page.wait_for_timeout(200)
        count, x, y = page.evaluate(marks)
        assert count > 10 and (x, y) == pytest.approx((0.5, 0.5), abs=0.02)
        assert not faults
        page.close()


def test_the_report_of_a_batch_works_without_a_server(browser, results):
    page, faults = browser.new_page(viewport=PHONE), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(write_batch_report(results).as_uri())
    page.keyboard.press("n")
    assert page.locator("#caption").inner_text().startswith("p2")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator(".stage .over").evaluate("image => image.naturalWidth") > 0
    assert not faults
    page.close()
