"""Accuracy of every transform on the same pairs, beside the oracle of each model; folding.

    python -m synthesis.camera_pairs --out data/camera --eyes 20 --modes cffa cfoct --seed 21
    python -m benchmarks.transforms --data data/camera/cffa data/camera/cfoct \
        ../shared/data/real_pairs/cffa
    python -m benchmarks.transforms --data data/camera/cffa --fold 500

Measures the error of each pair, px at 512: the median for hand-placed landmarks, the mean for a
dense correspondence (more than 100 points); infinite where the registration failed. The oracle of a
model is its least-squares fit to the landmarks of a pair, scored on held-out landmarks (ten-fold
cross-validation), so that more parameters alone do not lower its error.

With --fold N, counts instead how many transforms fold among N refinements that start from slightly
wrong matrices of true pairs and from random matrices of mixed pairs.

Prints one table for each folder, and writes nothing. An affine registration takes about 0.4 s on
2 cores, a curved one longer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.documents import markdown_table
from dataset.real_pairs import RealPair, load_real_pairs
from geometry.accuracy import PairError, pair_error, to_reference_px
from geometry.curved_transforms import quadratic_terms
from geometry.matrices import Size, affine_about, compose, image_centre, translation_matrix
from geometry.points import pixel_grid
from geometry.transforms import MatrixTransform
from registration.curved_refinement import estimate_beyond_affine
from registration.pipeline import register_pair
from registration.registrar import Registrar
from registration.ridges import RidgePair
from registration.transform_choice import TRANSFORMS
from registration.working_frame import to_working_frame
from utils.errors import InputError, run_script

DENSE = 100  # more landmarks than this are a dense correspondence, not hand-placed
FOLDS = 10  # of the cross-validation of the oracles
# Models of the oracles: number of landmarks that determine one. For affine and quadratic it is
# also the number of terms per coordinate.
ORACLES = {"similarity": 2, "affine": 3, "homography": 4, "quadratic": 6}
START_NOISE_PX = 2.0  # standard deviation of the shift of a true pair's matrix, working pixels
GRID_STEP_PX = 7  # distance of the pixels that are mapped there and back
JACOBIAN_STEP_PX = 4  # distance of the pixels at which the Jacobian is evaluated


class FolderErrors(NamedTuple):
    """Results for the pairs of a folder.

    Attributes:
        errors: by transform, px at 512, infinite where the registration failed.
        kinds: by transform, the kind of transform that was chosen, or "failed".
        oracles: by model, px at 512, NaN where a pair has too few landmarks.
    """

    errors: dict[str, list[float]]
    kinds: dict[str, list[str]]
    oracles: dict[str, list[float]]


class FoldTest(NamedTuple):
    """A refined transform.

    Attributes:
        refined: whether a curved transform was chosen.
        least_jacobian: least determinant of the Jacobian over the image, relative to that of the
            initial matrix; not positive where the transform folds.
        round_trip_px: largest distance between a pixel and where mapping it there and back brings
            it, px; infinite where the inverse does not converge.
    """

    refined: bool
    least_jacobian: float
    round_trip_px: float


def summary_error(pair: RealPair, error: PairError) -> float:
    """The error of a pair: mean for a dense correspondence, median for hand-placed landmarks."""
    return error.mean if len(pair.fixed_landmarks) > DENSE else error.median


# --- oracles --------------------------------------------------------------------------------------


def oracle_error(pair: RealPair, model: str, moving_size: Size) -> float:
    """Cross-validated error of a model that is fitted to landmarks.

    Args:
        pair: with landmarks of both images.
        model: one of ``ORACLES``.
        moving_size: (height, width) of the moving image.

    Returns:
        The mean or median distance of held-out landmarks, px at 512; NaN where there are too few.
    """
    fixed, moving = pair.fixed_landmarks, pair.moving_landmarks
    if len(fixed) <= ORACLES[model]:
        return float("nan")
    folds = np.arange(len(fixed)) % min(len(fixed), FOLDS)
    distances = []
    for fold in np.unique(folds):
        kept, held_out = folds != fold, folds == fold
        predicted = fit_and_map(model, fixed[kept], moving[kept], fixed[held_out])
        distances.append(np.linalg.norm(predicted - moving[held_out], axis=1))
    errors = np.concatenate(distances) * to_reference_px(moving_size)
    return float(errors.mean() if len(fixed) > DENSE else np.median(errors))


def fit_and_map(
    model: str, fixed: np.ndarray, moving: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Fit a model to landmarks by least squares and map other points with it.

    Args:
        model: one of ``ORACLES``.
        fixed, moving: (N, 2) float64, pixels (x, y) of each image; row i corresponds.
        points: (M, 2) float64, fixed pixels.

    Returns:
        (M, 2) float64, moving pixels.
    """
    centre, spread = fixed.mean(axis=0), np.abs(fixed - fixed.mean(axis=0)).max()
    known, wanted = (fixed - centre) / spread, (points - centre) / spread
    if model == "similarity":
        return _map_by_similarity(known, moving, wanted)
    if model == "homography":
        return _map_by_homography(known, moving, wanted)
    # Halved, so that all landmarks lie in the unit circle, where quadratic_terms are quadratic.
    n_terms = ORACLES[model]
    known_terms = quadratic_terms(known / 2.0)[:, :n_terms]
    wanted_terms = quadratic_terms(wanted / 2.0)[:, :n_terms]
    return wanted_terms @ np.linalg.lstsq(known_terms, moving, rcond=None)[0]


