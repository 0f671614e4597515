"""From two images to a matrix: the pipeline behind register.py, evaluate.py and the validation of a training run.

    image -> working frame -> features -> matches -> robust transform -> H_fix_to_mov in original pixels

A *matcher* is anything with ``match(fixed, moving) -> PairMatches``; :class:`SuperRetinaMatcher` is ours.
"""
from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from model.keypoints import extract_keypoints, match_descriptors, sample_descriptors
from model.super_retina_multimodal import SuperRetinaMultimodal
from utils.field_of_view import erode_field, estimate_field_of_view
from utils.geometry import (
    Plausibility,
    Size,
    TransformEstimate,
    compose,
    estimate_transform,
    fit_within,
    resize_matrix,
    translation_matrix,
    warp_points,
)
from utils.image_io import resize_image

MIN_WORKING_SIDE_PX = 32
MIN_PROPOSAL_INLIERS = 6


@dataclass(frozen=True)
class MatchSettings:
    """How images are matched.

    Attributes:
        long_side: working size: the field of view of either image is brought to this size, pixels.
        min_probability: weakest detection that counts as a keypoint.
        nms_radius_px: least distance of keypoints, working pixels.
        max_keypoints: at most so many per image.
        max_distance_ratio: Lowe's test on the nearest descriptors; 1 = off.
        field_margin_px: no keypoint nearer to the edge of the field of view, working pixels.
        inlier_threshold_px: residual below which a match agrees with a transform, working pixels.
        guided_radii_px: once a transform is found, keypoints are matched again among those this near to where it maps
            them, working pixels; one round for each radius, none for an empty list. The first, wide round decides, the
            others refine.
        accident_rate: share of the matches of the wide round that agree with a wrong transform. They lie anywhere within
            the radius, so (threshold / radius)**2 = 4 % do; about twice that once the transform is fitted to them.
        min_significance: by how many standard deviations of such accidents the agreeing matches must exceed them. On pairs
            of different eyes 3.4 was the most seen (295 pairs, demo model), on right pairs 18 is usual.
    """

    long_side: int = 512
    min_probability: float = 0.02
    nms_radius_px: int = 4
    max_keypoints: int = 1024
    max_distance_ratio: float = 1.0
    field_margin_px: int = 6
    inlier_threshold_px: float = 3.0
    guided_radii_px: tuple[float, ...] = (15.0, 6.0)
    accident_rate: float = 0.08
    min_significance: float = 4.0


@dataclass(frozen=True)
class WorkingFrame:
    """The frame in which an image is matched: its field of view, cut out and brought to the working size.

    Attributes:
        H_image_to_working: (3, 3), original pixels to working pixels.
        size: (height, width) of the working image.
    """

    H_image_to_working: np.ndarray
    size: Size


@dataclass(frozen=True)
class ImageFeatures:
    """Keypoints (N, 2) in *working* pixels, unit descriptors (N, D) torch, detector map (H, W), and the working frame."""

    keypoints: np.ndarray
    descriptors: torch.Tensor
    heatmap: np.ndarray
    frame: WorkingFrame


@dataclass(frozen=True)
class PairMatches:
    """Matches of a pair; all points are pixels of the *working* images, whose frames are given.

    Attributes:
        fixed_points, moving_points: (K, 2), row i corresponds.
        similarity: (K,) cosine similarity of the descriptors.
        fixed_frame, moving_frame: how the working images lie in the original ones.
        fixed_keypoints, moving_keypoints: (N, 2), (M, 2), all keypoints, for pictures.
        fixed_heatmap, moving_heatmap: detector maps, for pictures; None where a matcher has none.
        fixed_descriptors, moving_descriptors: (N, D), (M, D), for guided matching; None where a matcher has none.
    """

    fixed_points: np.ndarray
    moving_points: np.ndarray
    similarity: np.ndarray
    fixed_frame: WorkingFrame
    moving_frame: WorkingFrame
    fixed_keypoints: np.ndarray
    moving_keypoints: np.ndarray
    fixed_heatmap: np.ndarray | None = None
    moving_heatmap: np.ndarray | None = None
    fixed_descriptors: torch.Tensor | None = None
    moving_descriptors: torch.Tensor | None = None


class Matcher(Protocol):
    """Two grey images (H, W) float in [0, 1] of any sizes in, matches out; ``name`` is what tables call the method."""

    name: str
    settings: MatchSettings

    def match(self, fixed: np.ndarray, moving: np.ndarray) -> PairMatches:
        """Match a pair; the sizes may differ."""


