"""Scores of the validated pairs, their lines in the log and their summary."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from evaluation.keypoint_metrics import ACCURACY_PX
from evaluation.metrics import area_under_curve, median_with_failures

SUCCESS_PX = 5.0  # largest error of a pair that counts as registered, px at 512
AUC_LIMIT_PX = 10.0  # upper limit of the error in the area under the curve, px at 512
PRECISION_PX = 3  # error up to which a match is right in "precision", px at 512
REAL = "real"  # mode of landmark pairs
# Figures that are given for each kind of pair too, where there are several kinds.
PER_MODE = ("rate", "AUC@10", "repeatability", "localisation_px", "MMA@3", "inliers")


@dataclass(frozen=True)
class PairScore:
    """Figures of one validated pair in the bare view.

    Attributes:
        number: place of the pair in the validation; orders the scores of several processes.
        key: unique name of the pair.
        mode: kind of the pair; ``REAL`` for landmark pairs.
        error: px at 512; infinite for a failed pair. Generated pairs: mean corner error; real
            pairs: median landmark error.
        mse: mean squared error of the registered image, see
            :func:`training.validation.registration_mse`; NaN for real pairs, which have no aligned
            image.
        n_matches, n_inliers: mutual nearest neighbours, and inliers of the robust fit to them.
        n_right: by threshold in px at 512, matches that are right; empty for real pairs.
        repeatability, localisation_px: of the keypoints, see
            :class:`evaluation.keypoint_metrics.DetectorScores`; NaN for real pairs and for a
            matcher without a detector.
        new_keypoints: number of repeated keypoints that are no junction of the mask; NaN likewise.
        status, reason: "ok", or "failed" and why.
        rotation: by which the moving image of a real pair was turned, degrees.
    """

    number: int
    key: str
    mode: str
    error: float
    mse: float
    n_matches: int
    n_inliers: int
    status: str
    reason: str
    n_right: dict[int, int] = field(default_factory=dict)
    repeatability: float = float("nan")
    localisation_px: float = float("nan")
    new_keypoints: float = float("nan")
    rotation: float = 0.0

    def line(self) -> str:
        """The line of the pair in ``validation_log.txt``."""
        mse = "" if np.isnan(self.mse) else f"  mse {self.mse:.5f}"
        repeated = "" if np.isnan(self.repeatability) else f"  repeated {self.repeatability:.2f}"
        right = f"  right {self.n_right[PRECISION_PX]}" if self.n_right else ""
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"{self.key}: error {self.error:.2f}{mse}{repeated}  matches {self.n_matches}{right}  "
            f"inliers {self.n_inliers}  {self.status}{reason}"
        )


def summarise_generated(scores: list[PairScore]) -> dict[str, float]:
    """Figures over the generated pairs; those of ``PER_MODE`` for each mode if there are several.

    ``rate`` is the share of pairs with an error below ``SUCCESS_PX``; ``MMA@t`` the mean over the
    pairs of the share of right matches, 0 for a pair without matches; ``precision`` the share of
    right matches among those of all pairs together.

    Args:
        scores: at least one.
    """
    summary = {"mse": float(np.mean([score.mse for score in scores]))} | _figures(scores)
    modes = sorted({score.mode for score in scores})
    for mode in modes if len(modes) > 1 else []:
        figures = _figures([score for score in scores if score.mode == mode])
        summary |= {f"{name}_{mode}": figures[name] for name in PER_MODE if name in figures}
    return summary


def _figures(scores: list[PairScore]) -> dict[str, float]:
    errors = np.array([score.error for score in scores])
    figures = {
        "corner_error": median_with_failures(errors),
        "AUC@10": area_under_curve(errors, AUC_LIMIT_PX),
        "rate": float((errors < SUCCESS_PX).mean()),
        "matches": float(np.mean([score.n_matches for score in scores])),
        "inliers": float(np.mean([score.n_inliers for score in scores])),
    }
    for limit in ACCURACY_PX:
        shares = [score.n_right[limit] / max(score.n_matches, 1) for score in scores]
        figures[f"MMA@{limit}"] = float(np.mean(shares))
    n_matches = sum(score.n_matches for score in scores)
    figures["precision"] = sum(s.n_right[PRECISION_PX] for s in scores) / max(n_matches, 1)
    for name in ("repeatability", "localisation_px", "new_keypoints"):
        values = np.array([getattr(score, name) for score in scores])
        if np.isfinite(values).any():
            figures[name] = float(np.nanmean(values))
    return figures


def summarise_real(scores: list[PairScore]) -> dict[str, float]:
    """Figures over the real pairs at all rotations, and ``rate`` for each; empty without pairs.

    Args:
        scores: of the real pairs.
    """
    if not scores:
        return {}
    errors = np.array([score.error for score in scores])
    rotations = np.array([score.rotation for score in scores])
    figures = {
        "landmark_error": median_with_failures(errors),
        "AUC@10_real": area_under_curve(errors, AUC_LIMIT_PX),
        "rate_real": float((errors < SUCCESS_PX).mean()),
    }
    angles = np.unique(rotations)
    for angle in angles if len(angles) > 1 else []:
        found = errors[rotations == angle] < SUCCESS_PX
        figures[f"rate_real_{angle:g}deg"] = float(found.mean())
    return figures
