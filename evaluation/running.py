"""Runs methods on sets of pairs and adds the results to the cache."""

from __future__ import annotations

import math
from pathlib import Path

from tqdm import tqdm

from evaluation.cache import EvaluationRow, PairCache
from evaluation.case_pictures import case_folder, write_outcome, write_unregistered
from evaluation.method import Method, Outcome
from evaluation.sets import EvaluationPair, EvaluationSet, wrong_pairs
from evaluation.stress import UNCHANGED, Stress, apply_stress
from geometry.accuracy import PairError, pair_error


def score(
    set_name: str,
    method: str,
    pair: EvaluationPair,
    stress: Stress,
    outcome: Outcome,
    checksum: str,
) -> EvaluationRow:
    """The row of a method on a degraded pair.

    Args:
        set_name, method: names of the set and of the method.
        pair: after the stress; without landmarks the error is not a number.
        stress: that was applied.
        outcome: result of the method.
        checksum: of the pair before the stress.
    """
    error = PairError(mean=math.nan, median=math.nan, max=math.nan)
    if len(pair.fixed_landmarks):
        error = pair_error(
            outcome.fix_to_mov, pair.fixed_landmarks, pair.moving_landmarks, pair.moving.shape
        )
    H = outcome.H_fix_to_mov
    return EvaluationRow(
        set=set_name,
        method=method,
        id=pair.key,
        eye=pair.eye,
        stress=stress,
        status=outcome.status,
        reason=outcome.reason,
        error=error,
        n_matches=len(outcome.fixed_points),
        n_inliers=int(outcome.inliers.sum()),
        seconds=outcome.seconds,
        matrix=() if H is None else tuple(map(float, H.ravel())),
        checksum=checksum,
    )


def evaluate_set(
    pairs: EvaluationSet,
    methods: dict[str, Method],
    stresses: list[Stress],
    cache: PairCache,
    seed: int,
    pictures: Path | None,
) -> None:
    """Run every method on every pair under every stress, except where the cache has the row.

    The cache is written after each pair.

    Args:
        pairs: the set.
        methods: by name.
        stresses: degradations of the moving image.
        cache: of the rows.
        seed: of the degradations.
        pictures: folder of the pictures for the report; None for none. Rows without pictures are
            computed again.
    """
    for load in tqdm(pairs.loaders, desc=pairs.name, unit="pair"):
        original = load()
        checksum = original.checksum()
        for stress in stresses:
            folder = pictures and case_folder(pictures, pairs.name, original.key, stress.slug())
            todo = [
                name
                for name in methods
                if cache.get(pairs.name, name, original.key, stress, checksum) is None
                or (folder and not (folder / "unregistered.jpg").is_file())
            ]
            if not todo:
                continue
            pair = apply_stress(original, stress, seed)
            for name in todo:
                outcome = methods[name].run(pair)
                cache.add(score(pairs.name, name, pair, stress, outcome, checksum))
                if folder:
                    write_outcome(folder, name, pair, outcome)
            if folder:
                write_unregistered(folder, pair)
        cache.write()


def evaluate_wrong_pairs(
    sets: list[EvaluationSet], methods: dict[str, Method], n_pairs: int, seed: int, cache: PairCache
) -> None:
    """Run the methods on images of different eyes, except the references: they always return one.

    Args:
        sets: whose images are combined, each set by itself.
        methods: by name.
        n_pairs: wrong pairs per set.
        seed: of the draws.
        cache: of the rows of wrong pairs.
    """
    tested = {name: method for name, method in methods.items() if not method.is_reference}
    for pairs in sets:
        wrong = EvaluationSet(pairs.name, wrong_pairs(pairs.loaders, n_pairs, seed))
        evaluate_set(wrong, tested, [UNCHANGED], cache, seed, None)
