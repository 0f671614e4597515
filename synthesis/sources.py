"""Real pictures of one modality, found and read, from which whole samples are rendered."""

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
MASK_FOLDERS = {"cf": "masks", "octa": "labels"}
MIN_CLIP_PX = 64
VESSEL_WIDTHS_PX = (1.2, 2.0, 3.2)  # sigmas of the ridges looked for in an angiogram of FOUND_AT_PX
FOUND_AT_PX = 512


@dataclass(frozen=True)
class Source:
    """A real picture of one modality (``kind`` of ``SOURCE_KINDS``), and its vessel mask where it has one."""

    kind: str
    picture: Path
    mask: Path | None = None


def find_sources(kind: str, folder: Path) -> list[Source]:
    """The real pictures of one kind, in order of path.

    Args:
        kind: "cf" (``images`` and ``masks`` of the same stem), "octa" (``images`` and ``labels``) or "fa" (any pictures).
        folder: holds them, or folders that do.

    Raises:
        InputError: no such folder, nothing in it, or a picture without its mask.
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
    """Vessels of an angiogram: bright ridges that stand out of their surroundings and hang together.

    Args:
        angiogram: (H, W) in [0, 1].

    Returns:
        (H, W) bool; 5 to 8 % of the field in most angiograms.
    """
    height, width = angiogram.shape
    scale = FOUND_AT_PX / max(height, width)
    image = cv2.resize(angiogram, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    core = erode_field(estimate_field_of_view(image), 8)
    detail = image - blur(image, 16)
    spread = np.sqrt(blur(detail**2, 24)) + 0.02
    strength = np.where(core, _bright_ridges(image) / spread, 0)
    weak, strong = np.quantile(strength[core], (0.89, 0.95)) if core.any() else (0.0, 1.0)
    found = remove_small_objects(apply_hysteresis_threshold(strength, weak, strong), max_size=80)
    return (
        cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    )


def _bright_ridges(image: np.ndarray) -> np.ndarray:
    """(H, W) strength of bright lines over the scales of vessels, from the eigenvalues of the Hessian."""
    strength = np.zeros_like(image)
    for sigma in VESSEL_WIDTHS_PX:
        smooth = cv2.GaussianBlur(image, (0, 0), sigma)
        xx, yy = (cv2.Sobel(smooth, -1, *order, ksize=1) for order in ((2, 0), (0, 2)))
        xy = 0.25 * cv2.filter2D(
            smooth, -1, np.array([[1, 0, -1], [0, 0, 0], [-1, 0, 1]], np.float32)
        )
        root, half_trace = np.sqrt((0.5 * (xx - yy)) ** 2 + xy**2), 0.5 * (xx + yy)
        across, along = half_trace - root, half_trace + root
        strength = np.maximum(strength, sigma**2 * np.clip(-across - 0.5 * np.abs(along), 0, None))
    return strength


def _read_source(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The picture (H, W, 3) in [0, 1] and its vessels (H, W) bool."""
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
            f"{source.mask or source.picture}: shows no vessel; remove this image or correct its mask."
        )
    return picture, mask
