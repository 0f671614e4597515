"""Builders of methods, for the files in evaluation/methods/.

- :func:`by_matches`: from a function that returns matches. As in the project's own pipeline, a
  similarity is fitted first, then the transform to the matches near that similarity; matches at
  the border of the field of view are left out.
- :func:`by_matrix`: from a function that returns a matrix.
- :func:`by_checkpoint`: from a checkpoint of this project; :func:`by_registrar` from its parts.

The first two resample the field of view of both images to the working size, as the project's own
pipeline does, and count an implausible transform as failed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from evaluation.method import Method, MethodOptions, NotAvailable, Outcome
from evaluation.sets import EvaluationPair
from geometry.curved_transforms import CURVED_KINDS
from geometry.estimation import (
    Plausibility,
    TransformEstimate,
    estimate_transform,
    implausibility_reason,
)
from geometry.field_of_view import erode_field
from geometry.matrices import Size, compose
from geometry.points import image_corners, warp_points
from registration.keypoint_matcher import KeypointMatchSettings
from registration.proposals import propose_similarity
from registration.registered_pair import Registration
from registration.registrar import Registrar
from registration.working_frame import WorkingImage, to_working_frame
from utils.config import to_plain
from utils.errors import InputError

# Thresholds of the project's own pipeline, which by_matches shares.
MATCHING = KeypointMatchSettings()
MAX_REASON_CHARACTERS = 200  # of the message of a foreign package, in tables


class Correspondences(NamedTuple):
    """Matched points of two images, row i corresponds.

    Attributes:
        fixed_points, moving_points: (N, 2) float64, pixels (x, y) of each image.
    """

    fixed_points: np.ndarray
    moving_points: np.ndarray


class WorkingPair(NamedTuple):
    """Both images in their working frames: the field of view, at the working size."""

    fixed: WorkingImage
    moving: WorkingImage


FindMatches = Callable[[np.ndarray, np.ndarray], Correspondences]
FindMatrix = Callable[[WorkingPair], np.ndarray]


def working_pair(pair: EvaluationPair, working_px: int) -> WorkingPair:
    """Crop both images to their fields of view and resample them to the working size."""
    return WorkingPair(
        fixed=to_working_frame(pair.fixed, working_px),
        moving=to_working_frame(pair.moving, working_px),
    )


def inverted(working: WorkingImage) -> np.ndarray:
    """The image with inverted grey values inside the field of view: (H, W) float32 in [0, 1]."""
    return np.where(working.field_of_view, 1.0 - working.image, working.image).astype(np.float32)


def by_matches(
    find: FindMatches,
    options: MethodOptions,
    settings: dict[str, Any],
    try_inverted: bool = True,
) -> Method:
    """A method from a function that finds matches.

    Args:
        find: maps two grey images (H, W) float32 in [0, 1] to matches in their pixels; a
            RuntimeError counts as a failed registration.
        options: shared by all methods.
        settings: what else changes the results, for the record.
        try_inverted: also match the inverted moving image, and keep the result with more inliers.
            Vessels are dark in one modality and bright in another, and most descriptors are not
            invariant to contrast inversion.
    """
    return Method(
        run=partial(_register_by_matches, find, options, try_inverted),
        settings=settings
        | {
            "working_size": options.working_px,
            "transform": options.matrix_kind,
            "estimator": "similarity, then estimate_transform (MAGSAC) on the matches near it",
            "proposal_threshold_px": MATCHING.proposal_threshold_px,
            "radius_px": MATCHING.guided_radii_px[0],
            "inlier_threshold_px": MATCHING.inlier_threshold_px,
            "field_margin_px": MATCHING.field_margin_px,
            "plausibility": asdict(Plausibility()),
            "moving_also_inverted": try_inverted,
            "opencv": cv2.__version__,
        },
    )


def _register_by_matches(
    find: FindMatches, options: MethodOptions, try_inverted: bool, pair: EvaluationPair
) -> Outcome:
    """Match, fit and map back to original pixels; see :func:`by_matches`."""
    start = time.perf_counter()
    working = working_pair(pair, options.working_px)
    fields = [erode_field(image.field_of_view, MATCHING.field_margin_px) for image in working]
    variants = [working.moving.image, *([inverted(working.moving)] if try_inverted else [])]
    tried: list[tuple[TransformEstimate, Correspondences]] = []
    for moving in variants:
        try:
            found = _inside_fields(find(working.fixed.image, moving), fields)
        except (RuntimeError, cv2.error) as error:
            return Outcome(
                H_fix_to_mov=None, reason=_last_line(error), seconds=time.perf_counter() - start
            )
        estimate = _fit_near_similarity(found, working.fixed.frame.size, options.matrix_kind)
        tried.append((estimate, found))
    estimate, found = max(tried, key=lambda item: (item[0].status == "ok", item[0].n_inliers))
    to_fixed, to_moving = (np.linalg.inv(image.frame.H_image_to_working) for image in working)
    return Outcome(
        H_fix_to_mov=_to_original(estimate.H_fix_to_mov, working),
        reason=estimate.reason,
        fixed_points=warp_points(found.fixed_points, to_fixed),
        moving_points=warp_points(found.moving_points, to_moving),
        inliers=estimate.inliers,
        seconds=time.perf_counter() - start,
    )


def _inside_fields(found: Correspondences, fields: list[np.ndarray]) -> Correspondences:
    """The matches whose points both lie inside the eroded fields of view.

    Detectors respond at the border of the field of view, which is not anatomy.

    Args:
        found: matches, working pixels.
        fields: (H, W) bool or uint8 of the fixed and of the moving image.
    """
    keep = np.ones(len(found.fixed_points), bool)
    for points, field_of_view in zip(found, fields, strict=True):
        x, y = np.clip(np.rint(points).astype(int), 0, np.array(field_of_view.shape[::-1]) - 1).T
        keep &= field_of_view[y, x] > 0
    return Correspondences(
        fixed_points=found.fixed_points[keep], moving_points=found.moving_points[keep]
    )


def _fit_near_similarity(
    found: Correspondences, fixed_size: Size, matrix_kind: str
) -> TransformEstimate:
    """Fit a similarity, which two correct matches determine, then the transform near it."""
    proposal = propose_similarity(
        *found, fixed_size, MATCHING.proposal_threshold_px, Plausibility()
    )
    if proposal.H_fix_to_mov is None:
        return proposal
    distance = np.linalg.norm(
        warp_points(found.fixed_points, proposal.H_fix_to_mov) - found.moving_points, axis=1
    )
    near = distance <= MATCHING.guided_radii_px[0]
    estimate = estimate_transform(
        found.fixed_points[near],
        found.moving_points[near],
        fixed_size,
        matrix_kind,
        MATCHING.inlier_threshold_px,
        replace(Plausibility(), min_inlier_share=0.0),
    )
    inliers = np.zeros(len(near), bool)
    inliers[near] = estimate.inliers
    return replace(estimate, inliers=inliers)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:MAX_REASON_CHARACTERS]


def by_matrix(find: FindMatrix, options: MethodOptions, settings: dict[str, Any]) -> Method:
    """A method from a function that estimates the matrix itself.

    Args:
        find: maps the pair in working frames to ``H_fix_to_mov`` (3, 3) in working pixels; a
            RuntimeError counts as a failed registration.
        options: shared by all methods.
        settings: what else changes the results, for the record.
    """
    return Method(
        run=partial(_register_by_matrix, find, options),
        settings=settings
        | {"working_size": options.working_px, "plausibility": asdict(Plausibility())},
    )


def _register_by_matrix(find: FindMatrix, options: MethodOptions, pair: EvaluationPair) -> Outcome:
    """Estimate, test the plausibility and map back to original pixels; see :func:`by_matrix`."""
    start = time.perf_counter()
    working = working_pair(pair, options.working_px)
    try:
        H = find(working)
    except RuntimeError as error:
        return Outcome(
            H_fix_to_mov=None, reason=_last_line(error), seconds=time.perf_counter() - start
        )
    # Without matches there is no inlier count and no spread to test: the corners take the place of
    # the inliers, so that only the matrix is tested.
    fixed_size = working.fixed.frame.size
    corners = image_corners(fixed_size)
    reason = implausibility_reason(
        H, corners, len(corners), fixed_size, Plausibility(min_inliers=len(corners))
    )
    return Outcome(
        H_fix_to_mov=None if reason else _to_original(H, working),
        reason=reason,
        seconds=time.perf_counter() - start,
    )


def _to_original(H_working: np.ndarray | None, working: WorkingPair) -> np.ndarray | None:
    """``H_fix_to_mov`` (3, 3) in original pixels from the one in working pixels."""
    if H_working is None:
        return None
    H = compose(
        working.fixed.frame.H_image_to_working,
        H_working,
        np.linalg.inv(working.moving.frame.H_image_to_working),
    )
    return H / H[2, 2]


def by_checkpoint(name: str, default: Path, options: MethodOptions) -> Method:
    """A method from a checkpoint of this project, through the same pipeline as register.py.

    Args:
        name: of the method, the key into ``options.weights``.
        default: checkpoint to use if ``options.weights`` names none.
        options: shared by all methods.

    Raises:
        NotAvailable: no checkpoint is given and the default does not exist.
        InputError: unusable checkpoint, or one of another method than ``name``.
    """
    registrar = load_registrar(name, default, options)
    if registrar.matcher.name != name:
        raise InputError(
            f"{registrar.weights}: weights of {registrar.matcher.name}, not of {name}; "
            f"give them with the option of {registrar.matcher.name}."
        )
    return by_registrar(
        registrar,
        options,
        {
            "weights": str(registrar.weights),
            "weights_sha256": hashlib.sha256(registrar.weights.read_bytes()).hexdigest(),
        },
    )


def load_registrar(name: str, default: Path, options: MethodOptions) -> Registrar:
    """The registrar of the checkpoint that the options name for a method.

    Args:
        name: of the method, the key into ``options.weights``.
        default: checkpoint to use if ``options.weights`` names none.
        options: shared by all methods.

    Raises:
        NotAvailable: no checkpoint is given and the default does not exist.
        InputError: unusable checkpoint.
    """
    given = options.weights.get(name)
    if given is None and not default.is_file():
        raise NotAvailable(
            f"{name}: no weights ({default} does not exist); give a trained checkpoint"
        )
    return Registrar(given or default, options.transform, options.long_side, options.device)


def by_registrar(registrar: Registrar, options: MethodOptions, settings: dict[str, Any]) -> Method:
    """A method that runs the project's own pipeline, in the view that the options choose.

    Args:
        registrar: its matcher's settings are replaced in the bare view.
        options: shared by all methods.
        settings: what states the network's weights, for the record.
    """
    matcher = registrar.matcher
    if options.bare:
        matcher.settings = matcher.settings.bare()

    def run(pair: EvaluationPair) -> Outcome:
        return from_registration(registrar.register(pair.fixed, pair.moving).registration)

    return Method(
        run=run,
        settings=settings
        | {
            "bare": options.bare,
            "transform": options.transform,
            "match": to_plain(matcher.settings),
            "plausibility": to_plain(registrar.plausibility),
            "device": str(matcher.device),
            "torch": torch.__version__,
        },
        is_bare=options.bare,
    )


def from_registration(result: Registration) -> Outcome:
    """The outcome of the project's own pipeline."""
    is_curved = result.transform is not None and result.transform.kind in CURVED_KINDS
    return Outcome(
        H_fix_to_mov=result.H_fix_to_mov,
        reason=result.reason,
        fixed_points=result.fixed_points,
        moving_points=result.moving_points,
        inliers=result.inliers,
        seconds=result.seconds,
        curved=result.transform if is_curved else None,
    )
