"""Candidates of the keypoint expansion and the tests that they must pass; see ``loss.pke``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from geometry.point_sets import PointSet, in_mask
from geometry.points import inside, sample_map, warp_points
from loss.detections import Detections, FeatureMaps
from loss.term_inputs import TermInputs
from loss.tolerance import places_within


def passes_geometric_test(
    mapped: torch.Tensor,
    detector: torch.Tensor,
    min_probability: torch.Tensor,
    tolerance_px: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which mapped candidates the detector of the other image responds to (ECCV 2022, sec. 3.2).

    Args:
        mapped: (B, N, 2) candidates in pixels of the other image.
        detector: (B, 1, H, W) probabilities of the other image.
        min_probability: (B,), least probability at the mapped place.
        tolerance_px: (B,), the largest probability within this distance counts, pixels of the other
            image; None: all are 0.

    Returns:
        (B, N) bool; false outside of the image.
    """
    height, width = detector.shape[-2:]
    places = mapped[:, :, None] if tolerance_px is None else places_within(mapped, tolerance_px)
    response = sample_map(detector.float(), places.flatten(1, 2))[..., 0]
    found = inside(places, (height, width)) & (
        response.reshape(places.shape[:3]) >= min_probability[:, None, None]
    )
    return inside(mapped, (height, width)) & found.any(2)


