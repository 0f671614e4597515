"""Every transform on the same pairs, beside the oracle of each model; how often anything folds.

    python -m synthesis.camera_pairs --out data/camera --eyes 20 --modes cffa cfoct --seed 21
    python -m benchmarks.transforms --data data/camera/cffa data/camera/cfoct ../shared/data/real_pairs/cffa
    python -m benchmarks.transforms --data data/camera/cffa --fold 500        # random and wrong pairs: does anything fold?

An oracle is fitted to all landmarks of a pair but a tenth (at least one) and predicts those, so a model with more parameters is
not better by counting. Errors are px at 512, per pair the median for hand-placed landmarks and the mean where the correspondence
is dense (more than 100 points); a failed pair is infinite.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset.real_pairs import RealPair, load_real_pairs
from geometry.accuracy import FAILED, PairError, pair_error, to_reference_px
from geometry.curved_transforms import quadratic_terms
from geometry.matrices import affine_about, compose, image_centre, translation_matrix
from geometry.points import pixel_grid
from geometry.transforms import MatrixTransform
from registration.curved_refinement import estimate_beyond_affine
from registration.pipeline import TRANSFORMS, register_pair
from registration.registrar import Registrar
from registration.ridges import RidgePair
from registration.working_frame import to_working_frame
from utils.errors import InputError, run_script

DENSE = 100  # more landmarks than a hand places
ORACLES = {"similarity": 2, "affine": 3, "homography": 4, "quadratic": 6}


def figure_of(pair: RealPair, error: PairError) -> float:
    """The figure of a pair: the mean of a dense correspondence, the median of landmarks."""
    return error.mean if len(pair.fixed_landmarks) > DENSE else error.median


def oracle_error(pair: RealPair, model: str, moving_size: tuple[int, int]) -> float:
    """Error of a model fitted to the other landmarks, px at 512; every tenth part is left out where there are many."""
    fixed, moving = pair.fixed_landmarks, pair.moving_landmarks
    if len(fixed) <= ORACLES[model]:
        return float("nan")
    parts = np.arange(len(fixed)) % min(len(fixed), 10)
    left = np.concatenate(
        [
            np.linalg.norm(
                _predict(model, fixed[parts != part], moving[parts != part], fixed[parts == part])
                - moving[parts == part],
                axis=1,
            )
            for part in np.unique(parts)
        ]
    )
    left = left * to_reference_px(moving_size)
    return float(left.mean() if len(fixed) > DENSE else np.median(left))


def _predict(model: str, fixed: np.ndarray, moving: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Least squares of a model on landmarks, read at other points."""
    centre, spread = fixed.mean(axis=0), np.abs(fixed - fixed.mean(axis=0)).max()
    known, asked = (fixed - centre) / spread, (points - centre) / spread
    if model == "similarity":
        ones, zeros = np.ones(len(known)), np.zeros(len(known))
        rows = np.concatenate(
            [
                np.stack([known[:, 0], -known[:, 1], ones, zeros], 1),
                np.stack([known[:, 1], known[:, 0], zeros, ones], 1),
            ]
        )
        a, b, x, y = np.linalg.lstsq(rows, moving.T.ravel(), rcond=None)[0]
        return asked @ np.array([[a, b], [-b, a]]) + [x, y]
    if model == "homography":
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
        mapped = np.column_stack([asked, np.ones(len(asked))]) @ H.T
        return mapped[:, :2] / mapped[:, 2:] * scale + offset
    # All landmarks within the circle in which quadratic_terms are quadratic.
    terms, wanted = (quadratic_terms(each / 2.0)[:, : ORACLES[model]] for each in (known, asked))
    return wanted @ np.linalg.lstsq(terms, moving, rcond=None)[0]


def measure(
    root: Path, registrar: Registrar, transforms: list[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, list[str]]]:
    """Errors of each transform, of each oracle, and what kind came out, over the pairs of a folder."""
    found: dict[str, list[float]] = {name: [] for name in transforms}
    kinds: dict[str, list[str]] = {name: [] for name in transforms}
    oracles: dict[str, list[float]] = {name: [] for name in ORACLES}
    for pair in tqdm(load_real_pairs(root, root.name), desc=root.name, unit="pair"):
        fixed, moving = pair.images()
        for name in transforms:
            result = register_pair(registrar.matcher, fixed, moving, name, registrar.plausibility)
            error = (
                FAILED
                if result.transform is None
                else pair_error(
                    result.transform, pair.fixed_landmarks, pair.moving_landmarks, moving.shape
                )
            )
            found[name].append(figure_of(pair, error))
            kinds[name].append("failed" if result.transform is None else result.transform.kind)
        for name in ORACLES:
            oracles[name].append(oracle_error(pair, name, moving.shape))
    return found, oracles, kinds


