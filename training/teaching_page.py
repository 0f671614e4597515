"""``teaching/`` in the run folder: which real pairs teach, as a table and as a page with pictures.

``pairs.csv`` has one row per pair; ``index.html`` shows a small picture of each: the checkerboard
of a registered pair, cropped to what both images show, or both images side by side. The pictures
are files of their own, loaded when they are scrolled to, and written again only after a new
decision about the pair.
"""

from __future__ import annotations

import csv
import io
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from geometry.matrices import fit_within, resize_matrix, size_of_image
from geometry.rasters import register_onto_fixed
from geometry.transform_dicts import transform_from_dict
from geometry.transforms import Transform
from pictures.drawing import as_rgb, checkerboard
from pictures.pages import ImageStore, write_page
from training.teaching_set import ACCEPTED, LEFT, REFUSED, STATUSES, TeachingRecord
from utils.errors import InputError
from utils.files import write_bytes_atomically, write_text_atomically
from utils.image_files import read_gray, resize_image

FOLDER = "teaching"  # in the run folder
PICTURES = "pictures"  # in FOLDER
THUMBNAIL_PX = 224  # long side of a picture; chosen by hand: vessels can be followed
DRAWING_PX = 512  # long side of the fixed image before the crop
CELLS = 6  # squares of a checkerboard along the long side
JPEG_QUALITY = 40  # 3 to 11 kB for a picture
COLUMNS = (
    "number",
    "key",
    "form",
    "status",
    "reason",
    "confidence",
    "disagreement_px",
    "kind",
    "tolerance_file_px",
    "epoch",
    "tries",
    "views",
    "right_share",
)
SECTIONS = {
    ACCEPTED: ("Accepted", "These pairs teach. Vessels must be continuous across the squares."),
    REFUSED: ("Refused", "Not registered reliably; tried again later. Fixed image on the left."),
    LEFT: ("Left", "Taken out, because the matches of the network kept disagreeing."),
}


