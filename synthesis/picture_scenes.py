"""Samples from real images: one modality is real, the others are rendered onto its vessels.

A photograph or an OCTA comes with a vessel mask; the vessels of an angiogram are detected
(:func:`synthesis.sources.find_bright_vessels`). Training thus contains real images and real anatomy
without any real pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from skimage.morphology import skeletonize

from geometry.field_of_view import estimate_field_of_view
from synthesis.angiogram import render_fa
from synthesis.colour_fundus import render_cf
from synthesis.lesions import draw_lesions, rasterise_lesions
from synthesis.oct_scan import render_oct, render_octa
from synthesis.scene import FULL_DEPTH_DD, Scene, blur, fractal_noise
from synthesis.sources import Source, read_source
from synthesis.vessel_drawing import View, draw_vessels
from synthesis.vessel_growth import grow_twigs

MIN_CLIP_PX = 64  # least side of a clip about the fovea, pixels of the real image
MIN_COVERAGE = 0.35  # of a resampled mask, to count as vessel; keeps thin vessels connected


@dataclass(frozen=True)
class Landmarks:
    """Estimated anatomy of an image.

    Attributes:
        disc, fovea: (2,) centres, pixels (x, y).
        px_per_dd: magnification, pixels per disc diameter.
    """

    disc: np.ndarray
    fovea: np.ndarray
    px_per_dd: float

    def moved(self, corner: np.ndarray, scale: float) -> Landmarks:
        """The same in a resized crop.

        Args:
            corner: (2,), pixel (x, y) of this image that is the first of the crop.
            scale: crop pixels to pixels of the resized crop.
        """
        disc, fovea = ((point - corner + 0.5) * scale - 0.5 for point in (self.disc, self.fovea))
        return Landmarks(disc, fovea, self.px_per_dd * scale)


def find_field(photograph: np.ndarray) -> np.ndarray:
    """Field of view of a photograph (H, W, 3) in [0, 1]: its largest region that is not black.

    Returns:
        (H, W) float32, 0 or 1; all 1 where no region is found.
    """
    lit = (photograph.max(axis=2) > 0.06).astype(np.uint8)
    lit = cv2.morphologyEx(lit, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(lit)
    if count < 2:
        return np.ones(lit.shape, np.float32)
    return (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.float32)


def background_of(photograph: np.ndarray, usable: np.ndarray, sigma: float) -> np.ndarray:
    """Smoothed brightness of a photograph, by normalised convolution.

    Args:
        photograph: (H, W, 3) RGB in [0, 1].
        usable: (H, W) weights in [0, 1].
        sigma: standard deviation of the Gaussian, pixels.

    Returns:
        (H, W), mean of red and green.
    """
    level = photograph[..., :2].mean(axis=2)
    weight = blur(usable, sigma)
    return blur(level * usable, sigma) / np.maximum(weight, 1e-3)


def find_landmarks(photograph: np.ndarray, mask: np.ndarray) -> Landmarks:
    """Estimate disc, fovea and magnification of an image.

    The disc is bright and has the widest vessels; the fovea is dark, without vessels, and about 2.5
    disc diameters beside the disc. Errors change the rendering of disc and macula only, never the
    alignment of the images.

    Args:
        photograph: (H, W, 3) RGB in [0, 1].
        mask: (H, W) bool, vessels.
    """
    field = find_field(photograph)
    side = max(mask.shape)
    calibre = 2 * cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    # The widest vessels measure about 0.1 disc diameters; fields of 28 to 55 degrees are allowed.
    widest = np.percentile(calibre[mask], 98) if mask.any() else 0.0
    px_per_dd = float(np.clip(widest / 0.1, side / 10, side / 5.6))
    well_inside = cv2.erode(field, np.ones((int(0.5 * px_per_dd),) * 2), borderValue=0)
    local = background_of(photograph, field, 0.25 * px_per_dd) - background_of(
        photograph, field, 1.5 * px_per_dd
    )
    meeting = blur(calibre, 0.4 * px_per_dd)
    score = local / (local.std() + 1e-6) + 1.5 * meeting / (meeting.std() + 1e-6)
    disc = _place_of_maximum(np.where(well_inside > 0, score, -np.inf))
    x, y = np.meshgrid(np.arange(mask.shape[1]), np.arange(mask.shape[0]))
    across, down = (x - disc[0]) / px_per_dd, (y - disc[1]) / px_per_dd
    expected = ((np.abs(across) - 2.5) / 0.5) ** 2 + ((down - 0.2) / 0.5) ** 2
    bare = -local / (local.std() + 1e-6) - meeting / (meeting.std() + 1e-6) - expected
    fovea = _place_of_maximum(np.where(well_inside > 0, bare, -np.inf))
    return Landmarks(disc, fovea, px_per_dd)


def _place_of_maximum(values: np.ndarray) -> np.ndarray:
    """Pixel (x, y) of the largest value of a raster (H, W): (2,) float64."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return np.array([column, row], float)


