"""Fit the confidence of a registration: how likely is a matrix right, given its matches and how the vessels agree?

    python -m benchmarks.confidence --data data/release --split save/<mode>/<name>/split.yaml --weights best.pth

Runs right pairs and pairs of different eyes of the *validation* eyes without any limit on the evidence, and fits a logistic
model to what comes out. Prints its coefficients, beside which ``registration/confidence.py`` says why it holds others, and how well
either part the two.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from tqdm import tqdm

from dataset.samples import MODE_FILES
from evaluation.sets import GeneratedDraw, PairLoader, generated_set, wrong_pairs
from geometry.accuracy import pair_error
from geometry.estimation import Plausibility
from registration.confidence import MAX_SIGNIFICANCE, confidence_of
from registration.matcher import Matcher
from registration.pipeline import register_pair
from registration.registrar import Registrar
from utils.errors import InputError, run_script

RIGHT_PX = 10.0  # mean corner error, px at 512, up to which a matrix counts as right
PRIOR_STRENGTH = 0.02  # keeps the coefficients finite where right and wrong are parted completely


class Evidence(NamedTuple):
    """What a pair showed: significance of its matches, agreement of its ridges, and whether its matrix is right."""

    significance: float
    agreement: float
    right: bool


def gather(loaders: list[PairLoader], matcher: Matcher, limits: Plausibility) -> list[Evidence]:
    """Evidence of all pairs for which any matrix comes out; wrong pairs have no landmarks and are never right."""
    evidence = []
    for load in tqdm(loaders, unit="pair"):
        pair = load()
        result = register_pair(matcher, pair.fixed, pair.moving, plausibility=limits)
        if result.H_fix_to_mov is None:
            continue
        right = (
            len(pair.fixed_landmarks) > 0
            and pair_error(
                result.H_fix_to_mov, pair.fixed_landmarks, pair.moving_landmarks, pair.moving.shape
            ).mean
            <= RIGHT_PX
        )
        evidence.append(Evidence(result.significance, result.agreement, right))
    return evidence


def fit_logistic(evidence: list[Evidence]) -> np.ndarray:
    """Bias and weights (3,) of the most likely logistic model; right and wrong count alike, however many there are.

    Raises:
        InputError: only right or only wrong pairs.
    """
    right = np.array([item.right for item in evidence], dtype=bool)
    if right.all() or not right.any():
        raise InputError(
            f"{right.sum()} right and {(~right).sum()} wrong matrices: both are needed; give more pairs."
        )
    design = np.array(
        [[1.0, min(item.significance, MAX_SIGNIFICANCE), item.agreement] for item in evidence]
    )
    weight = np.where(right, 0.5 / right.sum(), 0.5 / (~right).sum())

    def cost(coefficients: np.ndarray) -> float:
        margin = design @ coefficients * np.where(right, 1.0, -1.0)
        return float(
            (weight * np.logaddexp(0.0, -margin)).sum()
            + PRIOR_STRENGTH * (coefficients[1:] ** 2).sum()
        )

    return minimize(cost, np.zeros(3)).x


def main() -> None:
    """Gather, fit, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="generated data")
    parser.add_argument("--split", required=True, help="split.yaml of the training run")
    parser.add_argument(
        "--weights", help="checkpoint (default: the weights shipped in save/pretrained)"
    )
    parser.add_argument("--modes", nargs="+", default=list(MODE_FILES))
    parser.add_argument("--draws", type=int, default=1, help="right pairs per sample")
    parser.add_argument("--wrong", type=int, default=60, help="wrong pairs per mode")
    args = parser.parse_args()
    registrar = Registrar(args.weights)
    matcher = registrar.matcher
    matcher.settings = replace(matcher.settings, min_significance=0.0, min_confidence=0.0)
    draw = GeneratedDraw(args.draws, rotation_deg=180.0, shift=0.2, scale=1.7, overlap=0.5)
    evidence = []
    for mode in args.modes:
        loaders = generated_set(args.data, [mode], args.split, "val", draw)
        evidence += gather(
            loaders + wrong_pairs(loaders, args.wrong, draw.seed), matcher, registrar.plausibility
        )
    bias, per_significance, per_agreement = fit_logistic(evidence)
    for name, items in (
        ("right", [e for e in evidence if e.right]),
        ("wrong", [e for e in evidence if not e.right]),
    ):
        table = np.array([(e.significance, e.agreement) for e in items])
        print(
            f"{len(items)} {name} matrices; percentiles 1, 10, 50, 90, 99 of significance "
            f"{np.percentile(table[:, 0], (1, 10, 50, 90, 99)).round(2)}, of agreement "
            f"{np.percentile(table[:, 1], (1, 10, 50, 90, 99)).round(2)}"
        )
    print(
        f"bias {bias:.2f}, per significance {per_significance:.3f}, per agreement {per_agreement:.3f}"
    )
    highest = sorted(
        (confidence_of(e.significance, e.agreement) for e in evidence if not e.right), reverse=True
    )[:5]
    print(f"under the coefficients in use wrong matrices come to at most {np.round(highest, 3)}")


if __name__ == "__main__":
    run_script(main)
