"""Fit the model of the confidence to kept evidence, and check it on that of other eyes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binomtest

from benchmarks.confidence_evidence import CopyEvidence, PairEvidence
from registration.confidence_model import ConfidenceModel
from utils.errors import InputError

CORRECT_PX = 10.0  # largest mean landmark error of a right matrix, px at 512; chosen by hand
MAX_FALSE_OK, MAX_RIGHT_LOST = 0.01, 0.02  # the targets, shares of the pairs
TARGETS = f"false ok <= {MAX_FALSE_OK:.0%} and right lost <= {MAX_RIGHT_LOST:.0%}"
# Edges of the bins of the reliability diagram; narrow at both ends, where most results are.
BIN_EDGES = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.0)
MAX_ROUNDS = 30  # of choosing copies and fitting; a few suffice
# Candidates for the limits of the evidence, standard deviations; the fit takes the most likely. The
# least ones are chosen by hand: lower ones change the likelihood little and make the slope steep.
SIGNIFICANCE_LIMITS = (10.0, 15.0, 20.0, 30.0, 40.0, 60.0)
AGREEMENT_LIMITS = (4.0, 6.0, 8.0, 10.0, 15.0)


class Outcome(NamedTuple):
    """The result that the pipeline returns for a pair without a least confidence.

    Attributes:
        evidence: of the chosen copy; None if no copy has a matrix.
        confidence: in it, [0, 1]; 0 without a matrix.
        right: whether the matrix is right.
    """

    evidence: CopyEvidence | None
    confidence: float
    right: bool


def outcome_of(pair: PairEvidence, model: ConfidenceModel, sure_confidence: float) -> Outcome:
    """Repeat the choice of :func:`registration.pipeline.find_matrix` among the copies.

    Args:
        pair: with the evidence for its copies.
        model: of the confidence.
        sure_confidence: at which the search stops, [0, 1].
    """
    best, best_rank = Outcome(None, 0.0, False), (-1.0, 0.0, 0)
    for copy in pair.copies:
        confidence = model.probability(copy.significance, copy.agreement)
        rank = (confidence, copy.significance, copy.n_inliers)
        if rank > best_rank:
            best, best_rank = Outcome(copy, confidence, copy.error <= CORRECT_PX), rank
        if best.confidence >= sure_confidence:
            break
    return best


def outcomes_of(
    pairs: Sequence[PairEvidence], model: ConfidenceModel, sure_confidence: float
) -> list[Outcome]:
    """:func:`outcome_of` for every pair."""
    return [outcome_of(pair, model, sure_confidence) for pair in pairs]


class Fit(NamedTuple):
    """A fitted model and its cost: the mean negative log-likelihood of the results."""

    model: ConfidenceModel
    cost: float


def fit_model(
    pairs: Sequence[PairEvidence], start: ConfidenceModel, sure_confidence: float
) -> ConfidenceModel:
    """Fit the coefficients and limits to the results of pairs by maximum likelihood.

    Args:
        pairs: of the fitting eyes.
        start: coefficients with which the copies are chosen at first.
        sure_confidence: at which the search over copies stops, [0, 1].

    Raises:
        InputError: only right or only wrong matrices.
    """
    fits = [
        fit_within(
            pairs,
            replace(start, max_significance=significance, max_agreement=agreement),
            sure_confidence,
        )
        for significance, agreement in product(SIGNIFICANCE_LIMITS, AGREEMENT_LIMITS)
    ]
    return min(fits, key=lambda fit: fit.cost).model


def fit_within(
    pairs: Sequence[PairEvidence], start: ConfidenceModel, sure_confidence: float
) -> Fit:
    """Fit the coefficients, within the limits of a model.

    The result of a pair is that of its most likely copy, which depends on the coefficients; so
    choosing the copies and fitting alternate until the coefficients stay the same.

    Args:
        pairs: of the fitting eyes.
        start: coefficients with which the copies are chosen at first; its limits are kept.
        sure_confidence: at which the search over copies stops, [0, 1].

    Raises:
        InputError: only right or only wrong matrices.
    """
    fit = Fit(start, np.inf)
    for _ in range(MAX_ROUNDS):
        outcomes = outcomes_of(pairs, fit.model, sure_confidence)
        previous, fit = fit, fit_logistic([each for each in outcomes if each.evidence], fit.model)
        if fit.model == previous.model:
            break
    return fit


def fit_logistic(outcomes: Sequence[Outcome], limits: ConfidenceModel) -> Fit:
    """Logistic regression of "the matrix is right" on its evidence.

    The targets are those of Platt (1999, "Probabilistic outputs for support vector machines"):
    slightly less than 1 and more than 0, by the numbers of right and wrong matrices. They keep the
    coefficients finite where the evidence separates both completely. More evidence never lowers
    the confidence.

    Args:
        outcomes: with a matrix.
        limits: its limits of the evidence are kept.

    Returns:
        The model, its coefficients rounded to three decimals, and its cost.

    Raises:
        InputError: only right or only wrong matrices.
    """
    right = np.array([outcome.right for outcome in outcomes], dtype=bool)
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    if not (n_right and n_wrong):
        raise InputError(
            f"{n_right} correct and {n_wrong} wrong matrices: both are needed; give more pairs."
        )
    target = np.where(right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    items = [outcome.evidence for outcome in outcomes if outcome.evidence]
    evidence = np.array([(item.significance, item.agreement) for item in items])
    limited = np.minimum(evidence, (limits.max_significance, limits.max_agreement))
    design = np.column_stack([np.ones(len(items)), limited])

    def cost(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        log_odds = design @ coefficients
        loss = np.logaddexp(0.0, log_odds) - target * log_odds
        return float(loss.mean()), design.T @ (expit(log_odds) - target) / len(design)

    bounds = ((None, None), (0.0, None), (0.0, None))
    fit = minimize(cost, np.zeros(3), jac=True, bounds=bounds, method="L-BFGS-B")
    bias, per_significance, per_agreement = (round(float(value), 3) for value in fit.x)
    model = replace(
        limits, bias=bias, per_significance=per_significance, per_agreement=per_agreement
    )
    return Fit(model, float(fit.fun))


def good_thresholds(
    pairs: Sequence[PairEvidence], model: ConfidenceModel, sure_confidence: float
) -> tuple[float, float] | None:
    """The least and the largest least confidence that meets both targets on these pairs.

    Args:
        pairs: of the fitting eyes.
        model: of the confidence.
        sure_confidence: at which the search over copies stops, [0, 1].

    Returns:
        Both limits, [0, 1]; None if no threshold meets the targets.
    """
    outcomes = outcomes_of(pairs, model, sure_confidence)
    confidence = np.array([outcome.confidence for outcome in outcomes])
    right = np.array([outcome.right for outcome in outcomes], dtype=bool)
    good = [
        threshold
        for threshold in np.linspace(0.005, 0.995, 199)
        if (confidence[~right] >= threshold).mean() <= MAX_FALSE_OK
        and (confidence[right] < threshold).mean() <= MAX_RIGHT_LOST
    ]
    return (float(min(good)), float(max(good))) if good else None


def check(
    pairs: Sequence[PairEvidence],
    model: ConfidenceModel,
    min_confidence: float,
    sure_confidence: float,
) -> dict[str, Any]:
    """Rates, scores and reliability of a model.

    Args:
        pairs: right and wrong ones.
        model: of the confidence.
        min_confidence: of an accepted matrix, [0, 1].
        sure_confidence: at which the search over copies stops, [0, 1].

    Returns:
        ``false_ok`` and ``right_lost``, counts, each with ``_of`` (the number of pairs that it
        refers to) and ``_interval`` (95 %, Clopper and Pearson 1934, shares); ``brier``, the mean
        squared error of the confidence; ``calibration_error``, the mean difference between
        confidence and share of right matrices over the ``bins``. The scores and bins are of the
        pairs with a matrix.
    """
    outcomes = outcomes_of(pairs, model, sure_confidence)
    right = [outcome for outcome in outcomes if outcome.right]
    wrong = [outcome for outcome in outcomes if not outcome.right]
    record: dict[str, Any] = {}
    for name, counted, of in (
        ("false_ok", [each.confidence >= min_confidence for each in wrong], wrong),
        ("right_lost", [each.confidence < min_confidence for each in right], right),
    ):
        record |= {
            name: sum(counted),
            f"{name}_of": len(of),
            f"{name}_interval": list(_interval(sum(counted), len(of))),
        }
    found = [outcome for outcome in outcomes if outcome.evidence]
    confidence = np.array([outcome.confidence for outcome in found])
    correct = np.array([outcome.right for outcome in found], dtype=float)
    bins = reliability(confidence, correct)
    gaps = [item["n"] * abs(item["right"] / item["n"] - item["mean_confidence"]) for item in bins]
    return record | {
        "brier": float(((confidence - correct) ** 2).mean()) if found else 0.0,
        "calibration_error": sum(gaps) / max(len(found), 1),
        "bins": bins,
    }


def _interval(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Clopper and Pearson 1934); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    limits = binomtest(count, total).proportion_ci(method="exact")
    return float(limits.low), float(limits.high)


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Number of matrices and share of right ones, by confidence.

    Args:
        confidence: (N,), [0, 1].
        right: (N,) float, 1 for a right matrix and 0 for a wrong one.

    Returns:
        A record for each bin of ``BIN_EDGES`` that is not empty.
    """
    bins = []
    for low, high in pairwise(BIN_EDGES):
        inside = (confidence >= low) & ((confidence < high) | (high == BIN_EDGES[-1]))
        n, n_right = int(inside.sum()), int(right[inside].sum())
        if n:
            mean_confidence = float(confidence[inside].mean())
            bins.append(
                {"low": low, "high": high, "n": n, "right": n_right}
                | {"mean_confidence": mean_confidence, "interval": list(_interval(n_right, n))}
            )
    return bins


