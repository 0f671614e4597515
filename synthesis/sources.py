"""Real images of one modality, found and read; the other modalities are rendered onto them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from skimage.filters import apply_hysteresis_threshold
from skimage.morphology import remove_small_objects

from geometry.field_of_view import erode_field, estimate_field_of_view
from synthesis.scene import blur
from utils.errors import InputError
from utils.image_files import IMAGE_SUFFIXES, read_color, read_mask

SOURCE_KINDS = ("cf", "fa", "octa")
MASK_FOLDERS = {"cf": "masks", "octa": "labels"}  # beside the folder ``images``
DETECTION_SIDE_PX = 512  # long side at which vessels of an angiogram are detected
RIDGE_SIGMAS_PX = (1.2, 2.0, 3.2)  # scales of the ridge filter at DETECTION_SIDE_PX
MIN_RIDGE_PX = 80  # smaller connected ridges are removed, pixels at DETECTION_SIDE_PX


@dataclass(frozen=True)
class Source:
    """A real image of one modality.

    Attributes:
        kind: one of ``SOURCE_KINDS``.
        picture: image file.
        mask: vessel mask file; None for an angiogram, whose vessels are detected.
    """

    kind: str
    picture: Path
    mask: Path | None = None


def find_sources(kind: str, folder: Path) -> list[Source]:
    """Find the real images of one kind, in order of path.

    Args:
        kind: "cf" (``images`` and ``masks`` with equal file stems), "octa" (``images`` and
            ``labels``) or "fa" (any images).
        folder: holds them, or folders that do.

    Raises:
        InputError: no such folder, no image in it, or an image without its mask.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of {kind.upper()} pictures.")
    if kind == "fa":
        sources = [
            Source(kind, path)
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
    else:
        sources = _find_masked(kind, folder)
    if not sources:
        wanted = (
            "pictures"
            if kind == "fa"
            else f"images/ with pictures and {MASK_FOLDERS[kind]}/, here or one folder below"
        )
        raise InputError(f"{folder}: no {wanted}.")
    return sources


def _find_masked(kind: str, folder: Path) -> list[Source]:
    """Images with masks, in ``folder`` or in the folders directly below it."""
    sets = (
        [folder]
        if (folder / "images").is_dir()
        else sorted(p.parent for p in folder.glob("*/images"))
    )
    sources = []
    for one in sets:
        mask_folder = one / MASK_FOLDERS[kind]
        masks = {
            p.stem: p for p in sorted(mask_folder.glob("*")) if p.suffix.lower() in IMAGE_SUFFIXES
        }
        for image in sorted(
            p for p in (one / "images").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES
        ):
            if image.stem not in masks:
                raise InputError(
                    f"{image}: no vessel mask of that name in {mask_folder}; add it or remove this."
                )
            sources.append(Source(kind, image, masks[image.stem]))
    return sources


def find_bright_vessels(angiogram: np.ndarray) -> np.ndarray:
    """Detect the vessels of an angiogram: ridge strength over local contrast, hysteresis threshold.

    Args:
        angiogram: (H, W) float32 in [0, 1].

    Returns:
        (H, W) bool; 5 to 8 % of the field in most angiograms.
    """
    height, width = angiogram.shape
    scale = DETECTION_SIDE_PX / max(height, width)
    image = cv2.resize(angiogram, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    core = erode_field(estimate_field_of_view(image), 8)
    detail = image - blur(image, 16)
    spread = np.sqrt(blur(detail**2, 24)) + 0.02
    strength = np.where(core, _bright_ridges(image) / spread, 0)
    weak, strong = np.quantile(strength[core], (0.89, 0.95)) if core.any() else (0.0, 1.0)
    found = apply_hysteresis_threshold(strength, weak, strong)
    found = remove_small_objects(found, max_size=MIN_RIDGE_PX)
    return (
        cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    )


def _bright_ridges(image: np.ndarray) -> np.ndarray:
    """(H, W) largest ridge strength over all scales, from the eigenvalues of the Hessian."""
    strength = np.zeros_like(image)
    for sigma in RIDGE_SIGMAS_PX:
        smooth = cv2.GaussianBlur(image, (0, 0), sigma)
        xx = cv2.Sobel(smooth, -1, 2, 0, ksize=1)
        yy = cv2.Sobel(smooth, -1, 0, 2, ksize=1)
        xy = 0.25 * cv2.filter2D(
            smooth, -1, np.array([[1, 0, -1], [0, 0, 0], [-1, 0, 1]], np.float32)
        )
        root, half_trace = np.sqrt((0.5 * (xx - yy)) ** 2 + xy**2), 0.5 * (xx + yy)
        across, along = half_trace - root, half_trace + root
        strength = np.maximum(strength, sigma**2 * np.clip(-across - 0.5 * np.abs(along), 0, None))
    return strength


def read_source(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Read a real image and its vessels.

    Returns:
        (H, W, 3) RGB float32 in [0, 1], and (H, W) bool, True on vessels.

    Raises:
        InputError: an unreadable file, a mask of another size, or no vessel.
    """
    picture = read_color(source.picture)
    if source.mask is None:
        mask = find_bright_vessels(picture[..., 1])
    else:
        mask = read_mask(source.mask)
        if mask.shape != picture.shape[:2]:
            raise InputError(
                f"{source.mask}: {mask.shape[::-1]} px, but {source.picture.name} has "
                f"{picture.shape[1::-1]} px; they must be aligned."
            )
    if not mask.any():
        raise InputError(
            f"{source.mask or source.picture}: shows no vessel; remove this image or correct its "
            "mask."
        )
    return picture, mask