@dataclass(frozen=True)
class Registration:
    """Result for one pair, in *original* pixels of both images.

    Attributes:
        status: "ok" or "failed"; ``reason`` says why it failed.
        H_fix_to_mov: (3, 3), or None when failed.
        fixed_points, moving_points: (K, 2) all matches; inliers: (K,) which of them agree with the matrix.
        matches: what the matcher returned.
        seconds: time for features, matches and fit.
    """

    status: str
    reason: str
    H_fix_to_mov: np.ndarray | None
    fixed_points: np.ndarray = field(repr=False)
    moving_points: np.ndarray = field(repr=False)
    inliers: np.ndarray = field(repr=False)
    matches: PairMatches = field(repr=False)
    seconds: float

    @property
    def n_matches(self) -> int:
        """Number of matches before the robust fit."""
        return len(self.fixed_points)

    @property
    def n_inliers(self) -> int:
        """Number of matches that agree with the matrix."""
        return int(self.inliers.sum())


def field_diameter(field_of_view: np.ndarray) -> float:
    """Size of a field of view (H, W) bool in pixels: the diameter of the circle of the same area."""
    return 2.0 * math.sqrt(field_of_view.sum() / math.pi)


def to_working_frame(image: np.ndarray, working_px: int) -> tuple[np.ndarray, np.ndarray, WorkingFrame]:
    """Cut the field of view out of an image and bring it to the working size.

    By what the image shows and not by its frame: a retina turned on a larger canvas, or surrounded by more black, must
    come out at the same size, or every rotation would be a change of scale too.

    Args:
        image: (H, W) float in [0, 1].
        working_px: the field's diameter in the working image (see :func:`field_diameter`).

    Returns:
        The working image (h, w) float32, its field of view (h, w) bool, and the frame.
    """
    seen = estimate_field_of_view(resize_image(image, fit_within(image.shape, working_px)))
    H_image_to_small = resize_matrix(image.shape, seen.shape)
    factor = working_px / field_diameter(seen) * H_image_to_small[0, 0]
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    corners = np.array([[columns[0] - 0.5, rows[0] - 0.5], [columns[-1] + 0.5, rows[-1] + 0.5]])
    (left, top), (right, bottom) = warp_points(corners, np.linalg.inv(H_image_to_small)) + 0.5
    left, top = max(int(left), 0), max(int(top), 0)
    cut = image[top:math.ceil(bottom), left:math.ceil(right)]
    size = tuple(max(MIN_WORKING_SIDE_PX, round(side * factor)) for side in cut.shape)
    working = resize_image(cut, size)
    H_image_to_working = compose(translation_matrix((-left, -top)), resize_matrix(cut.shape, size))
    return working, estimate_field_of_view(working), WorkingFrame(H_image_to_working, size)


class SuperRetinaMatcher:
    """Detects, describes and matches keypoints with a trained network.

    Args:
        model: the network. It is used in the mode it is in: ours answers alike in training and in evaluation mode.
        settings: see :class:`MatchSettings`.
        device: where the network is.
    """

    name = "superretina"

    def __init__(self, model: SuperRetinaMultimodal, settings: MatchSettings,
                 device: torch.device | str = "cpu") -> None:
        self.model = model
        self.settings = settings
        self.device = torch.device(device)

    @torch.inference_mode()
    def features(self, image: np.ndarray, role: str) -> ImageFeatures:
        """Keypoints and descriptors of one image (H, W) float in [0, 1] in its role, "fixed" or "moving"."""
        settings = self.settings
        working, seen, frame = to_working_frame(image, settings.long_side)
        height, width = working.shape
        multiple = self.model.size_multiple
        padded = np.pad(working, ((0, -height % multiple), (0, -width % multiple)))
        allowed = np.zeros(padded.shape, dtype=np.float32)
        allowed[:height, :width] = erode_field(seen, settings.field_margin_px)
        tensor = torch.from_numpy(padded)[None, None].to(self.device, memory_format=torch.channels_last)
        maps = self.model.describe(tensor, role)
        keypoints, _ = extract_keypoints(maps.detector, settings.min_probability, settings.nms_radius_px,
                                         settings.max_keypoints,
                                         torch.from_numpy(allowed)[None, None].to(self.device))[0]
        descriptors = sample_descriptors(maps.descriptors, keypoints[None], self.model.descriptor_stride)[0]
        return ImageFeatures(keypoints.cpu().numpy().astype(np.float64), descriptors,
                             maps.detector[0, 0, :height, :width].cpu().numpy(), frame)

    def match(self, fixed: np.ndarray, moving: np.ndarray) -> PairMatches:
        """Match two grey images (H, W) float in [0, 1] of any sizes."""
        return self.match_features(self.features(fixed, "fixed"), self.features(moving, "moving"))

    def match_features(self, fixed: ImageFeatures, moving: ImageFeatures) -> PairMatches:
        """Match features computed before, so that one fixed image can serve many moving ones."""
        pairs, similarity = match_descriptors(fixed.descriptors, moving.descriptors, self.settings.max_distance_ratio)
        rows, columns = pairs.cpu().numpy().T
        return PairMatches(fixed.keypoints[rows], moving.keypoints[columns], similarity.cpu().numpy(),
                           fixed.frame, moving.frame, fixed.keypoints, moving.keypoints,
                           fixed.heatmap, moving.heatmap, fixed.descriptors, moving.descriptors)