def as_table(
    found: dict[str, list[float]], oracles: dict[str, list[float]], kinds: dict[str, list[str]]
) -> str:
    """A Markdown table of one folder."""
    affine = np.array(found["affine"])
    both = np.isfinite(affine)
    lines = [
        "| transform | failed | median | mean of found | mean over affine's | worst against affine | oracle, median | came "
        "out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, values in found.items():
        errors = np.array(values)
        ok = both & np.isfinite(errors)
        worst = f"{(errors[both] - affine[both]).max():+.2f}" if both.any() else "-"
        oracle = (
            f"{np.nanmedian(oracles[name]):.2f}"
            if name in oracles and np.isfinite(oracles[name]).any()
            else ""
        )
        came = ", ".join(f"{kinds[name].count(kind)} {kind}" for kind in dict.fromkeys(kinds[name]))
        means = (errors[ok].mean(), affine[ok].mean()) if ok.any() else (np.nan, np.nan)
        lines.append(
            f"| {name} | {int((~np.isfinite(errors)).sum())}/{len(errors)} | {np.median(errors):.2f} | {means[0]:.2f} | "
            f"{means[0] / means[1]:.2f} | {worst} | {oracle} | {came} |"
        )
    return "\n".join(lines)


def refine_random_pairs(
    roots: list[Path], registrar: Registrar, count: int, seed: int
) -> list[tuple[bool, float, float]]:
    """Refine pairs as if their matrix had been found: in turn a true pair from the affine through its landmarks, a few pixels
    off, and the images of two pairs, most of them of different eyes, from a random matrix.

    Returns:
        Of each: whether it was refined beyond the matrix, the least Jacobian relative to the matrix, and how far a pixel is from
        where mapping it there and back brings it, at most, px.
    """
    rng = np.random.default_rng(seed)
    pairs = [pair for root in roots for pair in load_real_pairs(root, root.name)]
    found = []
    for index in tqdm(range(count), desc="folding", unit="pair"):
        first, second = rng.integers(len(pairs), size=2)
        true = index % 2 == 0
        images = pairs[first].images()[0], pairs[first if true else second].images()[1]
        ridges = RidgePair(
            *(to_working_frame(image, registrar.matcher.settings.long_side) for image in images)
        )
        frames, sizes = (
            [each.frame.H_image_to_working for each in ridges.images],
            [each.image.shape for each in ridges.images],
        )
        if true:
            H = compose(
                np.linalg.inv(frames[0]),
                pairs[first].H_fix_to_mov,
                frames[1],
                translation_matrix(rng.normal(0, 2, 2)),
            )
        else:
            H = affine_about(
                rng.uniform(-180, 180),
                np.exp(rng.uniform(-0.3, 0.3)),
                rng.uniform(-0.1, 0.1),
                image_centre(sizes[0]),
                image_centre(sizes[1]) + rng.uniform(-0.2, 0.2, 2) * sizes[1],
            )
        transform = estimate_beyond_affine(ridges, H, "deformable").transform
        grid = pixel_grid(sizes[0]).double().numpy()[::7]
        back = transform.map_back(transform.map(grid))
        found.append(
            (
                not isinstance(transform, MatrixTransform),
                transform.least_jacobian(sizes[0], 4) / abs(np.linalg.det(H[:2, :2])),
                float(np.nan_to_num(np.linalg.norm(back - grid, axis=1), nan=np.inf).max()),
            )
        )
    return found


def main() -> None:
    """Print a table for every folder, or count what folds."""
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
    parser.add_argument("--weights")
    parser.add_argument(
        "--transforms", nargs="+", default=[name for name in TRANSFORMS], choices=TRANSFORMS
    )
    parser.add_argument(
        "--fold",
        type=int,
        default=0,
        metavar="N",
        help="instead: N random pairs, and whether anything folds",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if "affine" not in args.transforms:
        raise InputError(
            "--transforms: affine must be among them, for the others are compared with it."
        )
    registrar = Registrar(args.weights, device=args.device)
    if args.fold:
        refined, least, back = map(
            np.array,
            zip(*refine_random_pairs(args.data, registrar, args.fold, args.seed), strict=True),
        )
        print(
            f"{int((least <= 0).sum())} of {len(least)} fold; {int(refined.sum())} were refined beyond the matrix; least "
            f"relative Jacobian {least.min():.2f}; there and back a pixel is off by at most {back.max():.4f} px"
        )
        return
    for root in args.data:
        print(f"\n{root}\n\n{as_table(*measure(root, registrar, args.transforms))}", flush=True)


if __name__ == "__main__":
    run_script(main)