def split_arteries_veins(paleness: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Label vessel segments whose mean paleness is above the median as arteries.

    A segment is a piece of centre line between junctions; all its pixels get the same label.

    Args:
        paleness: (H, W), larger in arteries.
        mask: (H, W) bool, vessels.

    Returns:
        (H, W) bool, True on arteries.
    """
    line = skeletonize(mask)
    neighbours = cv2.filter2D(
        line.astype(np.float32), -1, np.ones((3, 3), np.float32), borderType=cv2.BORDER_CONSTANT
    )
    junction = (
        cv2.dilate((line & (neighbours > 3.5)).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    )
    count, label = cv2.connectedComponents((line & ~junction).astype(np.uint8), connectivity=8)
    if count < 3:
        return np.zeros_like(mask)
    length = np.bincount(label.ravel(), minlength=count)
    mean = np.bincount(label.ravel(), paleness.ravel(), minlength=count) / np.maximum(length, 1)
    artery = mean > np.median(mean[1:])
    artery[0] = False
    _, nearest = cv2.distanceTransformWithLabels(
        (label == 0).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_pixel = np.zeros(nearest.max() + 1, bool)
    of_pixel[nearest[label > 0]] = artery[label[label > 0]]
    return of_pixel[nearest] & mask


def draw_between(
    mask: np.ndarray, view: View, marks: Landmarks, avascular: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw procedural thin vessels that branch from those of the mask; visible in FA and OCTA only.

    Args:
        mask: (size, size) bool, vessels.
        view: projection of the retina into the image.
        marks: in pixels of the image.
        avascular: radius of the avascular zone, disc diameters.
        rng: draws the growth.

    Returns:
        (size, size) float32 coverage in [0, 1].
    """
    rows, columns = np.nonzero(skeletonize(mask))
    every = max(1, int(0.1 * marks.px_per_dd))
    chosen = rng.permutation(len(rows))[::every]
    lines = (np.column_stack([columns, rows])[chosen] - marks.disc) / marks.px_per_dd
    twigs = grow_twigs(lines, (marks.fovea - marks.disc) / marks.px_per_dd, avascular, rng)
    return draw_vessels(twigs, view, widths_px=(1e-6, np.inf))


def picture_scene(
    picture: np.ndarray, coverage: np.ndarray, marks: Landmarks, kind: str, rng: np.random.Generator
) -> Scene:
    """Reconstruct the scene of a square real image.

    Args:
        picture: (size, size, 3) RGB in [0, 1].
        coverage: (size, size) resampled vessel mask in [0, 1].
        marks: in pixels of this image.
        kind: one of ``SOURCE_KINDS``. Only in a photograph do grey values distinguish arteries from
            veins and give the slow variation of the fundus; otherwise both are random.
        rng: draws what the image does not determine: avascular zone, thin vessels, lesions.
    """
    size, mask = len(coverage), coverage >= MIN_COVERAGE
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    half_width = cv2.dilate(depth, np.ones((9, 9), np.uint8))
    core = ((depth > 0.6 * half_width) & (half_width > 1.2)).astype(np.float32)
    column = np.clip(2 * half_width / (FULL_DEPTH_DD * marks.px_per_dd), 0.125, 1)
    field = _field_of(picture, kind)
    background, paleness = _background_and_paleness(picture, coverage, field, marks, kind, rng)
    artery = blur(split_arteries_veins(paleness, mask).astype(np.float32), 1.0)
    artery_share = np.clip(artery / np.maximum(blur(mask.astype(np.float32), 1.0), 1e-3), 0, 1)
    spots = {
        lesion: table
        for lesion, table in draw_lesions((marks.fovea - marks.disc) / marks.px_per_dd, rng).items()
        if lesion in ("leakage", "non_perfusion")
    }
    view = View(((size - 1) / 2 - marks.disc) / marks.px_per_dd, marks.px_per_dd, size, 0.0)
    avascular = rng.uniform(0.18, 0.34)
    fine = draw_between(mask, view, marks, avascular, rng) * field
    return Scene(
        px_per_dd=marks.px_per_dd,
        disc=marks.disc,
        disc_axes=np.full(2, 0.5 * marks.px_per_dd),
        fovea=marks.fovea,
        avascular_radius=avascular * marks.px_per_dd,
        artery=coverage * artery_share,
        vein=coverage * (1 - artery_share),
        artery_core=core * artery_share,
        vein_core=core * (1 - artery_share),
        fine=fine,
        depth=column,
        seg=mask,
        field=field,
        background=background,
        lesions=rasterise_lesions(spots, view, rng),
    )


def _background_and_paleness(
    picture: np.ndarray,
    coverage: np.ndarray,
    field: np.ndarray,
    marks: Landmarks,
    kind: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Background of the scene, and the values by which arteries are told from veins.

    Both are (size, size); see :class:`Scene` and :func:`split_arteries_veins`.
    """
    size = len(coverage)
    noise = fractal_noise(rng, size, size / (2.5 * marks.px_per_dd), 3)
    if kind != "cf":
        return noise, rng.standard_normal((size, size), dtype=np.float32)
    no_vessels = field * (1 - cv2.dilate(coverage, np.ones((3, 3))))
    slow = background_of(picture, no_vessels, 0.12 * marks.px_per_dd)
    slow = (slow - slow[field > 0].mean()) / (slow[field > 0].std() + 1e-6) * field
    return 0.6 * slow + 0.8 * noise, picture[..., 1] - blur(picture[..., 1], 0.03 * size)


def source_pictures(
    source: Source, size: int, rngs: dict[str, np.random.Generator]
) -> dict[str, np.ndarray]:
    """All images of one folder: the real image unchanged but for its size, the others rendered.

    A photograph or angiogram gives the whole field and a clip about the fovea; an OCTA is a clip.

    Args:
        source: the real image.
        size: side of the square results, pixels.
        rngs: generators for "scene", "cf", "fa", "oct", "octa".

    Returns:
        Role (see :func:`synthesis.eyes.file_names`) to (size, size) or (size, size, 3) float32 in
        [0, 1]; masks are (size, size) bool.

    Raises:
        InputError: a mask of another size, or without a vessel.
    """
    picture, mask = read_source(source)
    if source.kind == "octa":
        return _rendered(source, "_clip", picture, mask, _octa_landmarks(picture), None, size, rngs)
    marks = find_landmarks(picture, mask)
    height, width = mask.shape
    side = max(height, width)
    corner = (np.array([width, height]) - side) // 2
    pictures = _rendered(source, "", picture, mask, marks, (corner, side), size, rngs)
    side = int(
        np.clip(rngs["scene"].uniform(3.0, 4.6) * marks.px_per_dd, MIN_CLIP_PX, min(height, width))
    )
    corner = np.clip(marks.fovea - side / 2, 0, np.array([width, height]) - side).astype(int)
    return pictures | _rendered(source, "_clip", picture, mask, marks, (corner, side), size, rngs)


def _octa_landmarks(picture: np.ndarray) -> Landmarks:
    """Landmarks of a macular OCTA: fovea in the middle, disc outside, 4 disc diameters wide."""
    height, width = picture.shape[:2]
    px_per_dd = max(height, width) / 4.0
    fovea = np.array([(width - 1) / 2, (height - 1) / 2])
    return Landmarks(fovea - np.array([2.6 * px_per_dd, 0.0]), fovea, px_per_dd)


def _field_of(picture: np.ndarray, kind: str) -> np.ndarray:
    """Field of view of a real image (size, size, 3): (size, size) float32, 0 or 1."""
    if kind == "octa":
        return np.ones(picture.shape[:2], np.float32)
    # Parts of an angiogram are as dark as its surround, so take the convex hull; the outline of a
    # photograph is exact, also where it is clipped above and below.
    return (
        estimate_field_of_view(picture[..., 1]).astype(np.float32)
        if kind == "fa"
        else find_field(picture)
    )


def _rendered(
    source: Source,
    suffix: str,
    picture: np.ndarray,
    mask: np.ndarray,
    marks: Landmarks,
    frame: tuple[np.ndarray, int] | None,
    size: int,
    rngs: dict[str, np.random.Generator],
) -> dict[str, np.ndarray]:
    """The images of one square frame of the source.

    Args:
        source: gives the kind of the real image.
        suffix: "" for the whole field, "_clip" for a clip about the fovea.
        picture: (H, W, 3) RGB in [0, 1].
        mask: (H, W) bool, vessels.
        marks: in pixels of ``picture``.
        frame: corner (2,), pixel (x, y), and side in pixels; None takes the whole image.
        size: side of the results, pixels.
        rngs: as in :func:`source_pictures`.
    """
    corner, side = frame or (np.zeros(2, int), max(mask.shape))
    cut, coverage = (
        square(raster, corner, side, size) for raster in (picture, mask.astype(np.float32))
    )
    scene = picture_scene(
        cut, coverage, marks.moved(corner, size / side), source.kind, rngs["scene"]
    )
    renderers = {"cf": render_cf}
    renderers |= {"octa": render_octa} if suffix else {"fa": render_fa, "oct": render_oct}
    own_role = source.kind + (suffix if source.kind == "cf" else "")
    pictures = {f"seg{suffix}": scene.seg}
    for kind, render in renderers.items():
        role = kind + (suffix if kind == "cf" else "")
        if role == own_role:
            pictures[role] = cut if kind == "cf" else cut[..., 1]
        else:
            # Vessels outside of the real field are unknown, so the rendered images end there too.
            rendered = render(scene, rngs[kind])
            pictures[role] = rendered * (
                scene.field[..., None] if rendered.ndim == 3 else scene.field
            )
    return pictures


def square(image: np.ndarray, corner: np.ndarray, side: int, size: int) -> np.ndarray:
    """Crop a square, zero outside of the image, and resize it.

    Args:
        image: (H, W) or (H, W, C) float32 in [0, 1].
        corner: (2,), first pixel (x, y) of the square; may lie outside of the image.
        side: of the square, pixels of the image.
        size: side of the result, pixels.

    Returns:
        (size, size) or (size, size, C) float32 in [0, 1].
    """
    height, width = image.shape[:2]
    x, y = (int(v) for v in corner)
    before, after = (max(-y, 0), max(-x, 0)), (max(y + side - height, 0), max(x + side - width, 0))
    padded = cv2.copyMakeBorder(
        image, before[0], after[0], before[1], after[1], cv2.BORDER_CONSTANT
    )
    cut = padded[max(y, 0) : max(y, 0) + side, max(x, 0) : max(x, 0) + side]
    method = cv2.INTER_AREA if side >= size else cv2.INTER_CUBIC
    return np.clip(cv2.resize(cut, (size, size), interpolation=method), 0, 1)
