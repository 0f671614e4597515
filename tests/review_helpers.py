"""For the tests of the review page: small results folders, and servers as processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import make_pair
from playwright.sync_api import Browser, Page

from geometry.matrices import size_of_image
from geometry.transforms import MatrixTransform
from registration.pair_tables import RESULT_COLUMNS, RESULTS_NAME
from utils.image_files import write_image

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this system (`make browser` installs it where it may)"
)
ROOT = Path(__file__).resolve().parents[1]


def write_pair_of_results(
    out: Path, name: str, pair: tuple, confidence: float = 0.9, failed: str = ""
) -> dict[str, object]:
    """Write a pair as register.py would, with the true matrix or as failed. Returns its row."""
    fixed, moving, H = pair[:3]
    paths = [out / "images" / f"{name}_{role}.png" for role in ("cf", "fa")]
    for path, image in zip(paths, (fixed, moving), strict=True):
        write_image(path, image)
    sizes = [size_of_image(image) for image in (fixed, moving)]
    content = {
        "version": 2,
        "status": "failed" if failed else "ok",
        "reason": failed,
        "confidence": 0.0 if failed else confidence,
        "transform": None if failed else "affine",
        "fix_to_mov": None if failed else MatrixTransform(H).to_dict(),
        "H_fix_to_mov": None if failed else H.tolist(),
        **{
            role: {"path": str(path), "height": size[0], "width": size[1]}
            for role, path, size in zip(("fixed", "moving"), paths, sizes, strict=True)
        },
    }
    (out / "results" / name).mkdir(parents=True, exist_ok=True)
    (out / "results" / name / "transform.json").write_text(json.dumps(content))
    values = dict.fromkeys(RESULT_COLUMNS, "") | {
        "id": name,
        "status": content["status"],
        "reason": failed,
        "confidence": content["confidence"],
    }
    if not failed:
        values |= {f"h{i}{j}": repr(float(H[i, j])) for i in range(3) for j in range(3)}
    return values


def write_results_folder(
    out: Path,
    root: Path,
    names: Sequence[str],
    failed: Sequence[str] = (),
    fixed_suffix: str = "cf",
) -> Path:
    """A results folder of pairs of one eye with rising confidence. Returns the folder."""
    rows = []
    for index, name in enumerate(names):
        pair = make_pair(root / "1_A", fixed_suffix, "fa_gen", 8.0 + 3 * index, 0.95)
        reason = "only 4 matches" if name in failed else ""
        rows.append(write_pair_of_results(out, name, pair, 0.5 + 0.1 * index, reason))
    write_table(out / "results" / RESULTS_NAME, rows)
    return out / "results"


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write results.csv with a column that the page does not know."""
    lines = [",".join([*RESULT_COLUMNS, "camera"])]
    lines += [",".join([*(str(row[name]) for name in RESULT_COLUMNS), "A"]) for row in rows]
    path.write_text("\n".join(lines) + "\n")


@contextmanager
def running_review(folder: Path, *options: object) -> Iterator[tuple[str, subprocess.Popen]]:
    """``review.py`` as a process. Yields the address of its page, and the process."""
    process = subprocess.Popen(
        [sys.executable, "review.py", str(folder), "--no_browser", *map(str, options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
    )
    try:
        assert process.stdout is not None
        address = ""
        for line in process.stdout:
            if found := re.search(r"http://\S+", line):
                address = found[0]
                break
        assert address, "review.py printed no address"
        yield address, process
    finally:
        process.kill()
        process.wait()


def true_points(H_fix_to_mov: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Moving pixels of fixed pixels (N, 2) under a matrix (3, 3)."""
    return MatrixTransform(H_fix_to_mov).map(points)


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


def open_pair(page: Page, name: str) -> None:
    page.locator(f"#cards article[data-id='{name}'] img").click()
    page.wait_for_selector(f"#pair[data-ready='{name}']")