def match_under(matches: PairMatches, H_fix_to_mov: np.ndarray, radius_px: float) -> PairMatches:
    """Match all keypoints again, each only among those near to where a transform maps it.

    Convention: ``H_fix_to_mov`` and ``radius_px`` are in working pixels.
    """
    mapped = torch.from_numpy(warp_points(matches.fixed_keypoints, H_fix_to_mov))
    near = torch.cdist(mapped, torch.from_numpy(matches.moving_keypoints)) <= radius_px
    pairs, similarity = match_descriptors(matches.fixed_descriptors, matches.moving_descriptors,
                                          allowed=near.to(matches.fixed_descriptors.device))
    rows, columns = pairs.cpu().numpy().T
    return replace(matches, fixed_points=matches.fixed_keypoints[rows], moving_points=matches.moving_keypoints[columns],
                   similarity=similarity.cpu().numpy())


def estimate_from_matches(matches: PairMatches, settings: MatchSettings, transform: str,
                          plausibility: Plausibility) -> tuple[TransformEstimate, PairMatches]:
    """Fit a transform, match again under it, and fit again.

    The first fit only proposes: a handful of agreeing matches is enough. The second decides: guided matching finds
    many more under a right proposal and hardly any under a wrong one. Further, narrower rounds add accuracy.

    Returns:
        The estimate in working pixels, and the matches that it was made from.
    """
    def fit(current: PairMatches, limits: Plausibility) -> TransformEstimate:
        return estimate_transform(current.fixed_points, current.moving_points, current.fixed_frame.size, transform,
                                  settings.inlier_threshold_px, limits)
    if matches.fixed_descriptors is None or not settings.guided_radii_px:
        return fit(matches, plausibility), matches
    lenient = replace(plausibility, min_inliers=min(MIN_PROPOSAL_INLIERS, plausibility.min_inliers), min_inlier_share=0.0,
                      min_spread=0.5 * plausibility.min_spread)
    estimate = fit(matches, lenient)
    limits = replace(plausibility, min_inlier_share=0.0)
    for index, radius_px in enumerate(settings.guided_radii_px):
        if estimate.H_fix_to_mov is None:
            break
        matches = match_under(matches, estimate.H_fix_to_mov, radius_px)
        estimate = fit(matches, limits)
        if index == 0 and estimate.H_fix_to_mov is not None:
            estimate = _refuse_accidents(estimate, settings)
    return estimate, matches


def significance(n_inliers: int, n_matches: int, accident_rate: float) -> float:
    """By how many standard deviations a number of agreeing matches exceeds that of accidents (binomial)."""
    expected = accident_rate * n_matches
    return (n_inliers - expected) / math.sqrt(max(expected * (1.0 - accident_rate), 1e-9))


def _refuse_accidents(estimate: TransformEstimate, settings: MatchSettings) -> TransformEstimate:
    """Turn an estimate into a failure when as many matches would agree with a wrong transform."""
    n_matches = len(estimate.inliers)
    if significance(estimate.n_inliers, n_matches, settings.accident_rate) >= settings.min_significance:
        return estimate
    reason = f"only {estimate.n_inliers} of {n_matches} nearby matches agree; as many could by accident"
    return TransformEstimate("failed", reason, None, estimate.inliers)


def register_pair(matcher: Matcher, fixed: np.ndarray, moving: np.ndarray, transform: str = "affine",
                  plausibility: Plausibility | None = None) -> Registration:
    """Register a moving image onto a fixed one.

    Convention: the matrix is ``H_fix_to_mov`` in original pixels of both images.

    Args:
        matcher: finds the matches.
        fixed, moving: (H, W) float in [0, 1]; the sizes may differ.
        transform: "affine", "similarity" or "homography".
        plausibility: limits on the result; the defaults when None.
    """
    start = time.perf_counter()
    estimate, matches = estimate_from_matches(matcher.match(fixed, moving), matcher.settings, transform,
                                              plausibility or Plausibility())
    fixed_frame, moving_frame = matches.fixed_frame, matches.moving_frame
    H_working_to_moving = np.linalg.inv(moving_frame.H_image_to_working)
    H_fix_to_mov = None
    if estimate.H_fix_to_mov is not None:
        H_fix_to_mov = compose(fixed_frame.H_image_to_working, estimate.H_fix_to_mov, H_working_to_moving)
        H_fix_to_mov = H_fix_to_mov / H_fix_to_mov[2, 2]
    seconds = time.perf_counter() - start
    return Registration(
        estimate.status, estimate.reason, H_fix_to_mov,
        warp_points(matches.fixed_points, np.linalg.inv(fixed_frame.H_image_to_working)),
        warp_points(matches.moving_points, H_working_to_moving), estimate.inliers, matches, seconds)