def write_teaching_page(
    run_dir: Path,
    records: Iterable[TeachingRecord],
    images: Mapping[str, tuple[Path, Path]],
) -> None:
    """Write table, page and pictures, each atomically.

    Args:
        run_dir: folder of the run.
        records: of all real pairs.
        images: files of the fixed and the moving image of each pair, by key.
    """
    folder, records = run_dir / FOLDER, list(records)
    rows = [_row(number, record) for number, record in enumerate(records, start=1)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(folder / "pairs.csv", buffer.getvalue())
    entries = [
        {"group": record.group, "text": _text(row), **row, **_picture(folder, record, images)}
        for row, record in zip(rows, records, strict=True)
        if record.group in SECTIONS
    ]
    sections = [
        (title, hint, [entry for entry in entries if entry["group"] == group])
        for group, (title, hint) in SECTIONS.items()
    ]
    counts = [(group, sum(record.group == group for record in records)) for group in STATUSES]
    write_page(
        folder / "index.html",
        "teaching.html.j2",
        ImageStore(),
        [],
        title="Real pairs of the training",
        sections=sections,
        counts=counts,
    )
    _remove_stale(folder / PICTURES, {entry["file"] for entry in entries})


def _row(number: int, record: TeachingRecord) -> dict[str, Any]:
    """A row of ``pairs.csv``; unknown values are empty."""

    def known(value: float, digits: int) -> str:
        return f"{value:.{digits}f}" if math.isfinite(value) else ""

    return {
        "number": number,
        "key": record.key,
        "form": record.form,
        "status": record.group,
        "reason": record.reason,
        "confidence": known(record.confidence, 3),
        "disagreement_px": known(record.disagreement_px, 2),
        "kind": "" if record.transform is None else record.transform["kind"],
        "tolerance_file_px": known(record.tolerance_file_px, 2),
        "epoch": record.epoch,
        "tries": record.tries,
        "views": record.views,
        "right_share": known(record.evidence.share, 4) if record.evidence.views else "",
    }


def _text(row: dict[str, Any]) -> str:
    """The figures of a pair in words, for its caption."""
    parts = [row["form"], row["kind"]]
    parts += [f"confidence {row['confidence']}"] if row["confidence"] else []
    parts += [f"disagreement {row['disagreement_px']} px"] if row["disagreement_px"] else []
    parts += [f"tolerance {row['tolerance_file_px']} px"] if row["tolerance_file_px"] else []
    parts += [f"epoch {row['epoch']}"]
    parts += [f"{row['views']} views"] if row["views"] else []
    parts += [f"{100 * float(row['right_share']):.1f} % right"] if row["right_share"] else []
    return ", ".join(part for part in parts if part)


def _picture(
    folder: Path, record: TeachingRecord, images: Mapping[str, tuple[Path, Path]]
) -> dict[str, str]:
    """Draw the picture of a pair, unless it was drawn since the last decision.

    Returns:
        ``file``, its name; ``link`` to it, "" if an image cannot be read; ``problem``, why.
    """
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", record.key)[:80]
    name = f"{plain}_{zlib.crc32(record.key.encode()):08x}_{record.group}_{record.epoch}.jpg"
    path = folder / PICTURES / name
    if not path.is_file():
        transform = None if record.transform is None else transform_from_dict(record.transform)
        try:
            fixed, moving = (read_gray(image) for image in images[record.key])
        except InputError as error:
            return {"file": name, "link": "", "problem": str(error)}
        picture = draw_pair(fixed, moving, transform)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        write_bytes_atomically(path, cv2.imencode(".jpg", picture, quality)[1].tobytes())
    return {"file": name, "link": quote(f"{PICTURES}/{name}"), "problem": ""}


def draw_pair(fixed: np.ndarray, moving: np.ndarray, transform: Transform | None) -> np.ndarray:
    """A small grey picture of a pair.

    Args:
        fixed, moving: (H, W) float in [0, 1].
        transform: fixed to moving pixels; the pair is shown as a checkerboard, cropped to the
            overlap. None shows both images side by side.

    Returns:
        (h, w) uint8, of at most ``THUMBNAIL_PX`` along the long side.
    """
    if transform is None:
        halves = [_fitted(image, THUMBNAIL_PX // 2) for image in (fixed, moving)]
        canvas = np.zeros((max(len(image) for image in halves), THUMBNAIL_PX), np.float32)
        for index, image in enumerate(halves):
            left = index * (THUMBNAIL_PX // 2)
            canvas[: image.shape[0], left : left + image.shape[1]] = image
        return as_rgb(canvas)[..., 0]
    small = _fitted(fixed, DRAWING_PX)
    own, size = size_of_image(fixed), size_of_image(small)
    transform = transform.rescaled(resize_matrix(size, own), np.eye(3))
    # One more channel tells where the moving image is.
    rasters = np.stack([moving, np.ones_like(moving)], axis=-1)
    registered, inside = np.moveaxis(register_onto_fixed(rasters, transform, size), -1, 0)
    rows, columns = np.flatnonzero((inside > 0.5).any(1)), np.flatnonzero((inside > 0.5).any(0))
    if len(rows):
        crop = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        small, registered = small[crop], registered[crop]
    pair = _fitted(small, THUMBNAIL_PX), _fitted(registered, THUMBNAIL_PX)
    return checkerboard(*pair, cells=CELLS)[..., 0]


def _fitted(image: np.ndarray, long_side: int) -> np.ndarray:
    """An image (H, W) resized to a long side, pixels, and stretched to the grey values [0, 1]."""
    resized = resize_image(image, fit_within(size_of_image(image), long_side))
    low, high = np.percentile(resized, (1, 99))
    return np.clip((resized - low) / max(float(high - low), 1e-3), 0.0, 1.0).astype(np.float32)


def _remove_stale(folder: Path, wanted: set[str]) -> None:
    """Remove pictures of earlier decisions."""
    for path in folder.glob("*.jpg"):
        if path.name not in wanted:
            path.unlink()
