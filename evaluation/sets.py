"""Sets of pairs: real ones with landmarks, generated ones with ground truth, and wrong ones.

A set is a list of loaders, each of which reads its pair when it is called, because a set of large
photographs does not fit into memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.real_pair_files import ALL_PARTS
from dataset.real_pairs import RealPair, describe_pairs, load_real_pairs
from dataset.samples import Sample, discover_samples
from dataset.split import eyes_in, read_manifest, read_real_split
from dataset.views import ViewGeometry
from geometry.points import image_corners, warp_points
from utils.errors import InputError


@dataclass(frozen=True)
class EvaluationPair:
    """A pair with landmarks.

    Attributes:
        key: name of the pair, unique within its set and valid as a file name.
        eye: name of the eye; pairs of one eye share it.
        fixed, moving: (H, W) float32 in [0, 1]; the sizes may differ.
        fixed_landmarks, moving_landmarks: (N, 2) float64, pixels (x, y) of each image, row i
            corresponds; N = 0 for a wrong pair.
    """

    key: str
    eye: str
    fixed: np.ndarray
    moving: np.ndarray
    fixed_landmarks: np.ndarray
    moving_landmarks: np.ndarray

    def checksum(self) -> str:
        """CRC-32 of pixels and landmarks, with which kept results are matched to their data."""
        value = 0
        for array in (self.fixed, self.moving, self.fixed_landmarks, self.moving_landmarks):
            value = zlib.crc32(
                np.ascontiguousarray(array).tobytes(), zlib.crc32(repr(array.shape).encode(), value)
            )
        return f"{value:08x}"


@dataclass(frozen=True)
class PairLoader:
    """Reads one pair when called.

    Attributes:
        key, eye: of the pair, see :class:`EvaluationPair`.
        load: reads the pair.
    """

    key: str
    eye: str
    load: Callable[[], EvaluationPair]

    def __call__(self) -> EvaluationPair:
        """Read the pair."""
        return self.load()


@dataclass(frozen=True)
class EvaluationSet:
    """A named list of pairs that are scored together.

    Attributes:
        name: in tables and reports.
        loaders: one per pair.
        description: where the pairs come from, for the record; JSON values only.
        overview: text for the terminal; "" for none.
    """

    name: str
    loaders: list[PairLoader]
    description: dict[str, Any] = field(default_factory=dict)
    overview: str = ""


def _checksum(loaders: list[PairLoader]) -> str:
    """CRC-32 of the names of the pairs, in their order."""
    return f"{zlib.crc32(repr([loader.key for loader in loaders]).encode()):08x}"


def real_set(
    root: str | Path,
    name: str,
    layout: str,
    fixed_role: str,
    part: str = ALL_PARTS,
    split: str | Path | None = None,
) -> EvaluationSet:
    """The real pairs of a folder.

    Args:
        root: folder, see :mod:`dataset.real_pairs`.
        name: of the set, which is also the mode of its pairs.
        layout: one of ``dataset.layouts.LAYOUTS``.
        fixed_role: "01" or "02", the fixed image of the numbered layout.
        part: of a set that is divided into parts.
        split: ``split.yaml`` of a run that learned from this folder: its test eyes only.

    Raises:
        InputError: no pairs in this folder, unusable ones, or a split of other folders.
    """
    pairs = load_real_pairs(root, name, layout, fixed_role, part)
    if split:
        named = read_real_split(split)
        eyes = eyes_in(named["test"], root) if named else []
        pairs = [pair for pair in pairs if pair.eye in eyes]
        if not pairs:
            raise InputError(f"{split}: has no test eye of {root}; check --real_split and --real.")
    # A whole set is described as before there were parts, so kept results stay valid.
    chosen = {} if part == ALL_PARTS else {"part": part}
    chosen |= {"split": str(split)} if split else {}
    loaders = [PairLoader(pair.key, pair.eye, partial(_load_real, pair)) for pair in pairs]
    return EvaluationSet(
        name=name,
        loaders=loaders,
        description={
            "kind": "real",
            "data": str(Path(root).resolve()),
            "layout": layout,
            "fixed_role": fixed_role,
            **chosen,
            "pairs": len(loaders),
            "pairs_crc32": _checksum(loaders),
        },
        overview=describe_pairs(root, pairs),
    )


def _load_real(pair: RealPair) -> EvaluationPair:
    fixed, moving = pair.images()
    return EvaluationPair(
        key=pair.key,
        eye=pair.eye,
        fixed=fixed,
        moving=moving,
        fixed_landmarks=pair.fixed_landmarks,
        moving_landmarks=pair.moving_landmarks,
    )


@dataclass(frozen=True)
class GeneratedDraw:
    """How pairs are drawn from generated samples: whole images, the moving one transformed.

    Attributes:
        draws: pairs per sample.
        rotation_deg: largest rotation either way, degrees.
        shift: largest shift, share of the image side.
        scale: largest scale factor either way.
        overlap: least overlap, share of the retina in the image that shows less of it.
        seed: of the draws.
    """

    draws: int = 2
    rotation_deg: float = 30.0
    shift: float = 0.1
    scale: float = 1.1
    overlap: float = 0.4
    seed: int = 777


def generated_set(
    root: str | Path, modes: list[str], split: str | Path | None, subset: str, draw: GeneratedDraw
) -> EvaluationSet:
    """Whole-image views of generated samples.

    The landmarks are the image corners, so the mean error of a pair is its corner error.

    Args:
        root: folder of generated samples, see :mod:`dataset.samples`.
        modes: kinds of pairs, see ``dataset.samples.MODE_FILES``.
        split: ``split.yaml`` of a training run.
        subset: eyes to take: "train", "val" or "test" of the split, or "all", without a split.
        draw: how the pairs are drawn.

    Raises:
        InputError: no split given, or a split of other data.
    """
    samples = _samples_of(root, modes, split, subset)
    views = AlignedPairs(samples, _view_geometry(draw), seed=draw.seed)
    loaders = []
    for index in range(len(samples) * draw.draws):
        sample = samples[index % len(samples)]
        key = f"{sample.key}_{index:03d}"
        load = partial(_load_generated, views, index, key, sample.eye)
        loaders.append(PairLoader(key, sample.eye, load))
    return EvaluationSet(
        name="generated",
        loaders=loaders,
        description={
            "kind": "generated",
            "data": str(Path(root).resolve()),
            "mode": "+".join(modes),
            "split": split and str(split),
            "subset": subset,
            **asdict(draw),
            "pairs": len(loaders),
            "pairs_crc32": _checksum(loaders),
        },
    )


def _samples_of(
    root: str | Path, modes: list[str], split: str | Path | None, subset: str
) -> list[Sample]:
    """The samples of a subset; see :func:`generated_set`."""
    samples, _ = discover_samples(root, modes)
    if subset == "all":
        return samples
    if not split:
        raise InputError(
            "generated pairs: give the --split of the training run, so that no training eye "
            "is scored, or --subset all."
        )
    eyes = set(eyes_in(read_manifest(split)[subset], root))
    samples = [sample for sample in samples if sample.eye in eyes]
    if not samples:
        raise InputError(
            f"{split}: none of its {subset} eyes is in {root}; is it the split of other data?"
        )
    return samples


def _view_geometry(draw: GeneratedDraw) -> ViewGeometry:
    return ViewGeometry(
        img_size=None,
        rotation_deg=draw.rotation_deg,
        translation=draw.shift,
        scale=(1 / draw.scale, draw.scale),
        shear=0.0,
        mirror=False,
        min_overlap=draw.overlap,
    )


def _load_generated(views: AlignedPairs, index: int, key: str, eye: str) -> EvaluationPair:
    view = views[ViewKey(0, index)]
    fixed, moving = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
    corners = image_corners(fixed.shape)
    return EvaluationPair(
        key=key,
        eye=eye,
        fixed=fixed,
        moving=moving,
        fixed_landmarks=corners,
        moving_landmarks=warp_points(corners, view["H_fix_to_mov"].double().numpy()),
    )


def wrong_pairs(loaders: list[PairLoader], n_pairs: int, seed: int) -> list[PairLoader]:
    """Pairs of the fixed and the moving image of *different* eyes.

    No transform is correct for them, so a method should return "failed". Each fixed image is used
    about equally often, and no combination twice. The eye of a wrong pair is that of its fixed
    image. There are no landmarks.

    Args:
        loaders: the pairs to combine.
        n_pairs: number of wrong pairs; fewer if there are not as many combinations.
        seed: of the draws.

    Raises:
        InputError: all pairs are of one eye.
    """
    rng = np.random.default_rng(seed)
    partners = [
        [other for other, candidate in enumerate(loaders) if candidate.eye != loader.eye]
        for loader in loaders
    ]
    if not any(partners):
        raise InputError(
            "--wrong_pairs: all pairs are of one eye; pairs of different eyes need at least two."
        )
    queues = [list(rng.permutation(choices)) for choices in partners]
    chosen: list[tuple[int, int]] = []
    while len(chosen) < n_pairs and any(queues):
        for index in rng.permutation(len(queues)):
            if queues[index] and len(chosen) < n_pairs:
                chosen.append((int(index), int(queues[index].pop())))
    combined = []
    for index, other in chosen:
        key = f"{loaders[index].key}__with__{loaders[other].key}"
        load = partial(_load_wrong, loaders[index], loaders[other], key)
        combined.append(PairLoader(key, loaders[index].eye, load))
    return combined


def _load_wrong(fixed: PairLoader, moving: PairLoader, key: str) -> EvaluationPair:
    """The fixed image of one pair with the moving image of another, without landmarks."""
    return replace(
        fixed(),
        key=key,
        moving=moving().moving,
        fixed_landmarks=np.zeros((0, 2)),
        moving_landmarks=np.zeros((0, 2)),
    )
