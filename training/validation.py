"""Validation during training: registration of generated pairs with known transform, and of real
landmark pairs."""

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
from registration.pipeline import register_pair
from registration.registered_pair import Registration
from training.task import ValidationReport
from utils.image_files import write_image

SUCCESS_PX = 5.0  # largest error of a pair that counts as registered, px at 512
AUC_LIMIT_PX = 10.0  # upper limit of the error in the area under the curve, px at 512


@dataclass(frozen=True)
class ValidationSettings:
    """How a run is validated.

    Attributes:
        views: generated validation pairs, the same after every epoch.
        pictures: pairs of each kind for which pictures are written.
        rotation_deg: generated pairs are rotated by up to this angle either way, degrees.
        translation: largest shift, as a share of the image.
        scale: range of the scale from fixed to moving.
        seed: of the draw of the pairs; independent of the seed of the training.
    """

    views: int = 24
    pictures: int = 4
    rotation_deg: float = 30.0
    translation: float = 0.1
    scale: tuple[float, float] = (0.85, 1.18)
    seed: int = 20240


@dataclass(frozen=True)
class PairScore:
    """Figures of one validated pair.

    Attributes:
        key: unique name of the pair.
        mode: kind of the pair; "real" for landmark pairs.
        error: px at 512; infinite for a failed pair. Generated pairs: mean corner error; real
            pairs: median landmark error.
        mse: see :func:`registration_mse`; NaN for real pairs, which have no aligned image.
        n_matches, n_inliers: of the robust fit.
        status, reason: "ok", or "failed" and why.
    """

    key: str
    mode: str
    error: float
    mse: float
    n_matches: int
    n_inliers: int
    status: str
    reason: str

    def line(self) -> str:
        """The line of the pair in ``validation_log.txt``."""
        mse = "" if np.isnan(self.mse) else f"  mse {self.mse:.5f}"
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"{self.key}: error {self.error:.2f}{mse}  matches {self.n_matches}  inliers "
            f"{self.n_inliers}  {self.status}{reason}"
        )


def write_pair_pictures(
    folder: Path, name: str, fixed: np.ndarray, moving: np.ndarray, result: Registration
) -> None:
    """Write the pictures of a validated pair: ``<name>_matches.png``, ``<name>_keypoints.png``,
    ``<name>_registered.png`` and ``<name>_fix_registered_checkerboard.png``.

    For a failed pair the last two show the unregistered moving image (identity matrix).

    Args:
        folder: where they go.
        name: begins the file names.
        fixed, moving: (H, W) or (H, W, 3) float32 in [0, 1], at original size.
        result: of the registration of the pair.
    """
    write_image(
        folder / f"{name}_matches.png",
        draw_matches(fixed, moving, result.fixed_points, result.moving_points, result.inliers),
    )
    matches = result.matches
    fixed_working, moving_working = (
        register_onto_fixed(image, np.linalg.inv(frame.H_image_to_working), frame.size)
        for image, frame in ((fixed, matches.fixed.frame), (moving, matches.moving.frame))
    )
    keypoints = draw_keypoints(
        fixed_working,
        moving_working,
        matches.fixed_keypoints,
        matches.moving_keypoints,
        matches.fixed_heatmap,
        matches.moving_heatmap,
    )
    write_image(folder / f"{name}_keypoints.png", keypoints)
    H = np.eye(3) if result.H_fix_to_mov is None else result.H_fix_to_mov
    registered = register_onto_fixed(moving, H, fixed.shape[:2])
    write_image(folder / f"{name}_registered.png", registered)
    write_image(folder / f"{name}_fix_registered_checkerboard.png", checkerboard(fixed, registered))


def registration_mse(
    H_fix_to_mov: np.ndarray | None, moving: np.ndarray, aligned: np.ndarray, valid: np.ndarray
) -> float:
    """Mean squared error between the registered and the truly aligned moving image.

    Args:
        H_fix_to_mov: (3, 3) estimate; None for a failed pair, which is scored with the identity.
        moving: (H, W) float32 in [0, 1].
        aligned: (H, W) float32 in [0, 1], the moving image resampled by the true transform, in the
            fixed frame.
        valid: (H, W), 1 where both images show retina: the error is measured there only.

    Returns:
        In squared grey levels of the range [0, 1]; 0 where nothing is valid.
    """
    H = np.eye(3) if H_fix_to_mov is None else H_fix_to_mov
    difference = (register_onto_fixed(moving, H, aligned.shape) - aligned)[valid > 0.5]
    return float((difference**2).mean()) if difference.size else 0.0


