"""Candidates of the keypoint expansion and the tests that they must pass; see ``loss.pke``."""

from __future__ import annotations

from typing import NamedTuple

import torch

from geometry.points import inside, sample_map, warp_points
from loss.detections import Detections
from loss.keypoint_places import in_mask, own_to_fixed
from loss.term_inputs import FeatureMaps, TermInputs
from loss.tolerance import places_within
from loss.value_map import Observation, ValueMap


def passes_geometric_test(
    mapped: torch.Tensor,
    detector: torch.Tensor,
    min_probability: float,
    tolerance_px: float = 0.0,
) -> torch.Tensor:
    """Which mapped candidates the detector of the other image responds to (ECCV 2022, sec. 3.2).

    Args:
        mapped: (N, 2) candidates in pixels of the other image.
        detector: (1, H, W) probabilities of the other image.
        min_probability: least probability at the mapped place, [0, 1].
        tolerance_px: the largest probability within this distance counts, pixels of the other
            image.

    Returns:
        (N,) bool; false outside of the image.
    """
    height, width = detector.shape[-2:]
    places = places_within(mapped, tolerance_px)
    response = sample_map(detector[None].float(), places.reshape(1, -1, 2))[0, :, 0]
    found = inside(places, (height, width)) & (
        response.reshape(places.shape[:2]) >= min_probability
    )
    return inside(mapped, (height, width)) & found.any(1)


def passes_content_test(
    descriptors: torch.Tensor,
    mapped: torch.Tensor,
    mapped_descriptors: torch.Tensor,
    other_points: torch.Tensor,
    other_descriptors: torch.Tensor,
    max_reprojection_px: float,
    max_distance_ratio: float,
    tolerance_px: float = 0.0,
) -> torch.Tensor:
    """Which candidates have their nearest descriptor, by a ratio, at the mapped place.

    Args:
        descriptors: (N, D) unit descriptors of the candidates.
        mapped: (N, 2) candidates in pixels of the other image.
        mapped_descriptors: (N, D) unit descriptors of the other image at these places.
        other_points: (M, 2) *all* detections of the other image, seeds included.
        other_descriptors: (M, D) their unit descriptors.
        max_reprojection_px: detections up to this distance from the mapped place are not
            elsewhere.
        max_distance_ratio: largest ratio of the descriptor distance there to that elsewhere.
        tolerance_px: detections up to this distance from the mapped place may be the candidate
            itself: they are not elsewhere, and the nearest of their descriptors counts as that at
            the place, if it is nearer. Pixels of the other image.

    Returns:
        (N,) bool; false where there is no detection elsewhere, because the ratio is then undefined.
    """
    if len(other_points) == 0 or len(mapped) == 0:
        return torch.zeros(len(mapped), dtype=torch.bool, device=mapped.device)
    here = (descriptors - mapped_descriptors).norm(dim=1)
    distance = torch.cdist(descriptors, other_descriptors)
    gap = torch.cdist(mapped, other_points)
    elsewhere = distance.masked_fill(
        gap <= max(max_reprojection_px, tolerance_px), float("inf")
    ).amin(1)
    if tolerance_px > 0.0:
        here = here.minimum(distance.masked_fill(gap > tolerance_px, float("inf")).amin(1))
    return (here < max_distance_ratio * elsewhere) & torch.isfinite(elsewhere)


class _Side(NamedTuple):
    """One image of a pair as the source of candidates, and what they are tested against."""

    features: FeatureMaps
    detections: Detections
    overlap: torch.Tensor
    heatmap: torch.Tensor
    H_to_other: torch.Tensor
    other_tolerance_px: list[float]  # of each sample, pixels of the other image


def _sides(inputs: TermInputs) -> tuple[_Side, _Side]:
    batch = inputs.batch
    return (
        _Side(
            inputs.fixed,
            inputs.fixed_detections,
            inputs.overlap,
            batch["fixed_heatmap"],
            batch["H_fix_to_mov"],
            inputs.tolerances.in_moving,
        ),
        _Side(
            inputs.moving,
            inputs.moving_detections,
            inputs.moving_overlap,
            batch["moving_heatmap"],
            inputs.H_mov_to_fix,
            inputs.tolerances.in_fixed,
        ),
    )


class _Tested(NamedTuple):
    """Candidates (N, 2) in pixels of their image, and which passed each test, (N,) bool."""

    candidates: torch.Tensor
    geometric: torch.Tensor
    content: torch.Tensor

    @property
    def passed(self) -> torch.Tensor:
        """The candidates that passed both tests: (M, 2)."""
        return self.candidates[self.geometric & self.content]


