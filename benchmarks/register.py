"""Where the time of a registration goes, and how it compares with other matchers on the same pairs in the same run.

    python -m benchmarks.register                                              # pairs that it makes itself
    python -m benchmarks.register --data ../shared/data/real_pairs/cffa        # real pairs
    python -m benchmarks.register --compare superretina sift xfeat aliked-lightglue

Times of a shared machine mean little, so everything is given as a ratio too: all methods take turns on every pair. The moving
image is turned by a random angle, and every pair is read from files of the size that is named; reading counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np

import registration.affine_refinement
import registration.candidates
import registration.keypoint_matcher
import registration.pipeline
import registration.registrar
from benchmarks.pairs import WrittenPair, write_pairs
from evaluation.method import MethodSetting, NotAvailable, load_method
from evaluation.sets import EvaluationPair
from model.super_retina_multimodal import SuperRetinaMultimodal
from registration.keypoint_matcher import SuperRetinaMatcher
from registration.registrar import Registrar
from registration.ridges import RidgePair
from utils.errors import InputError, run_script
from utils.files import write_text_atomically
from utils.image_files import read_gray

# What is timed: (where it is looked up, its name, the stage). A stage's time leaves out the stages that it calls.
STAGES = [
    (registration.registrar, "read_gray", "reading"),
    (registration.pipeline, "to_working_frame", "working frame"),
    (SuperRetinaMultimodal, "describe", "network"),
    (SuperRetinaMatcher, "describe", "keypoints"),
    (registration.keypoint_matcher, "match_descriptors", "matching"),
    (registration.candidates, "estimate_transform", "robust fit"),
    (RidgePair, "refine", "refinement"),
    (registration.affine_refinement, "follow_patches", "patches"),
    (RidgePair, "agreement", "agreement"),
]


class StageClock:
    """Adds up the time spent in each stage, without that of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]

    def timed(self, function: Callable, stage: str) -> Callable:
        """The function, timed."""

        @wraps(function)
        def run(*args: object, **kwargs: object) -> object:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                self.seconds[stage] += whole - self._inner.pop()
                self.calls[stage] += 1
                self._inner[-1] += whole

        return run

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time all ``STAGES`` of what runs inside."""
        with ExitStack() as stack:
            for owner, name, stage in STAGES:
                stack.enter_context(
                    patch.object(owner, name, self.timed(getattr(owner, name), stage))
                )
            yield


def time_stages(pairs: list[WrittenPair], registrar: Registrar) -> dict[str, dict[str, float]]:
    """Seconds per pair, calls per pair and share of the whole, by stage."""
    clock, start = StageClock(), time.perf_counter()
    with clock.running():
        for pair in pairs:
            registrar.register(pair.fixed, pair.moving)
    whole = time.perf_counter() - start
    clock.seconds["rest"] = whole - sum(clock.seconds.values())
    return {
        stage: {
            "seconds": seconds / len(pairs),
            "calls": clock.calls[stage] / len(pairs),
            "share": seconds / whole,
        }
        for stage, seconds in clock.seconds.items()
    } | {"whole": {"seconds": whole / len(pairs), "calls": 1, "share": 1.0}}


def time_methods(
    pairs: list[WrittenPair], names: list[str], setting: MethodSetting
) -> dict[str, dict[str, float | str]]:
    """Seconds per pair of each method, taking turns, and the ratio to the first; a method that is not here says so."""
    methods, result = {}, {}
    for name in names:
        try:
            methods[name] = load_method(name, setting)
        except NotAvailable as missing:
            result[name] = {"missing": str(missing)}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number, pair in enumerate([pairs[0], *pairs]):
        for name, method in methods.items():
            start = time.perf_counter()
            empty = np.zeros((0, 2))
            method.run(
                EvaluationPair(
                    pair.name,
                    pair.name,
                    read_gray(pair.fixed),
                    read_gray(pair.moving),
                    empty,
                    empty,
                )
            )
            if number:  # the first round only warms up
                seconds[name].append(time.perf_counter() - start)
    first = np.mean(seconds[names[0]])
    return result | {
        name: {
            "seconds": float(np.mean(values)),
            "slowest": float(np.max(values)),
            "ratio": float(np.mean(values) / first),
        }
        for name, values in seconds.items()
    }


def measure_size(fixed: str, moving: str, weights: str | None, side: int) -> dict[str, float]:
    """Seconds and peak memory (MiB, above that of the loaded program) of a pair at one working size; in a process of its own."""
    registrar = Registrar(weights, img_size=side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    registrar.register(fixed, moving)
    start = time.perf_counter()
    registrar.register(fixed, moving)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "side": side,
        "seconds": time.perf_counter() - start,
        "peak_mib": (peak - before) / 1024,
    }


def time_sizes(pair: WrittenPair, sizes: list[int], weights: str | None) -> list[dict[str, float]]:
    """:func:`measure_size` for every size."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [
            pool.apply(measure_size, (str(pair.fixed), str(pair.moving), weights, side))
            for side in sizes
        ]


def report(stages: dict, methods: dict, sizes: list[dict]) -> str:
    """The tables."""
    lines = [f"{'stage':<16}{'s/pair':>9}{'calls':>8}{'share':>8}"]
    lines += [
        f"{name:<16}{row['seconds']:>9.3f}{row['calls']:>8.1f}{row['share']:>8.1%}"
        for name, row in stages.items()
    ]
    lines += ["", f"{'method':<20}{'s/pair':>9}{'slowest':>9}{'ratio':>8}"]
    for name, row in methods.items():
        lines.append(
            f"{name:<20}{row['missing']}"
            if "missing" in row
            else f"{name:<20}{row['seconds']:>9.3f}{row['slowest']:>9.3f}{row['ratio']:>8.2f}"
        )
    lines += ["", f"{'working size':<14}{'s/pair':>9}{'ratio':>8}{'peak MiB':>10}"]
    lines += [
        f"{row['side']:<14}{row['seconds']:>9.3f}{row['seconds'] / sizes[0]['seconds']:>8.2f}{row['peak_mib']:>10.0f}"
        for row in sizes
    ]
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", metavar="ROOT", help="real pairs; synthesised ones when left out")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint (default: the weights shipped in save/pretrained)",
    )
    parser.add_argument(
        "--compare", nargs="+", default=["superretina", "sift", "xfeat", "aliked-lightglue"]
    )
    parser.add_argument(
        "--side", type=int, default=512, help="long side of the image files, pixels"
    )
    parser.add_argument("--pairs", type=int, default=6, help="number of pairs")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[512, 1024, 2048], help="working sizes, pixels"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the angles")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the figures")
    return parser


def main() -> None:
    """Write the pairs, time the stages, the methods and the sizes."""
    args = get_args_parser().parse_args()
    if min(args.side, args.pairs, *args.sizes) < 1:
        raise InputError("--side, --pairs and --sizes must be above 0.")
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder), args.data, args.pairs, args.side, args.seed)
        registrar = Registrar(args.weights)
        registrar.register(pairs[0].fixed, pairs[0].moving)
        stages = time_stages(pairs, registrar)
        methods = time_methods(
            pairs, args.compare, replace(MethodSetting(), weights={"superretina": args.weights})
        )
        large = write_pairs(Path(folder) / "large", args.data, 1, max(args.sizes), args.seed)[0]
        sizes = time_sizes(large, args.sizes, args.weights)
    print(report(stages, methods, sizes))
    if args.out:
        write_text_atomically(
            args.out,
            json.dumps({"stages": stages, "methods": methods, "sizes": sizes}, indent=2) + "\n",
        )


if __name__ == "__main__":
    run_script(main)
