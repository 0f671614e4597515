"""Validation during training: what the network alone can do.

Generated pairs with known transform, spread over all validation eyes, and real landmark pairs are
registered in the bare view (:meth:`registration.matcher.MatchSettings.bare`): one look, without
copies, guided rounds and refinement, which would hide what the network has learned. The detector
and the matches are scored before any transform is fitted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.real_pairs import RealPair
from dataset.view_sources import ViewSource
from dataset.views import ViewGeometry
from evaluation.keypoint_metrics import count_right_matches, detector_scores
from evaluation.sets import EvaluationPair
from evaluation.stress import Stress, apply_stress
from geometry.accuracy import corner_error, pair_error
from geometry.estimation import Plausibility
from geometry.points import on_mask, warp_points
from geometry.rasters import register_onto_fixed, valid_overlap
from registration.matcher import Matcher
from registration.pipeline import register_pair
from registration.registered_pair import Registration
from training.task import ValidationReport
from training.validation_pictures import write_pair_pictures
from training.validation_scores import (
    REAL,
    PairScore,
    summarise_generated,
    summarise_real,
)
from utils.errors import InputError

# Figures that may choose the best checkpoint; larger is better.
FIGURES = ("AUC@10", "rate", "MMA@3", "precision", "repeatability", "inliers")
# Those that landmark pairs have too.
REAL_FIGURES = ("AUC@10", "rate")
GENERATED, REAL_PAIRS, BOTH = "generated", "real", "both"
SELECTABLE = (GENERATED, REAL_PAIRS, BOTH)
SEED_HEAT = 0.05  # of the junction heatmap, above which a keypoint is a junction of the mask


@dataclass(frozen=True)
class ValidationSettings:
    """How a run is validated.

    Attributes:
        pairs: number of generated pairs, the same after every epoch.
        every: number of epochs from one validation to the next; the first and the last epoch are
            always validated.
        select: pairs whose figure chooses ``best.pth``: "generated", "real", or "both" for the mean
            of the two figures.
        figure: that figure, one of ``FIGURES``; for real pairs one of ``REAL_FIGURES``.
        real_rotations: rotations of the moving image at which each real pair is registered,
            degrees.
        pictures: pairs of each kind for which pictures are written.
        rotation_deg: generated pairs are rotated by up to this angle either way, degrees.
        translation: largest shift, as a share of the image.
        scale: range of the scale from fixed to moving.
        seed: of the draw of the pairs; independent of the seed of the training.

    Raises:
        InputError: a value outside of its range.
    """

    # A number of views that were drawn at random, not spread over the eyes.
    RETIRED_KEYS: ClassVar[tuple[str, ...]] = ("views",)

    pairs: int = 16
    every: int = 1
    select: str = GENERATED
    figure: str = "AUC@10"
    real_rotations: tuple[float, ...] = (0.0, 30.0)
    pictures: int = 4
    rotation_deg: float = 30.0
    translation: float = 0.1
    scale: tuple[float, float] = (0.85, 1.18)
    seed: int = 20240

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.every < 1:
            raise InputError("validation.pairs and validation.every must be at least 1.")
        for name, value, known in (
            ("select", self.select, SELECTABLE),
            ("figure", self.figure, FIGURES if self.select == GENERATED else REAL_FIGURES),
        ):
            if value not in known:
                raise InputError(
                    f"validation.{name}: '{value}' is unknown or not measured for "
                    f"validation.select {self.select}; choose from {', '.join(known)}."
                )
        if not self.real_rotations:
            raise InputError("validation.real_rotations must name at least one angle; 0 is none.")

    def view_geometry(self, long_side: int) -> ViewGeometry:
        """How the generated pairs are drawn: whole images under a random similarity.

        Args:
            long_side: working size, pixels.
        """
        return ViewGeometry(
            img_size=None,
            long_side=long_side,
            rotation_deg=self.rotation_deg,
            scale=self.scale,
            translation=self.translation,
            shear=0.0,
            mirror=False,
        )


def spread_over_eyes(samples: Sequence[ViewSource], n_pairs: int) -> list[int]:
    """Indices of views, one after the other of another eye, and in turn of each mode.

    Args:
        samples: of the validation eyes.
        n_pairs: number of indices.

    Returns:
        Distinct indices; index i shows sample ``i % len(samples)``. Every eye is shown before one
        is shown again; fewer pairs than eyes are spread evenly over the eyes.
    """
    of_eye: dict[str, dict[str, list[int]]] = {}
    for index, sample in enumerate(samples):
        of_eye.setdefault(sample.eye, {}).setdefault(sample.mode, []).append(index)
    # Of each eye one sample of each mode, then the next one of each mode.
    eyes = [
        [index for visit in zip_longest(*modes.values()) for index in visit if index is not None]
        for modes in of_eye.values()
    ]
    step = max(1.0, len(eyes) / n_pairs)
    indices, uses = [], dict.fromkeys(range(len(samples)), 0)
    for number in range(n_pairs):
        turn, place = divmod(int(number * step), len(eyes))
        chosen = eyes[place][(turn + number % len(eyes)) % len(eyes[place])]
        indices.append(chosen + len(samples) * uses[chosen])
        uses[chosen] += 1
    return indices


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
    """Registers fixed validation pairs with the network that is trained, in the bare view.

    Args:
        matcher: uses the network that is trained.
        generated: whole-image views with known transform.
        real: landmark pairs; may be empty.
        settings: number of pairs and pictures.
        plausibility: limits on the transforms.

    Raises:
        InputError: the checkpoint is chosen by real pairs, but there are none.
    """

    def __init__(
        self,
        matcher: Matcher,
        generated: AlignedPairs,
        real: list[RealPair],
        settings: ValidationSettings,
        plausibility: Plausibility,
    ) -> None:
        self.matcher = copy.copy(matcher)
        self.matcher.settings = matcher.settings.bare()
        self.generated = generated
        self.views = spread_over_eyes(generated.samples, settings.pairs)
        if settings.select != GENERATED and not real:
            raise InputError(
                f"validation.select {settings.select}: no real pair with landmarks to validate on; "
                "give --val_data, or --real with landmarks of at least three eyes."
            )
        self.real = list(product(settings.real_rotations, real))
        self.settings = settings
        self.plausibility = plausibility

    def score(
        self, epoch: int, folder: Path, rank: int = 0, world_size: int = 1
    ) -> list[PairScore]:
        """Score this process's share of the pairs, and write their pictures.

        Args:
            epoch: number of the epoch, for the progress bar.
            folder: for the pictures.
            rank: of this process.
            world_size: number of processes.
        """
        numbers = range(rank, len(self.views) + len(self.real), world_size)
        bar = tqdm(numbers, f"validate {epoch}", unit="pair", leave=False, disable=rank > 0)
        return [
            self._score_generated(number, folder)
            if number < len(self.views)
            else self._score_real(number, folder)
            for number in bar
        ]

    def report(self, scores: list[PairScore]) -> ValidationReport:
        """Summary of the pairs of all processes.

        Args:
            scores: of every pair, in any order.
        """
        scores = sorted(scores, key=lambda score: score.number)
        generated = [score for score in scores if score.mode != REAL]
        real = [score for score in scores if score.mode == REAL]
        summary = summarise_generated(generated) | summarise_real(real)
        lines = ["generated pairs, bare view: error = mean corner error, px at 512"]
        lines += [score.line() for score in generated]
        if real:
            lines.append("real pairs, bare view: error = median landmark error, px at 512")
            lines += [score.line() for score in real]
        average = "  ".join(f"{name} {value:.5g}" for name, value in summary.items())
        lines.append(f"average: {average}")
        return ValidationReport(self._choosing_figure(summary), summary, "\n".join(lines))

    def _choosing_figure(self, summary: dict[str, float]) -> float:
        """The value that chooses the best checkpoint; larger is better."""
        figure, select = self.settings.figure, self.settings.select
        names = {GENERATED: [figure], REAL_PAIRS: [f"{figure}_real"]}
        names[BOTH] = names[GENERATED] + names[REAL_PAIRS]
        if not set(names[select]) <= set(summary):
            raise InputError(
                f"validation.figure: {figure} is not measured for {self.matcher.name}; choose "
                "another figure."
            )
        return float(np.mean([summary[name] for name in names[select]]))

    def _register(self, fixed: np.ndarray, moving: np.ndarray) -> Registration:
        return register_pair(self.matcher, fixed, moving, "affine", self.plausibility)

    def _score_generated(self, number: int, folder: Path) -> PairScore:
        view = self.generated[ViewKey(0, self.views[number])]
        fixed, moving = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
        result = self._register(fixed, moving)
        H_true = view["H_fix_to_mov"].double().numpy()
        overlap = valid_overlap(
            view["H_fix_to_mov"][None], view["fixed_fov"][None], view["moving_fov"][None]
        )[0, 0].numpy()
        key = f"{view['key']}_{number:03d}"
        if number < self.settings.pictures:
            write_pair_pictures(folder, key, fixed, moving, result)
        return PairScore(
            number=number,
            key=key,
            mode=view["mode"],
            error=corner_error(result.H_fix_to_mov, H_true, fixed.shape, moving.shape),
            mse=registration_mse(
                result.H_fix_to_mov, moving, view["aligned_moving"][0].numpy(), overlap
            ),
            n_matches=result.n_matches,
            n_inliers=result.n_inliers,
            status=result.status,
            reason=result.reason,
            n_right=count_right_matches(
                result.fixed_points, result.moving_points, H_true, moving.shape
            ),
            **_detector_figures(result, view, H_true),
        )

    def _score_real(self, number: int, folder: Path) -> PairScore:
        place = number - len(self.views)
        rotation, pair = self.real[place]
        color = pair.color_images()
        given = EvaluationPair(
            pair.key, pair.eye, *pair.images(), pair.fixed_landmarks, pair.moving_landmarks
        )
        turned = apply_stress(given, Stress(rotation=rotation))
        result = self._register(turned.fixed, turned.moving)
        key = f"real_{pair.key}" + (f"_{rotation:g}deg" if rotation else "")
        if place % (len(self.real) // len(self.settings.real_rotations)) < self.settings.pictures:
            moving = turned.moving if rotation else color[1]
            write_pair_pictures(folder, key, color[0], moving, result)
        landmarks = turned.fixed_landmarks, turned.moving_landmarks
        return PairScore(
            number=number,
            key=key,
            mode=REAL,
            error=pair_error(result.H_fix_to_mov, *landmarks, turned.moving.shape).median,
            mse=float("nan"),
            n_matches=result.n_matches,
            n_inliers=result.n_inliers,
            status=result.status,
            reason=result.reason,
            rotation=rotation,
        )


def _detector_figures(result: Registration, view: dict, H_true: np.ndarray) -> dict[str, float]:
    """Repeatability, localisation error and new keypoints; empty without a detector."""
    matches = result.matches
    if matches.fixed_heatmap is None:
        return {}
    fixed, moving = (
        image.to_original(keypoints)
        for image, keypoints in (
            (matches.fixed, matches.fixed_keypoints),
            (matches.moving, matches.moving_keypoints),
        )
    )
    fixed = fixed[on_mask(warp_points(fixed, H_true), view["moving_fov"][0].numpy())]
    in_fixed = warp_points(moving, np.linalg.inv(H_true))
    moving = moving[on_mask(in_fixed, view["fixed_fov"][0].numpy())]
    scores = detector_scores(fixed, moving, H_true, view["moving_image"].shape[-2:])
    is_junction = on_mask(fixed, view["fixed_heatmap"][0].numpy() > SEED_HEAT)
    return {
        "repeatability": scores.repeatability,
        "localisation_px": scores.localisation_px,
        "new_keypoints": float((scores.fixed_repeated & ~is_junction).sum()),
    }