def draw_reliability(checked: dict[str, dict[str, Any]]) -> Figure:
    """Reliability diagram: share of right matrices against the confidence, with intervals.

    Below each panel stands the number of matrices in each bin.

    Args:
        checked: title of each panel to what :func:`check` returned.
    """
    figure = Figure(figsize=(4.5 * len(checked), 5.5), layout="constrained")
    panels = figure.subplots(2, len(checked), squeeze=False, sharex=True, height_ratios=(3, 1))
    for (above, below), (title, record) in zip(panels.T, checked.items(), strict=True):
        bins = record["bins"]
        x = [item["mean_confidence"] for item in bins]
        share = np.array([item["right"] / item["n"] for item in bins])
        low, high = np.array([item["interval"] for item in bins]).T
        above.plot([0, 1], [0, 1], color="#999999", linestyle="--", label="calibrated")
        above.errorbar(
            x, share, yerr=(share - low, high - share), fmt="o", capsize=3, label="measured, 95 %"
        )
        above.set(ylim=(-0.04, 1.04), ylabel="share of right matrices", title=title)
        above.legend(loc="lower right", frameon=False)
        starts, widths = (
            np.array(column)
            for column in zip(*((b["low"], b["high"] - b["low"]) for b in bins), strict=True)
        )
        bars = below.bar(starts, [b["n"] for b in bins], widths, align="edge", edgecolor="white")
        below.bar_label(bars, fontsize=8)
        below.set(yscale="log", ylim=(0.5, 2000), xlim=(-0.02, 1.02))
        below.set(xlabel="confidence", ylabel="matrices")
    return figure