def _map_by_similarity(known: np.ndarray, moving: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """:func:`fit_and_map` for a similarity; ``known`` and ``wanted`` are normalised."""
    ones, zeros = np.ones(len(known)), np.zeros(len(known))
    rows = np.concatenate(
        [
            np.stack([known[:, 0], -known[:, 1], ones, zeros], 1),
            np.stack([known[:, 1], known[:, 0], zeros, ones], 1),
        ]
    )
    a, b, x, y = np.linalg.lstsq(rows, moving.T.ravel(), rcond=None)[0]
    return wanted @ np.array([[a, b], [-b, a]]) + [x, y]


def _map_by_homography(known: np.ndarray, moving: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """:func:`fit_and_map` for a homography, by the normalised DLT (Hartley & Zisserman, 4.1, 4.4);
    ``known`` and ``wanted`` are normalised."""
    offset, scale = moving.mean(axis=0), np.abs(moving - moving.mean(axis=0)).max()
    (u, v), (x, y) = known.T, ((moving - offset) / scale).T
    ones, zeros = np.ones(len(known)), np.zeros(len(known))
    rows = np.concatenate(
        [
            np.stack([u, v, ones, zeros, zeros, zeros, -u * x, -v * x, -x], 1),
            np.stack([zeros, zeros, zeros, u, v, ones, -u * y, -v * y, -y], 1),
        ]
    )
    H = np.linalg.svd(rows)[2][-1].reshape(3, 3)
    mapped = np.column_stack([wanted, np.ones(len(wanted))]) @ H.T
    return mapped[:, :2] / mapped[:, 2:] * scale + offset


# --- accuracy -------------------------------------------------------------------------------------


def measure(root: Path, registrar: Registrar, transforms: list[str]) -> FolderErrors:
    """Errors of each transform and of each oracle for the pairs of a folder."""
    found = FolderErrors(
        errors={name: [] for name in transforms},
        kinds={name: [] for name in transforms},
        oracles={name: [] for name in ORACLES},
    )
    for pair in tqdm(load_real_pairs(root, root.name), desc=root.name, unit="pair"):
        fixed, moving = pair.images()
        for name in transforms:
            result = register_pair(registrar.matcher, fixed, moving, name, registrar.plausibility)
            error = pair_error(
                result.transform, pair.fixed_landmarks, pair.moving_landmarks, moving.shape
            )
            found.errors[name].append(summary_error(pair, error))
            kind = "failed" if result.transform is None else result.transform.kind
            found.kinds[name].append(kind)
        for name in ORACLES:
            found.oracles[name].append(oracle_error(pair, name, moving.shape))
    return found


def as_table(found: FolderErrors) -> str:
    """Markdown table of one folder; "affine" must be among the transforms."""
    affine = np.array(found.errors["affine"])
    affine_ok = np.isfinite(affine)
    rows = {}
    for name, values in found.errors.items():
        errors, kinds = np.array(values), found.kinds[name]
        ok = affine_ok & np.isfinite(errors)
        mean, affine_mean = (errors[ok].mean(), affine[ok].mean()) if ok.any() else (np.nan, np.nan)
        oracle = np.array(found.oracles.get(name, [np.nan]))
        rows[name] = {
            "failed": f"{int((~np.isfinite(errors)).sum())}/{len(errors)}",
            "median": f"{np.median(errors):.2f}",
            "mean of found": f"{mean:.2f}",
            "mean over affine's": f"{mean / affine_mean:.2f}",
            "worst against affine": f"{(errors[affine_ok] - affine[affine_ok]).max():+.2f}"
            if affine_ok.any()
            else "-",
            "oracle, median": f"{np.nanmedian(oracle):.2f}" if np.isfinite(oracle).any() else "",
            "came out": ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)),
        }
    return markdown_table("transform", rows)


# --- folding --------------------------------------------------------------------------------------