def passes_content_test(
    descriptors: torch.Tensor,
    mapped: torch.Tensor,
    mapped_descriptors: torch.Tensor,
    others: PointSet,
    other_descriptors: torch.Tensor,
    max_reprojection_px: float,
    max_distance_ratio: float,
    tolerance_px: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which candidates have their nearest descriptor, by a ratio, at the mapped place.

    Args:
        descriptors: (B, N, D) unit descriptors of the candidates.
        mapped: (B, N, 2) candidates in pixels of the other image.
        mapped_descriptors: (B, N, D) unit descriptors of the other image at these places.
        others: *all* detections of the other image, seeds included.
        other_descriptors: (B, M, D) their unit descriptors.
        max_reprojection_px: detections up to this distance from the mapped place are not
            elsewhere.
        max_distance_ratio: largest ratio of the descriptor distance there to that elsewhere.
        tolerance_px: (B,), detections up to this distance from the mapped place may be the
            candidate itself: they are not elsewhere, and the nearest of their descriptors counts as
            that at the place, if it is nearer. Pixels of the other image; None: all are 0.

    Returns:
        (B, N) bool; false where there is no detection elsewhere, because the ratio is then
        undefined.
    """
    everywhere = torch.ones(mapped.shape[:2], dtype=torch.bool, device=mapped.device)
    gap = PointSet(mapped, everywhere).gaps(others)  # infinite to padding
    distance = torch.cdist(descriptors, other_descriptors)
    here = (descriptors - mapped_descriptors).norm(dim=2)
    nowhere, radius = torch.isinf(gap), torch.as_tensor(max_reprojection_px)
    if tolerance_px is not None:
        tolerance = tolerance_px[:, None, None]
        beyond = (gap > tolerance) | (tolerance <= 0.0)
        here = here.minimum(distance.masked_fill(beyond, float("inf")).amin(2))
        radius = tolerance.clamp(min=max_reprojection_px)
    elsewhere = distance.masked_fill((gap <= radius) | nowhere, float("inf")).amin(2)
    return (here < max_distance_ratio * elsewhere) & torch.isfinite(elsewhere)


class _Side(NamedTuple):
    """One image of each pair as the source of candidates, and what they are tested against."""

    features: FeatureMaps
    detections: Detections
    heatmap: torch.Tensor
    tolerance_px: torch.Tensor  # (B,), pixels of this image


def _sides(inputs: TermInputs) -> tuple[_Side, _Side]:
    batch, tolerances = inputs.batch, inputs.tolerances
    return (
        _Side(inputs.fixed, inputs.fixed_detections, batch["fixed_heatmap"], tolerances.in_fixed),
        _Side(
            inputs.moving, inputs.moving_detections, batch["moving_heatmap"], tolerances.in_moving
        ),
    )


class Tested(NamedTuple):
    """Candidates in pixels of their image, and which of them passed each test, (B, N) bool."""

    candidates: PointSet
    geometric: torch.Tensor
    content: torch.Tensor

    @property
    def passed(self) -> PointSet:
        """The candidates that passed both tests."""
        return self.candidates.only(self.geometric & self.content)


class Places(NamedTuple):
    """Test results of the views of a batch.

    Attributes:
        passed: places that passed both tests, own frame of each sample, pixels.
        missed: (B, P) bool, the remembered places that were in view and did not pass.
    """

    passed: PointSet
    missed: torch.Tensor


def observe_candidates(inputs: TermInputs) -> tuple[Places, dict[str, torch.Tensor]]:
    """Test the candidates of both images of a batch.

    Args:
        inputs: features and supervision of the batch.

    Returns:
        What the value map learns, and the counts ``pke_candidates``, ``pke_geometric`` and
        ``pke_passed`` for the log, over both images; scalars.
    """
    fixed, moving = _sides(inputs)
    tested = _test(inputs, fixed, moving), _test(inputs, moving, fixed)
    H_fix_to_own = inputs.batch["H_fix_to_own"]
    in_fixed, in_moving = (each.passed for each in tested)
    passed = in_fixed.warped(H_fix_to_own)
    from_moving = in_moving.warped(H_fix_to_own @ inputs.H_mov_to_fix)
    # A place that passed in both images is one place, also where the transform is inexact.
    merge_px = inputs.tolerances.in_own.clamp(min=inputs.settings.pke.merge_px)
    passed = passed.joined(from_moving.only(~from_moving.near(passed, merge_px)))
    missed = _could_be_found(inputs) & ~inputs.memory.own.near(passed, merge_px)
    counts = {
        "pke_candidates": _total(each.candidates for each in tested),
        "pke_geometric": _total(each.candidates.only(each.geometric) for each in tested),
        "pke_passed": _total((in_fixed, in_moving)),
    }
    return Places(passed, missed), counts


def _total(sets: Iterable[PointSet]) -> torch.Tensor:
    """Number of points of several sets, a scalar."""
    return torch.cat([each.numbers() for each in sets]).sum()


def _test(inputs: TermInputs, side: _Side, other: _Side) -> Tested:
    """Both tests of the candidates of one image of each pair."""
    settings = inputs.settings.pke
    heat = sample_map(side.heatmap, side.detections.points.points)[..., 0]
    candidates = side.detections.in_overlap.only(heat <= settings.seed_heat)
    mapped = side.detections.in_other.points
    tolerance_px = other.tolerance_px if inputs.tolerances.inexact else None
    content = passes_content_test(
        side.detections.descriptors,
        mapped,
        inputs.sample_descriptors(other.features.descriptors, mapped).float(),
        other.detections.points,
        other.detections.descriptors,
        settings.max_reprojection_px,
        settings.max_distance_ratio,
        tolerance_px,
    )
    geometric = passes_geometric_test(
        mapped, other.features.detector, inputs.memory.partner_probability, tolerance_px
    )
    return Tested(candidates, geometric, content)


def count_repeated(inputs: TermInputs) -> dict[str, torch.Tensor]:
    """How many admitted places are true keypoints: detected in both images of a fresh view.

    Args:
        inputs: features and supervision of the batch.

    Returns:
        ``pke_labels``, the admitted places that both images show, and ``pke_repeated``, those of
        them with a detection in both images within ``max_reprojection_px``, or the tolerance of the
        sample if that is larger; scalars.
    """
    places, tolerances = inputs.places.in_both, inputs.tolerances
    least_px = inputs.settings.pke.max_reprojection_px
    in_fixed = places.near(inputs.fixed_detections.points, tolerances.in_fixed.clamp(min=least_px))
    in_moving = places.warped(inputs.batch["H_fix_to_mov"]).near(
        inputs.moving_detections.points, tolerances.in_moving.clamp(min=least_px)
    )
    return {"pke_labels": places.valid.sum(), "pke_repeated": (in_fixed & in_moving).sum()}


def _could_be_found(inputs: TermInputs) -> torch.Tensor:
    """Remembered places (B, P) bool that the views show."""
    settings, memory, overlap = inputs.settings.pke, inputs.memory, inputs.overlap
    in_moving = warp_points(memory.fixed.points, inputs.batch["H_fix_to_mov"])
    # Detections are not searched near a border, so a place there is not counted as missed.
    margin = settings.border_px + settings.merge_px
    height, width = overlap.shape[-2:]
    return (
        memory.fixed.valid
        & in_mask(memory.fixed.points, overlap)
        & inside(memory.fixed.points, (height, width), margin)
        & inside(in_moving, (height, width), margin)
    )
