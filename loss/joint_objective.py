"""The joint objective of the end-to-end training: all four terms, from the first step, in every step.

L_total = w_det L_det + w_des L_des + w_geo L_geo + w_pke L_pke
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from geometry.points import inside, sample_map, warp_points
from geometry.rasters import valid_overlap
from loss.common import Term
from loss.descriptor import DESCRIPTOR_OBJECTIVES
from loss.detector import detector_loss
from loss.geometric import geometric_loss
from loss.pke import (
    Observation,
    PKESettings,
    ValueMap,
    draw_places,
    passes_content_test,
    passes_geometric_test,
    pke_loss,
)
from utils.errors import InputError

# (descriptor map, points (B, N, 2)) -> (B, N, D), and (detector map, allowed) -> per image (points, scores).
DescriptorSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
KeypointExtractor = Callable[[torch.Tensor, torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the terms and settings of each; see the term's own module.

    Attributes:
        weights: of det, des, geo and pke; 0 leaves a term out.
        descriptor: "infonce" or "triplet".
        temperature: of InfoNCE. margin: of the triplet. ignore_px: points nearer than this are no negatives.
        junction_sigma_px: width of the spots that the expansion adds to the labels.
    """

    weights: dict[str, float] = field(
        default_factory=lambda: {"det": 1.0, "des": 1.0, "geo": 0.5, "pke": 0.5}
    )
    descriptor: str = "infonce"
    temperature: float = 0.07
    margin: float = 0.8
    ignore_px: float = 6.0
    junction_sigma_px: float = 2.0
    pke: PKESettings = field(default_factory=PKESettings)

    def __post_init__(self) -> None:
        if set(self.weights) != {"det", "des", "geo", "pke"}:
            raise InputError(
                f"loss.weights must name det, des, geo and pke, not {sorted(self.weights)}."
            )
        if self.descriptor not in DESCRIPTOR_OBJECTIVES:
            raise InputError(
                f"loss.descriptor: '{self.descriptor}' is unknown; choose from "
                f"{', '.join(DESCRIPTOR_OBJECTIVES)}."
            )


class AdmittedPlaces(NamedTuple):
    """Admitted places of a batch: per sample (N, 2), in fixed, in moving and (those that both show) in fixed pixels."""

    in_fixed: list[torch.Tensor]
    in_moving: list[torch.Tensor]
    in_both: list[torch.Tensor]


class ObjectiveResult(NamedTuple):
    """Loss terms with ``total`` (scalars with graph), how many samples had something to say to each term, counts for the
    log, and what the value map should learn."""

    losses: dict[str, torch.Tensor]
    n_valid: dict[str, int]
    counts: dict[str, float]
    observations: list[Observation]


