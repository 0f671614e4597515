"""State of the keypoint expansion: how reliably each place of each training sample was detected.

SuperRetina (ECCV 2022, section 3.2) keeps a dense map of counters. This one keeps a list of places
with values in [0, 1], so that values cannot overflow and its size does not depend on the image
resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

# A place whose value falls to this is removed; chosen by hand.
FORGET_VALUE = 0.02


@dataclass(frozen=True)
class PKESettings:
    """Settings of the keypoint expansion; distances in pixels of the view unless noted otherwise.

    Attributes:
        min_probability: least detector probability of a detection, [0, 1].
        max_candidates: strongest detections considered per image.
        nms_radius_px: radius of the non-maximum suppression of the detections.
        partner_probability: geometric test, least probability of the other detector at the mapped
            place, [0, 1]; 0.5 as published.
        early_partner_probability: the same for the first ``early_views`` views of a sample.
        early_views: number of those views; 0 = the value map alone limits early candidates.
        max_reprojection_px: detections of the other image up to this distance from the mapped
            place are the candidate itself in the content test.
        max_distance_ratio: content test, largest ratio of the descriptor distance at the mapped
            place to the smallest one elsewhere.
        seed_heat: a candidate where the seed heatmap exceeds this counts as a seed.
        learning_rate: step of a place's value towards 1 (passed) or 0 (missed).
        admit_value: value from which a place is a label; with a rate of 0.3, after two passes in
            a row.
        border_px: candidates are not searched closer than this to the border of a view.
        merge_px: places closer than this are merged, pixels of the sample's own frame.
        max_places: largest number of places per sample; those of the lowest value are dropped.
    """

    min_probability: float = 0.1
    max_candidates: int = 512
    nms_radius_px: int = 4
    partner_probability: float = 0.5
    early_partner_probability: float = 0.5
    early_views: int = 0
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
    """Test results of one view of one sample.

    Attributes:
        key: of the sample.
        passed: (N, 2) float32 places that passed both tests; own frame, pixels (x, y).
        missed: (M, 2) float32 remembered places that were in view and did not pass; likewise.
    """

    key: str
    passed: torch.Tensor
    missed: torch.Tensor


@dataclass
class ValueMap:
    """Places of each training sample with their values.

    The value is an exponential moving average of "passed" (1) and "missed" (0), so it stays in
    [0, 1], and a place that is no longer detected is no longer a label.

    Attributes:
        settings: of the expansion.
        places: per sample (N, 2) float32, pixels (x, y) of the sample's own frame, on the CPU.
        values: per sample (N,) float32 in [0, 1], in descending order, on the CPU.
        views: per sample the number of views observed so far.
    """

    settings: PKESettings = field(default_factory=PKESettings)
    places: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    views: dict[str, int] = field(default_factory=dict)

    def partner_probability(self, key: str) -> float:
        """Threshold of the geometric test for the next view of a sample, [0, 1]."""
        early = self.views.get(key, 0) < self.settings.early_views
        if early:
            return self.settings.early_partner_probability
        return self.settings.partner_probability

    def remembered(self, key: str) -> torch.Tensor:
        """All places of a sample: (N, 2), pixels of the own frame, CPU."""
        return self.places.get(key, torch.zeros(0, 2))

    def admitted(self, key: str) -> torch.Tensor:
        """Places of a sample that are labels: (N, 2), pixels of the own frame, CPU."""
        if key not in self.places:
            return torch.zeros(0, 2)
        return self.places[key][self.values[key] >= self.settings.admit_value]

    def packed(self, keys: Sequence[str]) -> np.ndarray:
        """What is known of several samples, padded to a common number of places P >= 1.

        Args:
            keys: of the B samples.

        Returns:
            (B, P, 5) float32: x and y of each place in pixels of its own frame, 1 where there is a
            place, 1 where it is admitted, and the threshold of the next geometric test.
        """
        width = max(1, *(len(self.values.get(key, ())) for key in keys))
        content = np.zeros((len(keys), width, 5), dtype=np.float32)
        for row, key in zip(content, keys, strict=True):
            row[:, 4] = self.partner_probability(key)
            if key in self.places:
                values = self.values[key].numpy()
                row[: len(values), :2] = self.places[key].numpy()
                row[: len(values), 2] = 1.0
                row[: len(values), 3] = values >= self.settings.admit_value
        return content

    def apply(self, observations: list[Observation]) -> None:
        """Update places and values from the observations, in the given order."""
        for observation in observations:
            self.views[observation.key] = self.views.get(observation.key, 0) + 1
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
        keep = keep[values[keep] > FORGET_VALUE]
        if len(keep):
            self.places[key], self.values[key] = places[keep], values[keep]
        else:
            self.places.pop(key, None)
            self.values.pop(key, None)

    def statistics(self) -> dict[str, float]:
        """Size of the map: samples with places, places, admitted places, mean value."""
        values = torch.cat(list(self.values.values())) if self.values else torch.zeros(0)
        return {
            "samples": len(self.values),
            "places": len(values),
            "admitted": int((values >= self.settings.admit_value).sum()),
            "mean_value": float(values.mean()) if len(values) else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers, for a checkpoint."""
        return {
            "settings": asdict(self.settings),
            "places": dict(self.places),
            "values": dict(self.values),
            "views": dict(self.views),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore places and values from :meth:`state_dict`.

        The settings are not restored; they stay those of this run's config.
        """
        self.places, self.values = dict(state["places"]), dict(state["values"])
        # Checkpoints of earlier versions do not count the views.
        self.views = dict(state.get("views", {}))
