"""Wrong teaching pairs are found out, faint right ones stay: simulated views."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geometry.transforms import MatrixTransform
from loss.agreement import Agreement
from training.teaching_evidence import Evidence, EvidenceSettings, p_at_least, p_at_most
from training.teaching_set import LEFT, TeachingSet, TeachingSettings
from utils.errors import InputError

REFERENCE = 0.3  # share of right matches of the generated views
VIEWS_PER_EPOCH = 4


def simulate(
    shares: np.ndarray,
    n_views: int,
    seed: int = 0,
    reference: float = REFERENCE,
    true_chance: float = 1.0,
) -> np.ndarray:
    """Number of views after which each landmark pair leaves; infinite if it stays.

    Args:
        shares: right share of each pair; 0 for a wrong one.
        n_views: of each pair.
        seed: of the draws.
        reference: share of right matches of the generated views.
        true_chance: matches right by chance, as a multiple of the expected ones.
    """
    rng, n = np.random.default_rng(seed), len(shares)
    names = [f"pair{index}" for index in range(n)]
    teaching = TeachingSet({name: (MatrixTransform(np.eye(3)), 3.0) for name in names}, [])
    means, chance = rng.uniform(30, 130, n), rng.uniform(0.05, 0.5, n)
    left = np.full(n, math.inf)
    known = [Agreement("g", "generated", 80, round(80 * reference), 0.2)]
    teaching.observe(known * 100)
    for view in range(1, n_views + 1):
        matches = np.maximum(rng.poisson(means), 1)
        drawn = np.clip(shares * rng.gamma(2.0, 0.5, n), 0, 1)
        right = rng.binomial(matches, drawn) + rng.poisson(true_chance * chance)
        teaching.observe(
            known
            + [
                Agreement(name, "landmarks", int(m), int(r), float(e))
                for name, m, r, e in zip(names, matches, right, chance, strict=True)
            ]
        )
        if view % VIEWS_PER_EPOCH == 0:
            teaching.judge(view // VIEWS_PER_EPOCH)
            gone = np.array([teaching.records[name].status == LEFT for name in names])
            left[gone & np.isinf(left)] = view
    return left


def test_right_pairs_stay_although_they_are_faint():
    shares = np.exp(np.random.default_rng(1).uniform(np.log(0.01), np.log(0.4), 60))
    assert np.isinf(simulate(shares, 100)).mean() >= 0.98


def test_wrong_pairs_leave():
    left = simulate(np.zeros(60), 100)
    assert (left <= 40).mean() > 0.7 and (left <= 100).mean() > 0.9


def test_a_strong_right_pair_never_leaves_and_a_clearly_wrong_one_soon():
    assert np.isinf(simulate(np.full(30, 0.1), 60)).all()
    evidence, settings = Evidence(), EvidenceSettings()
    for _ in range(12):
        evidence.add(Agreement("a", "landmarks", 120, 0, 0.1), settings, REFERENCE)
    assert not evidence.judge(settings), "once is not enough"
    assert not evidence.judge(settings), "nor is the same evidence a second time"
    evidence.add(Agreement("a", "landmarks", 120, 0, 0.1), settings, REFERENCE)
    assert evidence.judge(settings)


def test_fewer_views_than_the_minimum_are_not_judged():
    evidence, settings = Evidence(), EvidenceSettings()
    for _ in range(11):
        evidence.add(Agreement("a", "landmarks", 500, 0, 0.1), settings, REFERENCE)
        assert not evidence.judge(settings)


def test_doubt_must_be_in_a_row():
    evidence, settings = Evidence(), EvidenceSettings(min_views=2, window=4.0)
    wrong = Agreement("a", "landmarks", 1000, 0, 0.1)
    right = wrong._replace(n_right=300)
    verdicts = []
    for view in [wrong, wrong, right, *[wrong] * 60]:
        evidence.add(view, settings, REFERENCE)
        verdicts.append(evidence.judge(settings))
    assert verdicts.index(True) > 10, "the right view counts until it has faded"
    assert verdicts[-1]


def test_probabilities_are_those_of_the_poisson_distribution():
    mean = 2.5
    terms = [math.exp(-mean) * mean**k / math.factorial(k) for k in range(4)]
    assert p_at_most(3, mean) == pytest.approx(sum(terms))
    assert p_at_least(4, mean) == pytest.approx(1 - sum(terms))
    assert p_at_least(0, mean) == 1.0 and p_at_most(0, 0.0) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_views": 0},
        {"window": 12.0},
        {"far_below": 0.0},
        {"least_share": 1.0},
        {"chance_factor": 0.5},
        {"min_reference": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EvidenceSettings(**wrong)
    with pytest.raises(InputError, match="retry_every"):
        TeachingSettings(retry_every=0)