def observe_candidates(
    inputs: TermInputs, value_map: ValueMap
) -> tuple[list[Observation], dict[str, float]]:
    """Test the candidates of both images of a batch. The value map is only read.

    Args:
        inputs: features and supervision of the batch.
        value_map: remembered places, which may have been missed.

    Returns:
        One observation per sample, and the counts ``pke_candidates``, ``pke_geometric`` and
        ``pke_passed`` for the log, over both images.
    """
    batch = inputs.batch
    fixed, moving = _sides(inputs)
    observations, n_candidates, n_geometric, n_passed = [], 0, 0, 0
    for index, key in enumerate(batch["key"]):
        threshold = value_map.partner_probability(key)
        tested = (
            _test(inputs, index, fixed, moving, threshold),
            _test(inputs, index, moving, fixed, threshold),
        )
        n_candidates += sum(len(side.candidates) for side in tested)
        n_geometric += sum(int(side.geometric.sum()) for side in tested)
        n_passed += sum(len(side.passed) for side in tested)
        H_fix_to_own = batch["H_fix_to_own"][index]
        passed, from_moving = (
            warp_points(side.passed, H).cpu()
            for side, H in zip(
                tested, (H_fix_to_own, H_fix_to_own @ inputs.H_mov_to_fix[index]), strict=True
            )
        )
        # A place that passed in both images is one place, also where the transform is inexact.
        merge_px = max(inputs.settings.pke.merge_px, inputs.tolerances.in_own[index])
        passed = torch.cat([passed, _apart_from(from_moving, passed, merge_px)])
        missed = _missed_places(inputs, index, passed, value_map.remembered(key), merge_px)
        observations.append(Observation(key, passed, missed))
    return observations, {
        "pke_candidates": float(n_candidates),
        "pke_geometric": float(n_geometric),
        "pke_passed": float(n_passed),
    }


def _apart_from(points: torch.Tensor, others: torch.Tensor, distance_px: float) -> torch.Tensor:
    """The points (N, 2) that are farther than a distance from all others (M, 2)."""
    if len(points) == 0 or len(others) == 0:
        return points
    return points[torch.cdist(points, others).amin(1) > distance_px]


def _test(
    inputs: TermInputs, index: int, side: _Side, other: _Side, min_probability: float
) -> _Tested:
    """Both tests of the candidates of one image of pair ``index``."""
    settings, view = inputs.settings.pke, slice(index, index + 1)
    detected = side.detections.points[index]
    heat = sample_map(side.heatmap[view], detected[None])[0, :, 0]
    points = detected[(heat <= settings.seed_heat) & in_mask(detected, side.overlap[index])]
    mapped = warp_points(points, side.H_to_other[index])
    elsewhere = other.detections.points[index]

    def described(features: FeatureMaps, places: torch.Tensor) -> torch.Tensor:
        return inputs.sample_descriptors(features.descriptors[view], places[None])[0].float()

    content = passes_content_test(
        described(side.features, points),
        mapped,
        described(other.features, mapped),
        elsewhere,
        described(other.features, elsewhere),
        settings.max_reprojection_px,
        settings.max_distance_ratio,
        side.other_tolerance_px[index],
    )
    geometric = passes_geometric_test(
        mapped, other.features.detector[index], min_probability, side.other_tolerance_px[index]
    )
    return _Tested(points, geometric, content)


def count_repeated(inputs: TermInputs) -> dict[str, float]:
    """How many admitted places are true keypoints: detected in both images of a fresh view.

    Args:
        inputs: features and supervision of the batch.

    Returns:
        ``pke_labels``, the admitted places that both images show, and ``pke_repeated``, those of
        them with a detection in both images within ``max_reprojection_px``, or the tolerance of the
        sample if that is larger.
    """
    repeated = 0
    for index, places in enumerate(inputs.places.in_both):
        found = torch.ones(len(places), dtype=torch.bool, device=places.device)
        mapped = warp_points(places, inputs.batch["H_fix_to_mov"][index])
        for points, detections, tolerance_px in (
            (places, inputs.fixed_detections.points[index], inputs.tolerances.in_fixed[index]),
            (mapped, inputs.moving_detections.points[index], inputs.tolerances.in_moving[index]),
        ):
            radius_px = max(inputs.settings.pke.max_reprojection_px, tolerance_px)
            if len(points) and len(detections):
                found &= torch.cdist(points, detections).amin(1) <= radius_px
            else:
                found &= False
        repeated += int(found.sum())
    return {
        "pke_labels": float(sum(len(places) for places in inputs.places.in_both)),
        "pke_repeated": float(repeated),
    }


def _missed_places(
    inputs: TermInputs,
    index: int,
    passed_own: torch.Tensor,
    remembered: torch.Tensor,
    merge_px: float,
) -> torch.Tensor:
    """Remembered places (M, 2) that view ``index`` shows and that did not pass, own frame.

    Places within ``merge_px``, pixels of the own frame, of one that passed have passed.
    """
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
    return _apart_from(remembered[could_be_found.cpu()], passed_own, merge_px)
