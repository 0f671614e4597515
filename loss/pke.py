"""L_pke: progressive keypoint expansion (SuperRetina, ECCV 2022, section 3.2), on from the first step.

The seeds are the vessel junctions of the mask; a retina has many more good keypoints. Places that the detector finds
by itself become labels when they *keep coming back*:

1. *Candidates* are detections of the fixed image away from every seed, inside the overlap.
2. *Geometric test*: the moving image is detected at the mapped place too.
3. *Content test*: among all detections of the moving image, the nearest descriptor lies at the mapped place, and is
   nearer by a ratio than the nearest one elsewhere.
4. A :class:`ValueMap` remembers, for each training sample in its own frame, how reliably each place passed; a place
   enters the label once its value exceeds a threshold.

There is no schedule: an untrained network passes few tests, and nothing passes twice by accident.

The paper keeps a dense map of counters; this one keeps a list of places with a bounded value, so it neither overflows
nor grows with the resolution.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch

from loss.common import Term, average, dice_loss


@dataclass(frozen=True)
class PKESettings:
    """Settings of the expansion; distances in pixels of the view unless said otherwise.

    Attributes:
        min_probability: weakest detection that may be a candidate.
        max_candidates: strongest detections considered per image.
        nms_radius_px: of the candidate detection.
        max_reprojection_px: how near the moving detection must be to the mapped candidate.
        max_distance_ratio: of the content test (nearest over nearest elsewhere).
        seed_heat: a candidate where the seed heatmap exceeds this belongs to the seed.
        learning_rate: step of a place's value towards 1 (passed) or 0 (did not).
        admit_value: value from which a place is a label; with a rate of 0.3, two passes in a row reach it.
        border_px: no detection is looked for nearer to the border of a view.
        merge_px: places nearer than this are one, pixels of the own frame.
        max_places: most places remembered per sample; the least valuable go first.
    """

    min_probability: float = 0.1
    max_candidates: int = 256
    nms_radius_px: int = 4
    max_reprojection_px: float = 3.0
    max_distance_ratio: float = 0.9
    seed_heat: float = 0.05
    learning_rate: float = 0.3
    admit_value: float = 0.5
    border_px: int = 4
    merge_px: float = 4.0
    max_places: int = 256


@dataclass(frozen=True)
class Observation:
    """What one view says about the places of one sample, in the sample's own frame: places (N, 2) that passed both tests,
    and remembered places (M, 2) that were in view and did not."""

    key: str
    passed: torch.Tensor
    missed: torch.Tensor


def passes_geometric_test(
    mapped: torch.Tensor, moving_keypoints: torch.Tensor, max_reprojection_px: float
) -> torch.Tensor:
    """Which mapped candidates (N, 2) have a moving detection (M, 2) nearby: bool (N,)."""
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
    """Which candidates find themselves among *all* detections of the moving image by their descriptor.

    Args:
        descriptors: (N, D) unit descriptors of the candidates; mapped: (N, 2) where they should be, moving pixels.
        moving_keypoints: (M, 2) all detections, seeds included; moving_descriptors: (M, D).

    Returns:
        bool (N,)
    """
    if len(moving_keypoints) == 0 or len(mapped) == 0:
        return torch.zeros(len(mapped), dtype=torch.bool, device=mapped.device)
    distance = torch.cdist(descriptors, moving_descriptors)
    is_here = torch.cdist(mapped, moving_keypoints) <= max_reprojection_px
    here = distance.masked_fill(~is_here, float("inf")).amin(1)
    elsewhere = distance.masked_fill(is_here, float("inf")).amin(1)
    # inf < inf is false: a candidate with no detection at its place fails; so does one with nothing to be compared with.
    return (here < max_distance_ratio * elsewhere) & torch.isfinite(elsewhere)


def draw_places(heatmap: torch.Tensor, places: list[torch.Tensor], sigma_px: float) -> torch.Tensor:
    """Add Gaussian spots of height 1 to label heatmaps (the larger value counts).

    Args:
        heatmap: (B, 1, H, W).
        places: per sample (N, 2) pixels.

    Returns:
        A new (B, 1, H, W).
    """
    height, width = heatmap.shape[-2:]
    xs = torch.arange(width, device=heatmap.device, dtype=heatmap.dtype)
    ys = torch.arange(height, device=heatmap.device, dtype=heatmap.dtype)
    drawn = heatmap.clone()
    for index, points in enumerate(places):
        if len(points) == 0:
            continue
        # A few at a time: all spots of a large image at once would need gigabytes.
        for chunk in points.to(heatmap).split(32):
            along_x = torch.exp(-0.5 * ((xs[None] - chunk[:, :1]) / sigma_px) ** 2)
            along_y = torch.exp(-0.5 * ((ys[None] - chunk[:, 1:]) / sigma_px) ** 2)
            spots = (along_y[:, :, None] * along_x[:, None, :]).amax(0)
            drawn[index, 0] = torch.maximum(drawn[index, 0], spots)
    return drawn


def pke_loss(
    fixed_detector: torch.Tensor,
    fixed_label: torch.Tensor,
    fixed_valid: torch.Tensor,
    moving_detector: torch.Tensor,
    moving_label: torch.Tensor,
    moving_valid: torch.Tensor,
    n_admitted: torch.Tensor,
) -> Term:
    """``L_pke``: Dice of both detector maps against the label expanded by the admitted places.

    Samples with no admitted place are empty: L_det already teaches their seeds.

    Args:
        *_detector, *_label, *_valid: (B, 1, H, W), as in the detector loss.
        n_admitted: (B,) number of admitted places in view.
    """
    both = average(
        dice_loss(fixed_detector, fixed_label, fixed_valid),
        dice_loss(moving_detector, moving_label, moving_valid),
    )
    has_places = n_admitted > 0
    return Term(both.per_sample * has_places, both.valid & has_places)


@dataclass
class ValueMap:
    """How reliably each place of each training sample came back.

    Per sample: positions (N, 2) float32 in the sample's own frame and values (N,) float32 in [0, 1]. The value is an
    exponential average of "passed", so it cannot overflow, and a place that stops passing loses its standing.
    """

    settings: PKESettings = field(default_factory=PKESettings)
    places: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def remembered(self, key: str) -> torch.Tensor:
        """All remembered places of a sample: (N, 2), own frame, CPU."""
        return self.places.get(key, torch.zeros(0, 2))

    def admitted(self, key: str) -> torch.Tensor:
        """Places of a sample that proved reliable: (N, 2), own frame, CPU."""
        if key not in self.places:
            return torch.zeros(0, 2)
        return self.places[key][self.values[key] >= self.settings.admit_value]

    def apply(self, observations: list[Observation]) -> None:
        """Learn from a batch of observations, in the given order."""
        for observation in observations:
            self._apply_one(
                observation.key, observation.passed.cpu().float(), observation.missed.cpu().float()
            )

    def _apply_one(self, key: str, passed: torch.Tensor, missed: torch.Tensor) -> None:
        rate, merge_px = self.settings.learning_rate, self.settings.merge_px
        places = self.places.get(key, torch.zeros(0, 2)).clone()
        values = self.values.get(key, torch.zeros(0)).clone()
        hit = torch.zeros(len(places), dtype=torch.bool)
        fresh = torch.ones(len(passed), dtype=torch.bool)
        if len(places) and len(passed):
            gap, nearest = torch.cdist(passed, places).min(1)
            fresh = gap > merge_px
            for place, candidate in zip(nearest[~fresh].tolist(), passed[~fresh], strict=True):
                if not hit[place]:
                    hit[place] = True
                    values[place] += rate * (1.0 - values[place])
                    places[place] += rate * (candidate - places[place])
        if len(places) and len(missed):
            gap, nearest = torch.cdist(missed, places).min(1)
            gone = torch.zeros(len(places), dtype=torch.bool)
            gone[nearest[gap <= merge_px]] = True
            values[gone & ~hit] *= 1.0 - rate
        places = torch.cat([places, passed[fresh]])
        values = torch.cat([values, torch.full((int(fresh.sum()),), rate)])
        keep = torch.argsort(values, descending=True, stable=True)[: self.settings.max_places]
        keep = keep[values[keep] > 0.02]
        if len(keep):
            self.places[key], self.values[key] = places[keep], values[keep]
        else:
            self.places.pop(key, None)
            self.values.pop(key, None)

    def statistics(self) -> dict[str, float]:
        """Growth of the map: samples with places, places, admitted places, mean value."""
        values = torch.cat(list(self.values.values())) if self.values else torch.zeros(0)
        return {
            "samples": len(self.values),
            "places": len(values),
            "admitted": int((values >= self.settings.admit_value).sum()),
            "mean_value": float(values.mean()) if len(values) else 0.0,
        }

    def state_dict(self) -> dict:
        """Plain tensors and numbers, for a checkpoint."""
        return {
            "settings": asdict(self.settings),
            "places": dict(self.places),
            "values": dict(self.values),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over places and values; the settings stay those of this run's config."""
        self.places, self.values = dict(state["places"]), dict(state["values"])
