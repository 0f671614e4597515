"""Validation of a matcher during training: on generated pairs with exact truth, and on real landmark pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.generated_pairs import GeneratedPairs, ViewKey
from dataset.real_pairs import RealPair
from evaluation.metrics import area_under_curve, median_with_failures
from geometry.accuracy import corner_error, pair_error
from geometry.estimation import Plausibility
from geometry.rasters import register_onto_fixed, valid_overlap
from pictures.drawing import checkerboard, draw_keypoints, draw_matches
from registration.matcher import Matcher
from registration.pipeline import Registration, register_pair
from training.task import ValidationReport
from utils.image_files import write_image

SUCCESS_PX = 5.0


@dataclass(frozen=True)
class ValidationSettings:
    """How a run is validated.

    Attributes:
        views: pairs drawn per validation from the generated set, the same ones every epoch.
        pictures: pairs of each kind for which pictures are written.
        rotation_deg, translation, scale: ranges of the generated validation pairs (whole images).
        seed: of their draw; independent of the seed of the training.
    """

    views: int = 24
    pictures: int = 4
    rotation_deg: float = 30.0
    translation: float = 0.1
    scale: tuple[float, float] = (0.85, 1.18)
    seed: int = 20240


@dataclass(frozen=True)
class PairScore:
    """One validated pair: its log line and its figures; ``mse`` is NaN for real pairs, which have no aligned image."""

    key: str
    mode: str
    error: float
    mse: float
    n_matches: int
    n_inliers: int
    status: str
    reason: str

    def line(self) -> str:
        """The pair's line in ``validation_log.txt``."""
        mse = "" if np.isnan(self.mse) else f"  mse {self.mse:.5f}"
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"{self.key}: error {self.error:.2f}{mse}  matches {self.n_matches}  inliers {self.n_inliers}  "
            f"{self.status}{reason}"
        )


def write_pair_pictures(
    folder: Path, name: str, fixed: np.ndarray, moving: np.ndarray, result: Registration
) -> None:
    """Write ``<name>_matches.png``, ``_keypoints.png`` and, unless failed, ``_registered.png`` and
    ``_fix_registered_checkerboard.png``. A failed pair gets the unregistered moving image, marked by its matches.

    Args:
        fixed, moving: (H, W) or (H, W, 3) float in [0, 1] at original size.
    """
    write_image(
        folder / f"{name}_matches.png",
        draw_matches(fixed, moving, result.fixed_points, result.moving_points, result.inliers),
    )
    matches = result.matches
    working = [
        register_onto_fixed(image, np.linalg.inv(frame.H_image_to_working), frame.size)
        for image, frame in ((fixed, matches.fixed.frame), (moving, matches.moving.frame))
    ]
    write_image(
        folder / f"{name}_keypoints.png",
        draw_keypoints(
            *working,
            matches.fixed_keypoints,
            matches.moving_keypoints,
            matches.fixed_heatmap,
            matches.moving_heatmap,
        ),
    )
    H = np.eye(3) if result.H_fix_to_mov is None else result.H_fix_to_mov
    registered = register_onto_fixed(moving, H, fixed.shape[:2])
    write_image(folder / f"{name}_registered.png", registered)
    write_image(folder / f"{name}_fix_registered_checkerboard.png", checkerboard(fixed, registered))


def registration_mse(
    H_fix_to_mov: np.ndarray | None, moving: np.ndarray, aligned: np.ndarray, valid: np.ndarray
) -> float:
    """Mean squared grey-level error of the registered against the truly aligned moving image.

    Args:
        H_fix_to_mov: estimate; a failed pair is scored as if nothing had been done (identity).
        moving: (H, W); aligned: (H, W) in the fixed frame; valid: (H, W), where both images show retina: what the moving
            image does not show, no registration can bring back.
    """
    H = np.eye(3) if H_fix_to_mov is None else H_fix_to_mov
    difference = (register_onto_fixed(moving, H, aligned.shape) - aligned)[valid > 0.5]
    return float((difference**2).mean()) if difference.size else 0.0


