"""Evidence for the matrices of pairs, from which ``benchmarks.confidence`` fits and checks.

Every pair is registered once, by all stages in use but without a least confidence, and the evidence
for the matrix of each copy of the images is kept in a file. Fitting and checking then repeat the
choice among the copies for any coefficients, in seconds.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from evaluation.sets import EvaluationPair, GeneratedDraw, PairLoader, generated_set, wrong_pairs
from evaluation.stress import UNCHANGED, Stress, apply_stress
from geometry.accuracy import pair_error
from geometry.estimation import Plausibility
from registration.confidence import Judged
from registration.matcher import Matcher
from registration.pipeline import judged_copies
from registration.ridges import RidgePair
from registration.working_frame import to_working_frame
from utils.config import to_plain
from utils.errors import InputError
from utils.files import write_text_atomically

# Same-eye pairs: any rotation, shift up to 20 %, scale 1/1.7 to 1.7, overlap of at least a half;
# the draws of fitting and checking eyes differ by the eyes alone.
DRAW = GeneratedDraw(rotation_deg=180.0, shift=0.2, scale=1.7, overlap=0.5, seed=515)
# Degradations of the moving image; each pair gets one of them, drawn at random. The unchanged image
# is listed four times so that it is a third of the pairs. Levels chosen by hand from those of
# evaluation/stress.py: clear to hardly usable.
STRESSES = (
    *(UNCHANGED,) * 4,
    Stress(contrast=0.333),
    Stress(contrast=0.2),
    Stress(noise=0.05),
    Stress(noise=0.1),
    Stress(blur=1.5),
    Stress(overlap=0.75),
    Stress(overlap=0.5),
    Stress(contrast=0.5, noise=0.025, blur=1.0, overlap=0.75),
)
# A copy with this much evidence ends the registration of further copies, to save time. Chosen by
# hand, where the models in use are sure or nearly so; no wrong matrix of either matcher reached it.
CERTAIN_SIGNIFICANCE = 9.0  # standard deviations
CERTAIN_AGREEMENT = 5.5  # standard deviations


class CopyEvidence(NamedTuple):
    """Evidence for the matrix of one copy of the images.

    Attributes:
        copy: index of the copy, in the order in which they are matched.
        significance: of the inliers, standard deviations.
        agreement: of the ridge maps, standard deviations.
        n_inliers, n_matches: of the fit.
        error: mean landmark error, px at 512; infinite for images of different eyes.
    """

    copy: int
    significance: float
    agreement: float
    n_inliers: int
    n_matches: int
    error: float


@dataclass(frozen=True)
class PairEvidence:
    """Evidence for the matrices of one pair.

    Attributes:
        key: of the pair.
        subset: "val" or "test", the part of the eyes.
        mode: kind of pair.
        stress: label of the degradation.
        same_eye: whether both images show one eye.
        copies: those with a matrix, in the order in which they are matched.
    """

    key: str
    subset: str
    mode: str
    stress: str
    same_eye: bool
    copies: tuple[CopyEvidence, ...]

    def to_json(self) -> str:
        """One line of the file."""
        return json.dumps(asdict(self) | {"copies": [list(copy) for copy in self.copies]})

    @classmethod
    def from_json(cls, line: str) -> PairEvidence:
        """Read a line of :meth:`to_json`."""
        values = json.loads(line)
        copies = tuple(CopyEvidence(*copy) for copy in values.pop("copies"))
        return cls(**values, copies=copies)


@dataclass(frozen=True)
class DegradedLoader:
    """A pair to register.

    Attributes:
        load: reads the pair and degrades its moving image.
        subset, mode, stress, same_eye: see :class:`PairEvidence`.
    """

    load: PairLoader
    subset: str
    mode: str
    stress: str
    same_eye: bool


def _load_degraded(load: PairLoader, stress: Stress, key: str, seed: int) -> EvaluationPair:
    return replace(apply_stress(load(), stress, seed), key=key)


def degraded_pairs(
    root: str | Path,
    split: str | Path,
    subset: str,
    mode: str,
    draws: int,
    n_wrong: int,
) -> list[DegradedLoader]:
    """Pairs of one eye, each with a random degradation, and pairs of different eyes made of them.

    Args:
        root: folder of generated samples.
        split: of the eyes, ``split.yaml`` of a training run.
        subset: "val" or "test".
        mode: kind of pairs.
        draws: pairs of one eye per sample.
        n_wrong: number of pairs of different eyes.
    """
    draw = replace(DRAW, draws=draws)
    loaders = generated_set(root, [mode], split, subset, draw).loaders
    rng = np.random.default_rng(draw.seed)
    stresses = [STRESSES[index] for index in rng.integers(len(STRESSES), size=len(loaders))]
    degraded = []
    for loader, stress in zip(loaders, stresses, strict=True):
        load = partial(_load_degraded, loader, stress, loader.key, draw.seed)
        degraded.append(replace(loader, load=load))
    label = {loader.key: stress.label() for loader, stress in zip(degraded, stresses, strict=True)}
    right = [DegradedLoader(load, subset, mode, label[load.key], True) for load in degraded]
    wrong = [
        DegradedLoader(load, subset, mode, label[load.key.split("__with__")[1]], False)
        for load in wrong_pairs(degraded, n_wrong, draw.seed)
    ]
    return right + wrong


def evidence_of(
    pair: EvaluationPair, matcher: Matcher, limits: Plausibility
) -> tuple[CopyEvidence, ...]:
    """Register all copies of a pair, up to one with certain evidence.

    Args:
        pair: without landmarks, a pair of different eyes.
        matcher: with the settings in use; its least confidence has no influence.
        limits: on the matrices.
    """
    long_side = matcher.settings.long_side
    ridges = RidgePair(*(to_working_frame(image, long_side) for image in (pair.fixed, pair.moving)))
    copies = []
    for index, judged in enumerate(judged_copies(matcher, ridges, "affine", limits)):
        if judged.H_fix_to_mov is None:
            continue
        copies.append(_evidence(index, judged, pair))
        if (
            copies[-1].significance >= CERTAIN_SIGNIFICANCE
            and copies[-1].agreement >= CERTAIN_AGREEMENT
        ):
            break
    return tuple(copies)


def _evidence(index: int, judged: Judged, pair: EvaluationPair) -> CopyEvidence:
    error = math.inf
    if len(pair.fixed_landmarks):
        landmarks = pair.fixed_landmarks, pair.moving_landmarks
        error = pair_error(judged.H_fix_to_mov, *landmarks, pair.moving.shape).mean
    estimate = judged.candidate.estimate
    return CopyEvidence(
        copy=index,
        significance=round(judged.candidate.significance, 4),
        agreement=round(judged.agreement, 4),
        n_inliers=estimate.n_inliers,
        n_matches=len(estimate.inliers),
        error=round(error, 3),
    )


def evidence_source(
    weights: str | Path, split: str | Path, matcher: Matcher, limits: Plausibility
) -> dict[str, Any]:
    """What evidence depends on, besides the pairs.

    Args:
        weights: checkpoint of the matcher.
        split: of the eyes.
        matcher: its settings, but for those that only judge the evidence.
        limits: on the matrices.
    """
    judging = ("confidence", "min_confidence", "sure_confidence", "try_mirrored")
    settings = {k: v for k, v in to_plain(matcher.settings).items() if k not in judging}
    return {
        "weights_crc32": f"{zlib.crc32(Path(weights).read_bytes()):08x}",
        "split_crc32": f"{zlib.crc32(Path(split).read_bytes()):08x}",
        "settings": settings,
        "plausibility": to_plain(limits),
        "draw": asdict(replace(DRAW, draws=1)),
        "stresses": [stress.label() for stress in STRESSES],
        "certain": [CERTAIN_SIGNIFICANCE, CERTAIN_AGREEMENT],
    }


class EvidenceFile:
    """The evidence of pairs, one line each; written whole and atomically after every pair.

    Args:
        path: of the file.
        source: what the evidence depends on; the first line of the file.

    Raises:
        InputError: the file has the evidence of another source.
    """

    def __init__(self, path: Path, source: dict[str, Any]) -> None:
        self.path, self.pairs = path, dict[str, PairEvidence]()
        self._header = json.dumps(source, sort_keys=True)
        if path.is_file():
            header, *lines = path.read_text(encoding="utf-8").splitlines()
            if header != self._header:
                raise InputError(
                    f"{path}: holds evidence of other weights, data or settings; move it away or "
                    f"give another --out. There: {header}. Now: {self._header}."
                )
            for pair in map(PairEvidence.from_json, lines):
                self.pairs[f"{pair.subset}/{pair.key}"] = pair

    def gather(self, loaders: list[DegradedLoader], matcher: Matcher, limits: Plausibility) -> None:
        """Add the pairs that the file does not have yet.

        Args:
            loaders: of the pairs.
            matcher: see :func:`evidence_of`.
            limits: on the matrices.
        """
        missing = [item for item in loaders if self._name(item) not in self.pairs]
        # In random order, so that an interrupted command leaves pairs of all kinds.
        missing = [missing[index] for index in np.random.default_rng(0).permutation(len(missing))]
        for item in tqdm(missing, unit="pair", desc=f"{len(loaders) - len(missing)} kept, new"):
            pair = item.load()
            self.pairs[self._name(item)] = PairEvidence(
                key=pair.key,
                subset=item.subset,
                mode=item.mode,
                stress=item.stress,
                same_eye=item.same_eye,
                copies=evidence_of(pair, matcher, limits),
            )
            lines = [self._header, *(each.to_json() for each in self.pairs.values())]
            write_text_atomically(self.path, "\n".join(lines) + "\n")

    def of(self, loaders: list[DegradedLoader]) -> list[PairEvidence]:
        """The evidence of these pairs."""
        return [self.pairs[self._name(item)] for item in loaders]

    @staticmethod
    def _name(item: DegradedLoader) -> str:
        return f"{item.subset}/{item.load.key}"
