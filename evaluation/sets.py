"""Pairs to evaluate on: real ones with hand-placed landmarks, generated ones with exact truth, and wrong ones.

Every kind comes as a list of loaders, because a set of large photographs does not fit into memory: a pair is read when its
turn comes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from dataset.generated_pairs import GeneratedPairs, ViewKey
from dataset.real_pairs import RealPair, load_real_pairs
from dataset.samples import discover_samples
from dataset.split import read_manifest
from dataset.views import ViewGeometry
from geometry.points import image_corners, warp_points
from utils.errors import InputError


@dataclass(frozen=True)
class EvaluationPair:
    """A pair with landmarks.

    Attributes:
        key: unique within its set and safe as a file name; eye: pairs of one eye share it.
        fixed, moving: (H, W) float32 in [0, 1], each at its own size.
        fixed_landmarks, moving_landmarks: (N, 2) pixels of each image, row i corresponds.
    """

    key: str
    eye: str
    fixed: np.ndarray
    moving: np.ndarray
    fixed_landmarks: np.ndarray
    moving_landmarks: np.ndarray

    def checksum(self) -> str:
        """Changes with any pixel or landmark of the pair: results of other data must not pass for results of these."""
        value = 0
        for array in (self.fixed, self.moving, self.fixed_landmarks, self.moving_landmarks):
            value = zlib.crc32(
                np.ascontiguousarray(array).tobytes(), zlib.crc32(repr(array.shape).encode(), value)
            )
        return f"{value:08x}"


@dataclass(frozen=True)
class PairLoader:
    """A pair that is read when it is called; its name and eye are known before."""

    key: str
    eye: str
    load: Callable[[], EvaluationPair]

    def __call__(self) -> EvaluationPair:
        """Read it."""
        return self.load()


@dataclass(frozen=True)
class EvaluationSet:
    """A named list of pairs, scored together."""

    name: str
    loaders: list[PairLoader]

    def checksum(self) -> str:
        """Changes with the names of the pairs and their order."""
        return f"{zlib.crc32(repr([loader.key for loader in self.loaders]).encode()):08x}"


def real_set(
    root: str | Path, mode: str, layout: str, fixed_role: str
) -> tuple[list[RealPair], list[PairLoader]]:
    """Real pairs below ``root`` (see ``dataset.real_pairs``), and their loaders."""
    pairs = load_real_pairs(root, mode, layout, fixed_role)

    def load(pair: RealPair) -> EvaluationPair:
        return EvaluationPair(
            pair.key, pair.eye, *pair.images(), pair.fixed_landmarks, pair.moving_landmarks
        )

    return pairs, [PairLoader(pair.key, pair.eye, partial(load, pair)) for pair in pairs]


@dataclass(frozen=True)
class GeneratedDraw:
    """How evaluation pairs are drawn from generated samples: whole images, the moving one turned, shifted and scaled.

    Attributes:
        draws: pairs per sample.
        rotation_deg, shift, scale: largest rotation, shift (share of the image) and scale factor either way.
        overlap: least overlap, as a share of the retina in the image that shows less of it.
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
) -> list[PairLoader]:
    """Whole-image views of generated samples; their landmarks are the corners, so "mean" is the corner error.

    Args:
        split: ``split.yaml`` of a training run; subset: "train", "val", "test" or "all" (of the eyes, needs no split).

    Raises:
        InputError: no split given, or a split of other data.
    """
    samples, _ = discover_samples(root, modes)
    if subset != "all":
        if not split:
            raise InputError(
                "generated pairs: give the --split of the run, so that no training eye is scored, or "
                "--subset all."
            )
        eyes = set(read_manifest(split)[subset])
        samples = [sample for sample in samples if sample.eye in eyes]
        if not samples:
            raise InputError(
                f"{split}: none of its {subset} eyes is in {root}; is it the split of other data?"
            )
    geometry = ViewGeometry(
        img_size=None,
        rotation_deg=draw.rotation_deg,
        translation=draw.shift,
        scale=(1 / draw.scale, draw.scale),
        shear=0.0,
        mirror=False,
        min_overlap=draw.overlap,
    )
    views = GeneratedPairs(samples, geometry, seed=draw.seed)

    def loader(index: int) -> PairLoader:
        sample = samples[index % len(samples)]
        key = f"{sample.key}_{index:03d}"

        def load() -> EvaluationPair:
            view = views[ViewKey(0, index)]
            fixed, moving = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
            corners = image_corners(fixed.shape)
            return EvaluationPair(
                key,
                sample.eye,
                fixed,
                moving,
                corners,
                warp_points(corners, view["H_fix_to_mov"].double().numpy()),
            )

        return PairLoader(key, sample.eye, load)

    return [loader(index) for index in range(len(samples) * draw.draws)]


def wrong_pairs(loaders: list[PairLoader], n_pairs: int, seed: int) -> list[PairLoader]:
    """Fixed and moving images of *different* eyes: no transform is right, so a method should say "failed".

    Each fixed image is used about equally often, and no combination twice; fewer than ``n_pairs`` come out when there are
    not so many. The eye of a wrong pair is that of its fixed image. There are no landmarks.

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

    def load(index: int, other: int) -> EvaluationPair:
        none = np.zeros((0, 2))
        return replace(
            loaders[index](),
            key=name(index, other),
            moving=loaders[other]().moving,
            fixed_landmarks=none,
            moving_landmarks=none,
        )

    def name(index: int, other: int) -> str:
        return f"{loaders[index].key}__with__{loaders[other].key}"

    return [PairLoader(name(*pair), loaders[pair[0]].eye, partial(load, *pair)) for pair in chosen]
