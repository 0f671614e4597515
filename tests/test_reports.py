"""The report pages in a browser: they load offline without errors, and their controls work."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import run_main
from playwright.sync_api import Browser, Page
from review_helpers import needs_browser

import evaluate
from training.epoch_log import EpochLog
from training.report import MAX_EPOCHS, pick_epochs, read_pair_lines, write_training_report
from utils.image_files import write_image

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def evaluation(numbered_root, tmp_path_factory) -> Path:
    """The report of methods without weights, moved away from the files that it was made from."""
    out = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.methods.loftr.DEFAULT_WEIGHTS", out / "gone.pth")
        assert (
            run_main(
                evaluate,
                patch,
                "--real",
                numbered_root[0],
                "--compare",
                "sift",
                "identity",
                "oracle",
                "loftr",
                "--rotations",
                0,
                40,
                "--stress",
                "noise",
                "--img_size",
                192,
                "--out",
                out / "made",
            )
            == 0
        )
    page = tmp_path_factory.mktemp("elsewhere") / "report.html"
    shutil.move(out / "made" / "report.html", page)
    shutil.rmtree(out)
    return page


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Path:
    """The report of a run of three epochs with two validated pairs, made from files of a run."""
    run = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    history = []
    for epoch in range(3):
        for key in ("cffa_1_A_000", "cffa_2_A_001"):
            for kind, shape in (
                ("matches", (64, 136)),
                ("keypoints", (64, 136)),
                ("fix_registered_checkerboard", (64, 64)),
            ):
                write_image(
                    run / f"epoch{epoch}" / f"{key}_{kind}.png",
                    rng.uniform(0, 1, shape).astype(np.float32),
                )
        EpochLog(run / "validation_log.txt").write(
            epoch,
            f"cffa_1_A_000: error {9 - epoch}.00  mse 0.01  matches 9  inliers 3  ok\n"
            "cffa_2_A_001: error inf  matches 3  inliers 0  failed (too few)",
        )
        history.append(
            {
                "epoch": float(epoch),
                "total": 5.0 - epoch,
                "val_mse": 0.1 / (epoch + 1),
                "val_corner_error": float("inf") if epoch == 0 else 3.0,
                "val_rate_generated": epoch / 2,
            }
        )
        write_training_report(run / "report.html", history)
    page = tmp_path_factory.mktemp("elsewhere") / "report.html"
    shutil.move(run / "report.html", page)
    shutil.rmtree(run)
    return page


def open_page(browser: Browser, path: Path, viewport: dict[str, int]) -> tuple[Page, list[str]]:
    """The page, and a list that collects its console messages, exceptions and network requests."""
    page, faults = browser.new_page(viewport=viewport), []
    page.on(
        "console",
        lambda message: (
            faults.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    ours = ("file:", "data:", "blob:")
    page.on(
        "request",
        lambda request: None if request.url.startswith(ours) else faults.append(request.url),
    )
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelector('.stage .under').naturalWidth > 0")
    return page, faults


def over_left_edge(page: Page) -> float:
    """Left edge of the visible part of the upper picture, percent of the width."""
    return float(
        re.search(
            r"inset\(0(?:px)? 0(?:px)? 0(?:px)? ([\d.]+)%\)",
            page.eval_on_selector(".stage .over", "element => getComputedStyle(element).clipPath"),
        )[1]
    )


def loaded(page: Page, selector: str) -> list[bool]:
    page.wait_for_function(
        "selector => [...document.querySelectorAll(selector)].every(image => image.complete)",
        arg=selector,
    )
    return page.eval_on_selector_all(
        selector, "images => images.map(image => image.naturalWidth > 0)"
    )


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_evaluation_report_works(browser, evaluation, viewport):
    page, faults = open_page(browser, evaluation, viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], (
        "no sideways scrolling of the page"
    )

    box = page.locator(".stage").bounding_box()
    assert box["width"] > 300 and over_left_edge(page) == pytest.approx(50)
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 60, steps=3)
    page.mouse.up()
    assert over_left_edge(page) == pytest.approx(20, abs=1), "the slider follows the pointer"
    page.locator(".slide").focus()
    page.keyboard.press("ArrowRight")
    assert over_left_edge(page) > 20, "and the keyboard"

    errors = page.eval_on_selector_all(
        "#case option", "options => options.map(option => option.textContent.split(' ')[0])"
    )
    numbers = [float("inf") if error == "failed" else float(error) for error in errors]
    assert len(numbers) == 3 * 5 and numbers == sorted(numbers, reverse=True), "the worst first"
    charts = page.locator(".js-plotly-plot .main-svg").count()
    assert (
        charts >= 5
        and page.locator(".js-plotly-plot").first.bounding_box()["width"] <= viewport["width"]
    )
    assert not faults
    page.close()


@pytest.mark.browser
@needs_browser
def test_every_picture_of_every_pair_loads(browser, evaluation):
    page, faults = open_page(browser, evaluation, DESKTOP)
    for view in "1234":
        page.keyboard.press(view)
        for _ in range(3):
            page.keyboard.press("n")
            assert all(loaded(page, ".stage img:not([hidden])"))
    # Also the embedded pictures that are not shown.
    broken = page.evaluate("""async () => {
        const uris = Object.entries(JSON.parse(document.getElementById('images').textContent));
        const results = await Promise.all(uris.map(async ([name, uri]) => {
            const image = new Image(); image.src = uri;
            try { await image.decode(); return null; } catch { return name; } }));
        return [uris.length, results.filter(Boolean)]; }""")
    assert broken[0] > 3 * 5 and broken[1] == []
    assert not faults
    page.close()


@pytest.mark.browser
@needs_browser
def test_views_and_keys(browser, evaluation):
    page, faults = open_page(browser, evaluation, DESKTOP)

    def style(name: str) -> str:
        return page.eval_on_selector(".stage .over", f"element => getComputedStyle(element).{name}")

    assert page.locator("input[name=view]:checked").get_attribute("value") == "slider"
    page.keyboard.press("3")
    assert "conic-gradient" in style("maskImage") and style("clipPath") == "none"
    page.keyboard.press("2")
    assert style("maskImage") == "none"
    page.wait_for_function(
        "getComputedStyle(document.querySelector('.stage .over')).visibility === 'hidden'"
    )
    page.wait_for_function(
        "getComputedStyle(document.querySelector('.stage .over')).visibility === 'visible'"
    )
    first = page.locator("#caption").inner_text()
    page.keyboard.press("n")
    assert page.locator("#caption").inner_text() != first
    page.keyboard.press("p")
    assert page.locator("#caption").inner_text() == first
    page.keyboard.press("m")
    assert "identity" in page.locator("#caption").inner_text()
    page.keyboard.press("4")
    assert "no matches to show" in page.locator("#caption").inner_text()
    page.keyboard.press("m")
    page.keyboard.press("1")
    right = page.locator(".stage .tag.right")
    assert right.inner_text() == "oracle"
    page.keyboard.press("b")
    assert right.inner_text() == "not registered"
    assert "no weights" in page.locator("header").inner_text()
    assert not faults
    page.close()


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_training_report_works(browser, training, viewport):
    page, faults = open_page(browser, training, viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert loaded(page, "#strip img") == [True] * 3
    captions = page.locator("#strip figcaption").all_inner_texts()
    assert [caption.split(" mse")[0] for caption in captions] == [
        f"epoch {n} error {9 - n}.00" for n in range(3)
    ]
    page.select_option("#kind", "matches")
    assert loaded(page, "#strip img") == [True] * 3
    page.keyboard.press("Escape")
    page.locator(".slide").focus()
    page.keyboard.press("End")
    assert over_left_edge(page) == 100
    page.locator("body").click(position={"x": 2, "y": 2})
    page.keyboard.press("n")
    assert "failed (too few)" in page.locator("#caption").inner_text()
    assert page.locator(".js-plotly-plot").count() == 4, (
        "a chart for each group of figures that the run has"
    )
    assert not faults
    page.close()


def test_a_long_run_shows_its_first_and_last_epochs():
    assert pick_epochs([0, 1, 2]) == [0, 1, 2] and pick_epochs([]) == []
    chosen = pick_epochs(list(range(151)))
    assert len(chosen) == MAX_EPOCHS and chosen[0] == 0 and chosen[-1] == 150


def test_pair_lines_are_read_from_the_log(tmp_path):
    log = EpochLog(tmp_path / "validation_log.txt")
    log.write(
        3,
        "generated pairs: error = mean corner error\n"
        "cffa_1_A_000: error 1.50  mse 0.1  ok\n"
        "average: mse 0.1",
    )
    assert read_pair_lines(log.path) == {(3, "cffa_1_A_000"): "error 1.50 mse 0.1 ok"}
    assert read_pair_lines(tmp_path / "nothing.txt") == {}