class JointObjective:
    """Composes the terms. Knows maps and points, no model: how to read the maps is handed in.

    Args:
        settings: weights and settings.
        sample_descriptors: reads unit descriptors of a descriptor map at pixel positions.
        extract_keypoints: finds detections of a detector map where a mask allows them.
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        sample_descriptors: DescriptorSampler,
        extract_keypoints: KeypointExtractor,
    ) -> None:
        self.settings = settings
        self.sample_descriptors = sample_descriptors
        self.extract_keypoints = extract_keypoints

    def __call__(
        self, fixed_features, moving_features, batch: dict, value_map: ValueMap
    ) -> ObjectiveResult:
        """All terms of a batch.

        Args:
            fixed_features, moving_features: with ``detector`` (B, 1, H, W) and ``descriptors`` (B, D, h, w).
            batch: collated views of ``dataset.generated_pairs.GeneratedPairs``.
            value_map: read only; apply the returned observations after the step.
        """
        H_fix_to_mov = batch["H_fix_to_mov"]
        overlap = valid_overlap(H_fix_to_mov, batch["fixed_fov"], batch["moving_fov"])
        places = self._admitted_places(batch, value_map, overlap)
        terms = {
            "det": self._detector_term(fixed_features, moving_features, batch, places),
            "des": self._descriptor_term(fixed_features, moving_features, batch, places),
            "geo": geometric_loss(
                fixed_features.detector, moving_features.detector, H_fix_to_mov, overlap
            ),
            "pke": self._pke_term(fixed_features, moving_features, batch, places),
        }
        losses = {name: term.mean() for name, term in terms.items()}
        losses["total"] = sum(self.settings.weights[name] * losses[name] for name in terms)
        counts = {f"empty_{name}": float(term.n_empty()) for name, term in terms.items()}
        counts["pke_labels"] = float(sum(len(points) for points in places.in_both))
        with torch.no_grad():
            observations, pke_counts = self._observe(
                fixed_features, moving_features, batch, value_map, overlap
            )
        n_valid = {name: int(term.valid.sum()) for name, term in terms.items()}
        return ObjectiveResult(losses, n_valid, counts | pke_counts, observations)

    def _admitted_places(
        self, batch: dict, value_map: ValueMap, overlap: torch.Tensor
    ) -> AdmittedPlaces:
        """Admitted places that each view shows. One that only one of the images shows is a keypoint of that one."""
        places = AdmittedPlaces([], [], [])
        for index, key in enumerate(batch["key"]):
            in_fixed = _own_to_fixed(value_map.admitted(key), batch["H_fix_to_own"][index])
            in_moving = warp_points(in_fixed, batch["H_fix_to_mov"][index])
            places.in_both.append(in_fixed[_in_mask(in_fixed, overlap[index])])
            places.in_fixed.append(in_fixed[_in_mask(in_fixed, batch["fixed_fov"][index])])
            places.in_moving.append(in_moving[_in_mask(in_moving, batch["moving_fov"][index])])
        return places

    def _detector_term(self, fixed, moving, batch: dict, places: AdmittedPlaces) -> Term:
        # Admitted places are keypoints by L_pke; the seed labels, which lack them, must not call them background.
        valid = {}
        for role, points in (("fixed", places.in_fixed), ("moving", places.in_moving)):
            near_place = (
                draw_places(torch.zeros_like(batch[f"{role}_heatmap"]), points, 1.5 * self._sigma)
                >= 0.1
            )
            is_seed = batch[f"{role}_heatmap"] > self.settings.pke.seed_heat
            valid[role] = batch[f"{role}_fov"] * (~near_place | is_seed)
        return detector_loss(
            fixed.detector,
            batch["fixed_heatmap"],
            valid["fixed"],
            moving.detector,
            batch["moving_heatmap"],
            valid["moving"],
        )

    @property
    def _sigma(self) -> float:
        return self.settings.junction_sigma_px

    def _descriptor_term(self, fixed, moving, batch: dict, places: AdmittedPlaces) -> Term:
        points, valid = _append_points(batch["anchors"], batch["anchor_valid"], places.in_both)
        fixed_descriptors = self.sample_descriptors(fixed.descriptors, points)
        moving_descriptors = self.sample_descriptors(
            moving.descriptors, warp_points(points, batch["H_fix_to_mov"])
        )
        own = (
            {"temperature": self.settings.temperature}
            if self.settings.descriptor == "infonce"
            else {"margin": self.settings.margin}
        )
        return DESCRIPTOR_OBJECTIVES[self.settings.descriptor](
            fixed_descriptors,
            moving_descriptors,
            points,
            valid,
            ignore_px=self.settings.ignore_px,
            **own,
        )

    def _pke_term(self, fixed, moving, batch: dict, places: AdmittedPlaces) -> Term:
        n_admitted = torch.tensor(
            [len(a) + len(b) for a, b in zip(places.in_fixed, places.in_moving, strict=True)],
            device=fixed.detector.device,
        )
        return pke_loss(
            fixed.detector,
            draw_places(batch["fixed_heatmap"], places.in_fixed, self._sigma),
            batch["fixed_fov"],
            moving.detector,
            draw_places(batch["moving_heatmap"], places.in_moving, self._sigma),
            batch["moving_fov"],
            n_admitted,
        )

    def _observe(
        self, fixed, moving, batch, value_map, overlap
    ) -> tuple[list[Observation], dict[str, float]]:
        """Test this batch's candidates; nothing is learnt here."""
        settings = self.settings.pke
        allowed = overlap * (batch["fixed_heatmap"] <= settings.seed_heat)
        candidates = self.extract_keypoints(fixed.detector, allowed)
        detections = self.extract_keypoints(moving.detector, batch["moving_fov"])
        observations, n_candidates, n_geometric, n_passed = [], 0, 0, 0
        for index, key in enumerate(batch["key"]):
            points, moving_points = candidates[index][0], detections[index][0]
            mapped = warp_points(points, batch["H_fix_to_mov"][index])
            geometric = passes_geometric_test(mapped, moving_points, settings.max_reprojection_px)
            content = passes_content_test(
                self.sample_descriptors(fixed.descriptors[index : index + 1], points[None])[0],
                mapped,
                moving_points,
                self.sample_descriptors(moving.descriptors[index : index + 1], moving_points[None])[
                    0
                ],
                settings.max_reprojection_px,
                settings.max_distance_ratio,
            )
            passed = points[geometric & content]
            n_candidates, n_geometric = (
                n_candidates + len(points),
                n_geometric + int(geometric.sum()),
            )
            n_passed += len(passed)
            observations.append(
                self._observation(
                    key,
                    passed,
                    batch["H_fix_to_own"][index],
                    batch["H_fix_to_mov"][index],
                    value_map,
                    overlap[index],
                )
            )
        return observations, {
            "pke_candidates": float(n_candidates),
            "pke_geometric": float(n_geometric),
            "pke_passed": float(n_passed),
        }

    def _observation(
        self,
        key: str,
        passed: torch.Tensor,
        H_fix_to_own: torch.Tensor,
        H_fix_to_mov: torch.Tensor,
        value_map: ValueMap,
        overlap: torch.Tensor,
    ) -> Observation:
        """Passed candidates and missed memories of one view, in the sample's own frame."""
        passed_own = warp_points(passed, H_fix_to_own).cpu()
        remembered = value_map.remembered(key)
        in_fixed = _own_to_fixed(remembered, H_fix_to_own)
        # Near a border nothing is looked for, so nothing can be missed there.
        margin, size = (
            self.settings.pke.border_px + self.settings.pke.merge_px,
            tuple(overlap.shape[-2:]),
        )
        could_be_found = (
            _in_mask(in_fixed, overlap)
            & inside(in_fixed, size, margin)
            & inside(warp_points(in_fixed, H_fix_to_mov), size, margin)
        )
        missed = remembered[could_be_found.cpu()]
        if len(missed) and len(passed_own):
            missed = missed[torch.cdist(missed, passed_own).amin(1) > self.settings.pke.merge_px]
        return Observation(key, passed_own, missed)


def _own_to_fixed(points: torch.Tensor, H_fix_to_own: torch.Tensor) -> torch.Tensor:
    return warp_points(points.to(H_fix_to_own), torch.linalg.inv(H_fix_to_own))


def _in_mask(points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Which points (N, 2) lie on a pixel of a mask (1, H, W): bool (N,)."""
    on_image = inside(points, tuple(mask.shape[-2:]))
    if len(points) == 0:
        return on_image
    return on_image & (sample_map(mask[None], points[None])[0, :, 0] > 0.5)


def _append_points(
    anchors: torch.Tensor, valid: torch.Tensor, extra: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append a list of (N_b, 2) points to anchors (B, N, 2), padding to a common length that ``valid`` (B, N) tells."""
    longest = max((len(points) for points in extra), default=0)
    padded = anchors.new_zeros(len(anchors), longest, 2)
    used = torch.zeros(len(anchors), longest, dtype=torch.bool, device=valid.device)
    for index, points in enumerate(extra):
        padded[index, : len(points)] = points
        used[index, : len(points)] = True
    return torch.cat([anchors, padded], dim=1), torch.cat([valid, used], dim=1)
