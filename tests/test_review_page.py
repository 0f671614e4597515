"""The review page in a browser: a batch judged by keyboard, pairs looked at, landmarks placed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import make_pair
from playwright.sync_api import Browser, Page, sync_playwright
from review_helpers import running_review, true_points, write_results_folder

from geometry.point_files import read_points
from geometry.transform_files import read_transform
from review_page.report_page import write_batch_report

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium on this system (`make browser` installs it where it may)",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # The sandbox needs rights that containers do not give; only pages of the tests are opened.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def results(tmp_path, generated_root) -> Path:
    return write_results_folder(
        tmp_path, generated_root, ["p1", "p2", "p3", "p4", "<b>5</b>"], failed=["p3"]
    )


def open_page(
    browser: Browser, address: str, viewport: dict[str, int] = WIDE
) -> tuple[Page, list[str]]:
    """The page, and a list that collects its console messages, exceptions and foreign requests."""
    page, faults = browser.new_page(viewport=viewport), []
    page.on(
        "console",
        lambda message: (
            faults.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    ours = (address, "data:", "blob:")
    page.on(
        "request",
        lambda request: None if request.url.startswith(ours) else faults.append(request.url),
    )
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page, faults


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


def open_pair(page: Page, name: str) -> None:
    page.locator(f"#cards article[data-id='{name}'] img").click()
    page.wait_for_selector(f"#pair[data-ready='{name}']")


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


def click_at(page: Page, pane: int, point: list[float], size: tuple[int, int]) -> None:
    """Click an image pixel in a pane that shows its whole image (width, height)."""
    box = page.locator(f"#pane-{pane}").bounding_box()
    scale = min(box["width"] / size[0], box["height"] / size[1])
    page.mouse.click(
        box["x"] + box["width"] / 2 + (point[0] - (size[0] - 1) / 2) * scale,
        box["y"] + box["height"] / 2 + (point[1] - (size[1] - 1) / 2) * scale,
    )


def settle(page: Page, marks: int, pending: bool) -> None:
    state = f"[data-marks='{marks}'][data-pending='{str(pending).lower()}'][data-busy=false]"
    page.wait_for_selector(f"#landmarks{state}")


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_three_clicks_rescue_a_failed_pair(browser, results, generated_root, viewport):
    fixed, moving, H, *_ = make_pair(generated_root / "1_A", "cf", "fa_gen", 14.0, 0.95)
    sizes = [image.shape[1::-1] for image in (fixed, moving)]
    places = np.array([[60.0, 60.0], [130.0, 60.0], [95.0, 120.0]])
    with running_review(results) as (address, _):
        page, faults = open_page(browser, address, viewport)
        open_pair(page, "p3")
        assert "only 4 matches" in page.locator("#pair-status").inner_text()
        page.keyboard.press("l")
        page.keyboard.press("p")
        settle(page, 0, False)
        for count, (first, second) in enumerate(zip(places, true_points(H, places), strict=True)):
            click_at(page, 0, first, sizes[0])
            settle(page, count, True)
            # With a transform, the right pane follows the left one and shows another part.
            if count < 2:
                click_at(page, 1, second, sizes[1])
            else:
                assert "proposed" in page.locator("#pair-status").inner_text()
                page.keyboard.press("Enter")
            settle(page, count + 1, False)
        assert "Left-out error: not measurable" in page.locator("#fit").inner_text()
        page.keyboard.press("s")
        page.wait_for_selector("#landmarks[data-saved='3']")
        shown = page.evaluate("async () => (await (await fetch('api/pair?id=p3')).json())")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        assert "by landmarks" in page.locator("#cards article[data-id=p3]").inner_text()
        assert not faults
        page.close()
    path = results / "p3" / "transform.json"
    saved = read_transform(path).fix_to_mov
    np.testing.assert_array_equal(saved.approximate_matrix(), shown["transform"]["matrix"])
    # Screen pixels are larger than half an image pixel here: clicks are accurate to that.
    assert np.abs(saved.map(places) - true_points(H, places)).max() < 6
    assert json.loads(path.read_text())["source"] == "manual"


def test_eight_landmarks_are_placed_by_keyboard_with_snapping(browser, large_eye, tmp_path):
    results = write_results_folder(tmp_path, large_eye.parent, ["a", "b"], fixed_suffix="cf_512")
    fixed, moving, H, *_ = make_pair(large_eye, "cf_512", "fa_gen", 8.0, 0.95)
    path = results / "a" / "transform.json"
    content = json.loads(path.read_text())
    for row, shift in ((0, 4.0), (1, -4.0)):
        content["fix_to_mov"]["H_fix_to_mov"][row][2] += shift
    path.write_text(json.dumps(content))
    with running_review(results) as (address, _):
        page, faults = open_page(browser, address)
        page.keyboard.press("Enter")
        page.wait_for_selector("#pair[data-ready=a]")
        page.keyboard.press("l")
        settle(page, 0, False)
        count = 0
        for way, steps in zip("ULDDRRUULDLDRRUL", 4 * (6, 8, 5, 7), strict=True):
            arrow = {"U": "Up", "D": "Down", "L": "Left", "R": "Right"}[way]
            for _ in range(steps):
                page.keyboard.press(f"Arrow{arrow}")
            page.keyboard.press("Space")
            settle(page, count, True)
            text = page.locator("#pair-status").inner_text()
            if "snapped to a junction" in text and "vessels agree" in text:
                page.keyboard.press("Enter")
                count += 1
                settle(page, count, False)
            else:
                page.keyboard.press("Escape")
                settle(page, count, False)
                page.keyboard.press("Tab")
            if count == 8:
                break
        assert count == 8
        page.keyboard.press("z")
        settle(page, 7, False)
        page.keyboard.press("y")
        settle(page, 8, False)
        page.keyboard.press("s")
        page.wait_for_selector("#landmarks[data-saved='8']")
        assert not faults
        page.close()
    points = [read_points(results / "a" / f"001_0{role}.txt", 2) for role in (1, 2)]
    errors = np.linalg.norm(true_points(H, points[0]) - points[1], axis=1)
    assert len(errors) == 8 and errors.max() < 1.5
    saved = read_transform(path).fix_to_mov
    assert np.abs(saved.map(points[0]) - true_points(H, points[0])).max() < 1.5


def test_opening_is_fast(browser, large_eye, tmp_path, record_property, capsys):
    """Times of a pair of 4,000 px and of 2,000 pairs; reported, because machines differ."""
    results = write_results_folder(tmp_path, large_eye.parent, ["big"], fixed_suffix="cf_512")
    factor = 8
    path = results / "big" / "transform.json"
    content = json.loads(path.read_text())
    for role in ("fixed", "moving"):
        image = cv2.imread(content[role]["path"])
        large = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(content[role]["path"], large)
        content[role] |= {"height": large.shape[0], "width": large.shape[1]}
    H = np.array(content["fix_to_mov"]["H_fix_to_mov"])
    scale = np.diag([factor, factor, 1.0])
    content["fix_to_mov"]["H_fix_to_mov"] = (scale @ H @ np.linalg.inv(scale)).tolist()
    path.write_text(json.dumps(content))
    with (results / "results.csv").open("a") as table:
        for index in range(1999):
            (results / f"n{index}").mkdir()
            shutil.copy(path, results / f"n{index}")
            table.write(f"n{index},ok,,0.{index % 900 + 99}" + "," * 13 + "A\n")
    with running_review(results) as (address, _):
        started = time.monotonic()
        page, faults = open_page(browser, address)
        batch_seconds = time.monotonic() - started
        assert page.locator("#cards article").count() == 2000
        page.evaluate("location.hash = 'big'")
        page.goto("about:blank")
        page.goto(f"{address}#big")
        page.wait_for_selector("#pair[data-ready=big]", timeout=120_000)
        pair_ms = int(page.get_attribute("#pair", "data-milliseconds"))
        page.keyboard.press("x")
        started = time.monotonic()
        page.wait_for_selector("#pane-0[data-ready=true]")
        page.wait_for_selector("#pane-1[data-ready=true]")
        zoom_seconds = time.monotonic() - started
        assert not faults
        page.close()
    measured = {
        "batch_of_2000_pairs_s": round(batch_seconds, 2),
        "pair_of_4000_px_ms": pair_ms,
        "zoom_to_its_pixels_s": round(zoom_seconds, 2),
    }
    for name, value in measured.items():
        record_property(name, value)
    with capsys.disabled():
        print(f"\n{measured} at a load of {os.getloadavg()[0]:.1f}")


def test_a_second_annotator_is_compared_on_the_page(browser, numbered_root, tmp_path):
    root, second = tmp_path / "set", tmp_path / "second"
    shutil.copytree(numbered_root[0], root)
    shutil.copytree(numbered_root[0], second)
    with running_review(root, "--second", second) as (address, _):
        page, faults = open_page(browser, address)
        open_pair(page, "1_1_001")
        page.keyboard.press("l")
        settle(page, 8, False)
        page.wait_for_selector("#fit:has-text('8 places in common')")
        assert "Worst: landmark" in page.locator("#fit").inner_text()
        page.keyboard.press("]")
        page.keyboard.press("Delete")
        settle(page, 7, False)
        page.keyboard.press("z")
        settle(page, 8, False)
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
