"""Candidates of the keypoint expansion and the tests that they must pass; see ``loss.pke``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from geometry.points import inside, warp_points
from loss.keypoint_places import in_mask, own_to_fixed
from loss.term_inputs import TermInputs
from loss.value_map import Observation, ValueMap

# (detector map, allowed), both (B, 1, H, W) -> per image points (N, 2) in pixels and scores (N,).
KeypointExtractor = Callable[[torch.Tensor, torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]


def passes_geometric_test(
    mapped: torch.Tensor, moving_keypoints: torch.Tensor, max_reprojection_px: float
) -> torch.Tensor:
    """Which mapped candidates have a detection of the moving image nearby.

    Args:
        mapped: (N, 2) candidates in moving pixels.
        moving_keypoints: (M, 2) detections of the moving image.
        max_reprojection_px: largest distance, moving pixels.

    Returns:
        (N,) bool.
    """
    if len(moving_keypoints) == 0 or len(mapped) == 0:
        return torch.zeros(len(mapped), dtype=torch.bool, device=mapped.device)
    return torch.cdist(mapped, moving_keypoints).amin(1) <= max_reprojection_px


def passes_content_test(
    descriptors: torch.Tensor,
    mapped: torch.Tensor,
    moving_keypoints: torch.Tensor,
    moving_descriptors: torch.Tensor,
    max_reprojection_px: float,
    max_distance_ratio: float,
) -> torch.Tensor:
    """Which candidates have their nearest descriptor, by a ratio, at the mapped place.

    Args:
        descriptors: (N, D) unit descriptors of the candidates.
        mapped: (N, 2) candidates in moving pixels.
        moving_keypoints: (M, 2) *all* detections of the moving image, seeds included.
        moving_descriptors: (M, D) their unit descriptors.
        max_reprojection_px: detections up to this distance count as at the mapped place.
        max_distance_ratio: largest ratio of the descriptor distance there to that elsewhere.

    Returns:
        (N,) bool.
    """
    if len(moving_keypoints) == 0 or len(mapped) == 0:
        return torch.zeros(len(mapped), dtype=torch.bool, device=mapped.device)
    distance = torch.cdist(descriptors, moving_descriptors)
    is_here = torch.cdist(mapped, moving_keypoints) <= max_reprojection_px
    here = distance.masked_fill(~is_here, float("inf")).amin(1)
    elsewhere = distance.masked_fill(is_here, float("inf")).amin(1)
    # A candidate without a detection at its place fails, because inf < inf is false; one without
    # a detection elsewhere fails too, because the ratio is then undefined.
    return (here < max_distance_ratio * elsewhere) & torch.isfinite(elsewhere)


class _TestedView(NamedTuple):
    """Candidates (N, 2) of one view in fixed pixels, and which passed each test, (N,) bool."""

    candidates: torch.Tensor
    geometric: torch.Tensor
    content: torch.Tensor


def observe_candidates(
    inputs: TermInputs, value_map: ValueMap, extract_keypoints: KeypointExtractor
) -> tuple[list[Observation], dict[str, float]]:
    """Test the candidates of a batch. The value map is only read.

    Args:
        inputs: features and supervision of the batch.
        value_map: remembered places, which may have been missed.
        extract_keypoints: finds detections of a detector map inside a mask.

    Returns:
        One observation per sample, and the counts ``pke_candidates``, ``pke_geometric`` and
        ``pke_passed`` for the log.
    """
    batch, settings = inputs.batch, inputs.settings.pke
    allowed = inputs.overlap * (batch["fixed_heatmap"] <= settings.seed_heat)
    candidates = extract_keypoints(inputs.fixed.detector, allowed)
    detections = extract_keypoints(inputs.moving.detector, batch["moving_fov"])
    observations, n_candidates, n_geometric, n_passed = [], 0, 0, 0
    for index, key in enumerate(batch["key"]):
        view = _test_view(inputs, index, candidates[index][0], detections[index][0])
        passed = view.candidates[view.geometric & view.content]
        n_candidates += len(view.candidates)
        n_geometric += int(view.geometric.sum())
        n_passed += len(passed)
        passed_own = warp_points(passed, batch["H_fix_to_own"][index]).cpu()
        missed = _missed_places(inputs, index, passed_own, value_map.remembered(key))
        observations.append(Observation(key, passed_own, missed))
    return observations, {
        "pke_candidates": float(n_candidates),
        "pke_geometric": float(n_geometric),
        "pke_passed": float(n_passed),
    }


def _test_view(
    inputs: TermInputs, index: int, points: torch.Tensor, moving_points: torch.Tensor
) -> _TestedView:
    """Both tests of the candidates (N, 2) of view ``index`` against detections (M, 2)."""
    settings = inputs.settings.pke
    view = slice(index, index + 1)
    mapped = warp_points(points, inputs.batch["H_fix_to_mov"][index])
    geometric = passes_geometric_test(mapped, moving_points, settings.max_reprojection_px)
    content = passes_content_test(
        inputs.sample_descriptors(inputs.fixed.descriptors[view], points[None])[0],
        mapped,
        moving_points,
        inputs.sample_descriptors(inputs.moving.descriptors[view], moving_points[None])[0],
        settings.max_reprojection_px,
        settings.max_distance_ratio,
    )
    return _TestedView(points, geometric, content)


def _missed_places(
    inputs: TermInputs, index: int, passed_own: torch.Tensor, remembered: torch.Tensor
) -> torch.Tensor:
    """Remembered places (M, 2) that view ``index`` shows and that did not pass, own frame."""
    batch, overlap, settings = inputs.batch, inputs.overlap[index], inputs.settings.pke
    in_fixed = own_to_fixed(remembered, batch["H_fix_to_own"][index])
    in_moving = warp_points(in_fixed, batch["H_fix_to_mov"][index])
    # Detections are not searched near a border, so a place there is not counted as missed.
    margin = settings.border_px + settings.merge_px
    height, width = overlap.shape[-2:]
    could_be_found = (
        in_mask(in_fixed, overlap)
        & inside(in_fixed, (height, width), margin)
        & inside(in_moving, (height, width), margin)
    )
    missed = remembered[could_be_found.cpu()]
    if len(missed) and len(passed_own):
        missed = missed[torch.cdist(missed, passed_own).amin(1) > settings.merge_px]
    return missed
