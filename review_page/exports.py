"""What leaves the page as a file: a table, contact sheets, a flicker."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from registration.pair_tables import MATRIX_COLUMNS
from review_page.rendering import draw_thumbnail, registered_small
from review_page.report_page import accepted, describe
from review_page.review_set import ReviewItem, read_json
from review_page.verdicts import Verdict
from review_page.workspace import Workspace
from utils.errors import InputError

ACCEPTED_COLUMNS = (
    "id",
    "verdict",
    "note",
    "source",
    "confidence",
    "kind",
    *MATRIX_COLUMNS,
    "fixed",
    "moving",
)
# A page of A4 at 150 dpi, pixels.
PAGE_SIZE = (1240, 1754)
COLUMNS, ROWS = 4, 5
MARGIN_PX, CAPTION_PX = 40, 60
MAX_PNG_PAIRS = 400  # one picture; more belong into a PDF
FLICKER_PX, FLICKER_MS = 800, 500  # long side; time of either image
FLICKERS = {"gif": "GIF", "webp": "WEBP"}


def accepted_csv(workspace: Workspace) -> str:
    """The accepted pairs with their matrices, as CSV.

    The matrix of a curved transform is the affine one that it refines, as in results.csv.

    Args:
        workspace: pairs and verdicts.

    Raises:
        InputError: no accepted pair.
    """
    verdicts = workspace.verdicts.read()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ACCEPTED_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for item in accepted(workspace):
        verdict = verdicts.get(item.id, Verdict())
        writer.writerow(
            {
                "id": item.id,
                "verdict": verdict.verdict,
                "note": verdict.note,
                "source": item.source,
                "confidence": "" if item.confidence is None else item.confidence,
                "kind": item.kind,
                **_matrix_of(item),
                "fixed": item.fixed or "",
                "moving": item.moving or "",
            }
        )
    return buffer.getvalue()


def _matrix_of(item: ReviewItem) -> dict[str, str]:
    """The matrix of ``transform.json`` by the names of its columns; empty without."""
    path = item.transform_path
    if item.status != "ok" or path is None or not path.is_file():
        return {}
    H = read_json(path).get("H_fix_to_mov")
    try:
        values = [repr(float(value)) for row in H or [] for value in row]
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: H_fix_to_mov is no matrix; register the pair again.") from error
    return dict(zip(MATRIX_COLUMNS, values, strict=True)) if values else {}


def contact_sheet(workspace: Workspace, kind: str) -> bytes:
    """Checkerboards of the accepted pairs, as pages of a PDF or as one PNG.

    Args:
        workspace: pairs and verdicts.
        kind: "pdf" or "png".

    Raises:
        InputError: no accepted pair, or too many for one picture.
    """
    items = accepted(workspace)
    if kind == "png" and len(items) > MAX_PNG_PAIRS:
        raise InputError(f"{len(items)} pairs; one picture holds {MAX_PNG_PAIRS}. Take the PDF.")
    rows = math.ceil(len(items) / COLUMNS) if kind == "png" else ROWS
    per_page = rows * COLUMNS
    pages = [
        _sheet(workspace, items[start : start + per_page], rows)
        for start in range(0, len(items), per_page)
    ]
    buffer = io.BytesIO()
    if kind == "pdf":
        pages[0].save(buffer, "PDF", resolution=150, save_all=True, append_images=pages[1:])
    else:
        pages[0].save(buffer, "PNG")
    return buffer.getvalue()


def _sheet(workspace: Workspace, items: list[ReviewItem], rows: int) -> Image.Image:
    """One page with a grid of checkerboards and captions."""
    width = (PAGE_SIZE[0] - 2 * MARGIN_PX) // COLUMNS
    height = (PAGE_SIZE[1] - 2 * MARGIN_PX) // ROWS
    page = Image.new("RGB", (PAGE_SIZE[0], 2 * MARGIN_PX + rows * height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for index, item in enumerate(items):
        left = MARGIN_PX + index % COLUMNS * width
        top = MARGIN_PX + index // COLUMNS * height
        note = workspace.verdicts.read().get(item.id, Verdict()).note
        try:
            pair = workspace.open(item.id)
            transform = workspace.current_transform(pair)
            picture = Image.fromarray(draw_thumbnail(pair.fixed, pair.moving, transform))
            picture.thumbnail((width - 12, height - CAPTION_PX - 8))
            page.paste(picture, (left, top))
            lines = [item.id, describe(item), note]
        except InputError as error:
            lines = [item.id, str(error), note]
        for number, line in enumerate(lines):
            place = (left, top + height - CAPTION_PX + 18 * number - 4)
            pen.text(place, _shortened(line, font, width - 12), "black", font)
    return page


def _shortened(text: str, font: Any, width_px: int) -> str:
    """A line that fits; signs that the font lacks become boxes."""
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1]
    return text + "…"


def flicker(workspace: Workspace, identity: str, kind: str) -> bytes:
    """Fixed and registered image in turn, as an animation.

    Args:
        workspace: pairs and images.
        identity: id of the pair.
        kind: "gif" or "webp".

    Raises:
        InputError: the pair has no transform, or an image cannot be read.
    """
    pair = workspace.open(identity)
    transform = workspace.current_transform(pair)
    if transform is None:
        raise InputError(f"{identity}: has no transform; place landmarks first.")
    images = registered_small(pair.fixed, pair.moving, transform, FLICKER_PX)
    first, second = (Image.fromarray(image) for image in images)
    buffer = io.BytesIO()
    options = {"quality": 85} if kind == "webp" else {}
    first.save(
        buffer,
        FLICKERS[kind],
        save_all=True,
        append_images=[second],
        duration=FLICKER_MS,
        loop=0,
        **options,
    )
    return buffer.getvalue()
