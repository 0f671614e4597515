"""Fit the coefficients of the confidence of a registration.

    python -m benchmarks.confidence --data data/release --split save/<mode>/<name>/split.yaml \
        --weights save/<mode>/<name>/best.pth

Registers pairs of one eye and pairs of different eyes, both of the *validation* eyes, without
limits on significance and confidence, and fits a logistic model: is the matrix correct, given the
significance of its matches and the agreement of the ridges? Prints percentiles of both for correct
and wrong matrices, the fitted coefficients, and the highest confidences of wrong matrices under the
coefficients in use; ``registration/confidence.py`` explains why those differ from the fit. Writes
nothing.
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
from registration.confidence import CONFIDENCE_MODEL, confidence_of
from registration.keypoint_matcher import KeypointMatchSettings
from registration.matcher import Matcher
from registration.pipeline import register_pair
from registration.registrar import Registrar
from utils.errors import InputError, run_script

CORRECT_PX = 10.0  # largest mean landmark error of a correct matrix, px at 512; chosen by hand
# Weight of the squared coefficients in the cost. Keeps them finite where the evidence separates
# correct and wrong matrices completely. Chosen by hand.
REGULARISATION = 0.02
PERCENTILES = (1, 10, 50, 90, 99)  # that are printed
# Same-eye pairs: any rotation, shift up to 20 %, scale 1/1.7 to 1.7, overlap of at least a half.
DRAW = GeneratedDraw(rotation_deg=180.0, shift=0.2, scale=1.7, overlap=0.5)


class Evidence(NamedTuple):
    """Evidence for one matrix: significance of its matches, agreement of the ridges, and whether
    the matrix is correct."""

    significance: float
    agreement: float
    correct: bool


def gather(loaders: list[PairLoader], matcher: Matcher, limits: Plausibility) -> list[Evidence]:
    """Evidence of every pair for which a matrix is found.

    Pairs of different eyes have no landmarks; their matrices are wrong.
    """
    evidence = []
    for load in tqdm(loaders, unit="pair"):
        pair = load()
        result = register_pair(matcher, pair.fixed, pair.moving, plausibility=limits)
        if result.H_fix_to_mov is None:
            continue
        correct = False
        if len(pair.fixed_landmarks):
            error = pair_error(
                result.H_fix_to_mov, pair.fixed_landmarks, pair.moving_landmarks, pair.moving.shape
            )
            correct = error.mean <= CORRECT_PX
        evidence.append(Evidence(result.significance, result.agreement, correct))
    return evidence


def fit_logistic(evidence: list[Evidence]) -> np.ndarray:
    """Fit a logistic model by regularised maximum likelihood.

    Correct and wrong matrices have the same total weight, whatever their numbers.

    Returns:
        (3,) float64: bias, weight of the significance, weight of the agreement.

    Raises:
        InputError: only correct or only wrong matrices.
    """
    correct = np.array([item.correct for item in evidence], dtype=bool)
    if correct.all() or not correct.any():
        raise InputError(
            f"{correct.sum()} correct and {(~correct).sum()} wrong matrices: both are needed; "
            "give more pairs."
        )
    limit = CONFIDENCE_MODEL.max_significance
    design = np.array([[1.0, min(item.significance, limit), item.agreement] for item in evidence])
    weight = np.where(correct, 0.5 / correct.sum(), 0.5 / (~correct).sum())

    def cost(coefficients: np.ndarray) -> float:
        margin = design @ coefficients * np.where(correct, 1.0, -1.0)
        loss = (weight * np.logaddexp(0.0, -margin)).sum()
        return float(loss + REGULARISATION * (coefficients[1:] ** 2).sum())

    return minimize(cost, np.zeros(3)).x


def gather_all(args: argparse.Namespace) -> list[Evidence]:
    """Evidence of the pairs of all modes of the command."""
    registrar = Registrar(args.weights)
    matcher = registrar.matcher
    matcher.settings = replace(matcher.settings, min_confidence=0.0)
    if isinstance(matcher.settings, KeypointMatchSettings):
        matcher.settings = replace(matcher.settings, min_significance=0.0)
    draw = replace(DRAW, draws=args.draws)
    evidence = []
    for mode in args.modes:
        loaders = generated_set(args.data, [mode], args.split, "val", draw).loaders
        loaders = loaders + wrong_pairs(loaders, args.wrong, draw.seed)
        evidence += gather(loaders, matcher, registrar.plausibility)
    return evidence


def report(evidence: list[Evidence], coefficients: np.ndarray) -> str:
    """Format percentiles, fit, and the largest confidences of wrong matrices.

    Args:
        evidence: correct and wrong matrices.
        coefficients: (3,) of :func:`fit_logistic`.
    """
    correct = [item for item in evidence if item.correct]
    wrong = [item for item in evidence if not item.correct]
    lines = []
    for name, items in (("correct", correct), ("wrong", wrong)):
        values = np.array([(item.significance, item.agreement) for item in items])
        significance, agreement = np.percentile(values, PERCENTILES, axis=0).T.round(2)
        lines.append(
            f"{len(items)} {name} matrices; percentiles {', '.join(map(str, PERCENTILES))} of "
            f"significance {significance}, of agreement {agreement}"
        )
    bias, per_significance, per_agreement = coefficients
    lines.append(
        f"bias {bias:.2f}, per significance {per_significance:.3f}, "
        f"per agreement {per_agreement:.3f}"
    )
    in_use = sorted(confidence_of(item.significance, item.agreement) for item in wrong)
    lines.append(
        "largest confidences of wrong matrices under the coefficients in use: "
        f"{np.round(in_use[-5:][::-1], 3)}"
    )
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="generated data")
    parser.add_argument("--split", required=True, help="split.yaml of the training run")
    parser.add_argument(
        "--weights", help="checkpoint (default: the weights shipped in save/pretrained)"
    )
    parser.add_argument("--modes", nargs="+", default=list(MODE_FILES), help="kinds of pairs")
    parser.add_argument("--draws", type=int, default=1, help="pairs of one eye per sample")
    parser.add_argument("--wrong", type=int, default=60, help="pairs of different eyes per mode")
    return parser


def main() -> None:
    """Gather the evidence, fit the model and print both."""
    evidence = gather_all(get_args_parser().parse_args())
    print(report(evidence, fit_logistic(evidence)))


if __name__ == "__main__":
    run_script(main)
