"""Landmarks placed on the review page in a browser, and how fast the page opens."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time

import cv2
import numpy as np
import pytest
from helpers import make_pair
from playwright.sync_api import Page
from review_helpers import (
    PHONE,
    WIDE,
    needs_browser,
    open_page,
    open_pair,
    running_review,
    true_points,
    write_results_folder,
)

from geometry.point_files import read_points
from geometry.transform_files import read_transform

pytestmark = [pytest.mark.browser, pytest.mark.slow, needs_browser]


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


def test_landmarks_that_are_not_saved_survive_the_end_of_the_server(browser, results):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = browser.new_context(viewport=WIDE)
    with running_review(results, "--port", port) as (address, server):
        page = context.new_page()
        page.goto(address)
        open_pair(page, "p1")
        page.keyboard.press("l")
        settle(page, 0, False)
        page.keyboard.press("p")
        page.keyboard.press("Space")
        settle(page, 0, True)
        page.keyboard.press("Enter")
        settle(page, 1, False)
        server.kill()
        server.wait()
    with running_review(results, "--port", port) as (address, _):
        again = context.new_page()
        again.goto(f"{address}#p1")
        again.wait_for_selector("#pair[data-ready=p1]")
        assert "not saved" in again.locator("#pair-status").inner_text()
        again.keyboard.press("l")
        settle(again, 1, False)
        again.keyboard.press("z")
        settle(again, 0, False)
    context.close()
