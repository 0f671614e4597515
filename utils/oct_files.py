"""Images in the exports of OCT devices: the scanning-laser photograph and the en-face projection.

Read with eyepy (requirements-oct.txt), an optional package. Only pixels, sizes and the side of the
body are taken from it; these files also hold names and birth dates.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.errors import InputError
from utils.stored_image import Spacing, StoredImage, as_storable, usable_spacing

READERS = {
    ".vol": "import_heyex_vol",
    ".e2e": "import_heyex_e2e",
    ".fda": "import_topcon_fda",
}
SLO, ENFACE = "slo", "enface"
SIDES = {"OD": "R", "OS": "L", "R": "R", "L": "L"}
INSTALL = "pip install -r requirements-oct.txt"


def is_oct_export(path: Path) -> bool:
    """Whether a file is the export of an OCT device, by its name.

    Args:
        path: of the file.
    """
    return path.suffix.lower() in READERS


def read_oct_export(path: Path, selector: str) -> StoredImage:
    """Read the photograph or the en-face projection of an OCT volume.

    Args:
        path: of the export.
        selector: "slo" or "enface"; "" where the path has none.

    Raises:
        InputError: eyepy is not installed, an unreadable file, or no image chosen.
    """
    if selector not in (SLO, ENFACE):
        raise InputError(
            f"{path}: holds a photograph and an OCT volume; choose {path}#{SLO} or {path}#{ENFACE} "
            "(the mean of the volume along its depth)."
        )
    volume = _read_volume(path)
    try:
        image = _photograph(volume) if selector == SLO else _projection(volume)
        side = SIDES.get(str(volume.laterality).strip("\0 ").upper(), "")
    # The reader's objects compute on demand, so a damaged file can raise any exception here.
    except Exception as error:
        raise _unreadable(path, error) from None
    kind = {"format": path.suffix.lower().lstrip("."), "image": selector}
    return StoredImage(*image, side, kind)


def _read_volume(path: Path) -> Any:
    """The volume, as eyepy reads it."""
    try:
        import eyepy  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise InputError(
            f"{path}: exports of OCT devices need eyepy; install it with `{INSTALL}`."
        ) from error
    logger = logging.getLogger("eyepy")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL)
            return getattr(eyepy, READERS[path.suffix.lower()])(path)
    except ImportError as error:
        raise InputError(
            f"{path}: this format needs a further package; see {INSTALL.split()[-1]}."
        ) from error
    # ``from None``, because the reader's messages may quote the header.
    except Exception as error:
        raise _unreadable(path, error) from None
    finally:
        logger.setLevel(level)


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: not a readable OCT export ({type(error).__name__}); export it again, or the "
        "image as PNG or TIFF."
    )


def _photograph(volume: Any) -> tuple[np.ndarray, Spacing | None]:
    """The photograph (H, W) that shows where the scans lie, and the size of its pixels."""
    pixels = as_storable(np.asarray(volume.localizer.data))
    localizer = volume.localizer
    in_mm = str(localizer.scale_unit) == "mm"
    return pixels, usable_spacing(localizer.scale_x, localizer.scale_y) if in_mm else None


def _projection(volume: Any) -> tuple[np.ndarray, Spacing | None]:
    """The mean along the depth as a picture of square pixels, oriented as the photograph.

    eyepy counts scans from the bottom; where the file counts them from the top, its transform to
    the photograph mirrors the picture.

    Returns:
        (H, W) uint8, and the size of a pixel.
    """
    mean = np.flipud(np.nanmean(volume.data.astype(np.float32), axis=1))
    if np.linalg.det(np.asarray(volume.localizer_transform.params)[:2, :2]) < 0.0:
        mean = np.flipud(mean)
    low, high = np.nanpercentile(mean, [0.1, 99.9])
    picture = np.clip((mean - low) / max(high - low, 1e-9), 0.0, 1.0)
    across_mm, between_mm = float(volume.scale_x), float(volume.scale_z)
    if across_mm > 0.0 < between_mm:
        height = max(1, round(picture.shape[0] * between_mm / across_mm))
        picture = cv2.resize(picture, (picture.shape[1], height), interpolation=cv2.INTER_LINEAR)
    spacing = usable_spacing(across_mm, across_mm) if str(volume.scale_unit) == "mm" else None
    return (np.nan_to_num(picture) * 255.0 + 0.5).astype(np.uint8), spacing