class Validator:
    """Registers fixed validation pairs with the network that is trained.

    Args:
        matcher: uses the network that is trained.
        generated: whole-image views with known transform.
        real: landmark pairs; may be empty.
        settings: number of pairs and pictures.
        plausibility: limits on the transforms.
    """

    def __init__(
        self,
        matcher: Matcher,
        generated: GeneratedPairs,
        real: list[RealPair],
        settings: ValidationSettings,
        plausibility: Plausibility,
    ) -> None:
        self.matcher = matcher
        self.generated = generated
        self.real = real
        self.settings = settings
        self.plausibility = plausibility

    def __call__(self, epoch: int, folder: Path) -> ValidationReport:
        """Register all validation pairs and write their pictures.

        Args:
            epoch: number of the epoch, for the progress bar.
            folder: for the pictures.

        Returns:
            Figures and log lines; the score is AUC@10 of the generated pairs.
        """
        views = range(self.settings.views)
        generated = [
            self._score_generated(index, folder)
            for index in tqdm(views, desc=f"validate {epoch}", unit="pair", leave=False)
        ]
        real = [
            self._score_real(index, pair, folder)
            for index, pair in enumerate(
                tqdm(self.real, desc=f"validate {epoch}, real", unit="pair", leave=False)
            )
        ]
        summary = summarise_generated(generated) | (summarise_real(real) if real else {})
        lines = ["generated pairs: error = mean corner error, px at 512"]
        lines += [score.line() for score in generated]
        if real:
            lines.append("real pairs: error = median landmark error, px at 512")
            lines += [score.line() for score in real]
        average = "  ".join(f"{name} {value:.5g}" for name, value in summary.items())
        lines.append(f"average: {average}")
        return ValidationReport(score=summary["AUC@10"], summary=summary, text="\n".join(lines))

    def _register(self, fixed: np.ndarray, moving: np.ndarray) -> Registration:
        return register_pair(self.matcher, fixed, moving, "affine", self.plausibility)

    def _score_generated(self, index: int, folder: Path) -> PairScore:
        view = self.generated[ViewKey(0, index)]
        fixed, moving = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
        result = self._register(fixed, moving)
        H_true = view["H_fix_to_mov"].double().numpy()
        error = corner_error(result.H_fix_to_mov, H_true, fixed.shape, moving.shape)
        overlap = valid_overlap(
            view["H_fix_to_mov"][None], view["fixed_fov"][None], view["moving_fov"][None]
        )
        aligned, valid = view["aligned_moving"][0].numpy(), overlap[0, 0].numpy()
        mse = registration_mse(result.H_fix_to_mov, moving, aligned, valid)
        key = f"{view['key']}_{index:03d}"
        if index < self.settings.pictures:
            write_pair_pictures(folder, key, fixed, moving, result)
        return _score(key, view["mode"], error, mse, result)

    def _score_real(self, index: int, pair: RealPair, folder: Path) -> PairScore:
        fixed, moving = pair.images()
        result = self._register(fixed, moving)
        landmarks = pair.fixed_landmarks, pair.moving_landmarks
        error = pair_error(result.H_fix_to_mov, *landmarks, moving.shape).median
        if index < self.settings.pictures:
            write_pair_pictures(folder, f"real_{pair.key}", *pair.color_images(), result)
        return _score(f"real_{pair.key}", "real", error, float("nan"), result)


def _score(key: str, mode: str, error: float, mse: float, result: Registration) -> PairScore:
    return PairScore(
        key=key,
        mode=mode,
        error=error,
        mse=mse,
        n_matches=result.n_matches,
        n_inliers=result.n_inliers,
        status=result.status,
        reason=result.reason,
    )


def summarise_generated(scores: list[PairScore]) -> dict[str, float]:
    """Figures over the generated pairs, and the success rate of each mode if there are several.

    Args:
        scores: at least one.
    """
    errors = np.array([score.error for score in scores])
    summary = {
        "mse": float(np.mean([score.mse for score in scores])),
        "corner_error": median_with_failures(errors),
        "AUC@10": area_under_curve(errors, AUC_LIMIT_PX),
        "rate_generated": float((errors < SUCCESS_PX).mean()),
        "matches": float(np.mean([score.n_matches for score in scores])),
        "inliers": float(np.mean([score.n_inliers for score in scores])),
    }
    modes = sorted({score.mode for score in scores})
    for mode in modes if len(modes) > 1 else []:
        successes = [score.error < SUCCESS_PX for score in scores if score.mode == mode]
        summary[f"rate_{mode}"] = float(np.mean(successes))
    return summary


def summarise_real(scores: list[PairScore]) -> dict[str, float]:
    """Figures over the real pairs.

    Args:
        scores: at least one.
    """
    errors = np.array([score.error for score in scores])
    return {
        "landmark_error": median_with_failures(errors),
        "rate_real": float((errors < SUCCESS_PX).mean()),
    }