def refine_random_pairs(
    roots: list[Path], registrar: Registrar, count: int, seed: int
) -> list[FoldTest]:
    """Refine pairs from given matrices, without registering them first.

    Alternates between a true pair, from the affine through its landmarks with a random shift, and
    the images of two random pairs, most of them of different eyes, from a random matrix.

    Args:
        roots: folders of pairs.
        registrar: for the working size.
        count: number of refinements.
        seed: of the choice of the pairs and of the matrices.
    """
    rng = np.random.default_rng(seed)
    pairs = [pair for root in roots for pair in load_real_pairs(root, root.name)]
    found = []
    for index in tqdm(range(count), desc="folding", unit="pair"):
        first, second = rng.integers(len(pairs), size=2)
        is_true = index % 2 == 0
        images = pairs[first].images()[0], pairs[first if is_true else second].images()[1]
        ridges = RidgePair(
            *(to_working_frame(image, registrar.matcher.settings.long_side) for image in images)
        )
        H = shifted_matrix(pairs[first], ridges, rng) if is_true else random_matrix(ridges, rng)
        found.append(refine_and_test(ridges, H))
    return found


def shifted_matrix(pair: RealPair, ridges: RidgePair, rng: np.random.Generator) -> np.ndarray:
    """The true ``H_fix_to_mov`` (3, 3) of a pair in working pixels, with a random shift."""
    H_fixed_to_working, H_moving_to_working = ridges.H_images_to_working
    return compose(
        np.linalg.inv(H_fixed_to_working),
        pair.H_fix_to_mov,
        H_moving_to_working,
        translation_matrix(rng.normal(0, START_NOISE_PX, 2)),
    )


def random_matrix(ridges: RidgePair, rng: np.random.Generator) -> np.ndarray:
    """A random affine ``H_fix_to_mov`` (3, 3) in working pixels: any rotation, scale exp(+-0.3),
    shear up to 0.1, shift up to 20 % of the image."""
    fixed_size, moving_size = (each.image.shape for each in ridges.images)
    return affine_about(
        rng.uniform(-180, 180),
        np.exp(rng.uniform(-0.3, 0.3)),
        rng.uniform(-0.1, 0.1),
        image_centre(fixed_size),
        image_centre(moving_size) + rng.uniform(-0.2, 0.2, 2) * moving_size,
    )


def refine_and_test(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> FoldTest:
    """Refine a matrix beyond affine and test the result for folds.

    Args:
        ridges: of both working images.
        H_fix_to_mov: (3, 3) affine, working pixels.
    """
    size = ridges.images[0].image.shape
    transform = estimate_beyond_affine(ridges, H_fix_to_mov, "deformable").transform
    grid = pixel_grid(size).double().numpy()[::GRID_STEP_PX]
    back = transform.map_back(transform.map(grid))
    distances = np.nan_to_num(np.linalg.norm(back - grid, axis=1), nan=np.inf)
    initial = abs(np.linalg.det(H_fix_to_mov[:2, :2]))
    return FoldTest(
        refined=not isinstance(transform, MatrixTransform),
        least_jacobian=transform.least_jacobian(size, JACOBIAN_STEP_PX) / initial,
        round_trip_px=float(distances.max()),
    )


def describe_folds(found: list[FoldTest]) -> str:
    """Sum up the tests in a sentence."""
    folded = sum(each.least_jacobian <= 0 for each in found)
    refined = sum(each.refined for each in found)
    return (
        f"{folded} of {len(found)} fold; {refined} were refined beyond the matrix; least relative "
        f"Jacobian {min(each.least_jacobian for each in found):.2f}; largest error of mapping "
        f"there and back {max(each.round_trip_px for each in found):.4f} px"
    )


# --- the command ----------------------------------------------------------------------------------


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        required=True,
        help="folders of real pairs, or of camera pairs",
    )
    parser.add_argument(
        "--weights", help="checkpoint (default: the weights shipped in save/pretrained)"
    )
    parser.add_argument(
        "--transforms",
        nargs="+",
        default=list(TRANSFORMS),
        choices=TRANSFORMS,
        help="transforms to compare; affine must be among them",
    )
    parser.add_argument(
        "--fold",
        type=int,
        default=0,
        metavar="N",
        help="test N refinements for folds instead",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of --fold")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    return parser


def main() -> None:
    """Print a table for every folder, or the number of transforms that fold."""
    args = get_args_parser().parse_args()
    if "affine" not in args.transforms:
        raise InputError(
            "--transforms: affine must be among them, because the others are compared with it."
        )
    registrar = Registrar(args.weights, device=args.device)
    if args.fold:
        print(describe_folds(refine_random_pairs(args.data, registrar, args.fold, args.seed)))
        return
    for root in args.data:
        print(f"\n{root}\n\n{as_table(measure(root, registrar, args.transforms))}", flush=True)


if __name__ == "__main__":
    run_script(main)