class Validator:
    """Validates a matcher on fixed pairs; call it with (epoch, folder).

    Args:
        matcher: shares its network with the training.
        generated: whole-image views with known truth.
        n_views: how many of them.
        real: landmark pairs, possibly none.
        settings, plausibility: how pairs are drawn and fitted.
    """

    def __init__(
        self,
        matcher: Matcher,
        generated: GeneratedPairs,
        real: list[RealPair],
        settings: ValidationSettings,
        plausibility: Plausibility,
    ) -> None:
        self.matcher, self.generated, self.real, self.settings = matcher, generated, real, settings
        self.plausibility = plausibility

    def __call__(self, epoch: int, folder: Path) -> ValidationReport:
        """Register all validation pairs, write pictures, and sum up."""
        generated = [
            self._generated(index, folder)
            for index in tqdm(
                range(self.settings.views), desc=f"validate {epoch}", unit="pair", leave=False
            )
        ]
        real = [
            self._real(index, pair, folder)
            for index, pair in enumerate(
                tqdm(self.real, desc=f"validate {epoch}, real", unit="pair", leave=False)
            )
        ]
        errors = np.array([score.error for score in generated])
        summary = {
            "mse": float(np.mean([score.mse for score in generated])),
            "corner_error": median_with_failures(errors),
            "AUC@10": area_under_curve(errors, 10.0),
            "rate_generated": float((errors < SUCCESS_PX).mean()),
            "matches": float(np.mean([score.n_matches for score in generated])),
            "inliers": float(np.mean([score.n_inliers for score in generated])),
        }
        modes = sorted({score.mode for score in generated})
        if len(modes) > 1:
            summary |= {
                f"rate_{mode}": float(
                    np.mean([score.error < SUCCESS_PX for score in generated if score.mode == mode])
                )
                for mode in modes
            }
        if real:
            landmark_errors = np.array([score.error for score in real])
            summary |= {
                "landmark_error": median_with_failures(landmark_errors),
                "rate_real": float((landmark_errors < SUCCESS_PX).mean()),
            }
        lines = [
            "generated pairs: error = mean corner error, px at 512",
            *(score.line() for score in generated),
        ]
        if real:
            lines += [
                "real pairs: error = median landmark error, px at 512",
                *(score.line() for score in real),
            ]
        lines.append(
            "average: " + "  ".join(f"{name} {value:.5g}" for name, value in summary.items())
        )
        return ValidationReport(summary["AUC@10"], summary, "\n".join(lines))

    def _register(self, fixed: np.ndarray, moving: np.ndarray) -> Registration:
        return register_pair(self.matcher, fixed, moving, "affine", self.plausibility)

    def _generated(self, index: int, folder: Path) -> PairScore:
        view = self.generated[ViewKey(0, index)]
        fixed, moving = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
        result = self._register(fixed, moving)
        error = corner_error(
            result.H_fix_to_mov, view["H_fix_to_mov"].double().numpy(), fixed.shape, moving.shape
        )
        overlap = valid_overlap(
            view["H_fix_to_mov"][None], view["fixed_fov"][None], view["moving_fov"][None]
        )
        mse = registration_mse(
            result.H_fix_to_mov, moving, view["aligned_moving"][0].numpy(), overlap[0, 0].numpy()
        )
        key = f"{view['key']}_{index:03d}"
        if index < self.settings.pictures:
            write_pair_pictures(folder, key, fixed, moving, result)
        return _score(key, view["mode"], error, mse, result)

    def _real(self, index: int, pair: RealPair, folder: Path) -> PairScore:
        fixed, moving = pair.images()
        result = self._register(fixed, moving)
        error = pair_error(
            result.H_fix_to_mov, pair.fixed_landmarks, pair.moving_landmarks, moving.shape
        ).median
        if index < self.settings.pictures:
            write_pair_pictures(folder, f"real_{pair.key}", *pair.color_images(), result)
        return _score(f"real_{pair.key}", "real", error, float("nan"), result)


def _score(key: str, mode: str, error: float, mse: float, result: Registration) -> PairScore:
    return PairScore(
        key, mode, error, mse, result.n_matches, result.n_inliers, result.status, result.reason
    )
