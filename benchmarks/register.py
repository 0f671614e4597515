"""Time of a registration: by stage, beside other methods, and by working size.

    python -m benchmarks.register                                        # synthesised pairs
    python -m benchmarks.register --data ../shared/data/real_pairs/cffa  # real pairs
    python -m benchmarks.register --compare superretina sift xfeat aliked-lightglue

Measures seconds per pair for each stage of the registration, for each method and for each working
size, and the peak memory by working size. Every pair is read from two files, and reading counts;
the moving image is rotated by a random angle. Times on a shared machine vary, so the methods
alternate on every pair, and ratios to the first method are given; compare the ratios.

Prints the tables; with --out the figures also go to a JSON file. On 2 cores a pair of 512 px takes
0.3 to 3.4 s per method (docs/measured.md); most of the time goes to the largest working size.
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
from functools import wraps
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np

import registration.affine_refinement
import registration.guided_fit
import registration.keypoint_matcher
import registration.pipeline
import registration.registrar
from benchmarks.pairs import WrittenPair, write_pairs
from benchmarks.processes import in_new_process
from evaluation.method import Method, MethodOptions, NotAvailable
from evaluation.method_registry import load_method
from evaluation.sets import EvaluationPair
from model.super_retina_multimodal import SuperRetinaMultimodal
from registration.keypoint_matcher import SuperRetinaMatcher
from registration.registrar import Registrar
from registration.ridges import RidgePair
from utils.errors import InputError, run_script
from utils.files import write_text_atomically
from utils.image_files import read_gray

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
Row = dict[str, float | str]  # figures of a stage, a method or a size, by name


class TimedFunction(NamedTuple):
    """A function whose time belongs to a stage.

    Attributes:
        owner: module or class in which the pipeline finds the function.
        name: of the function.
        stage: name of the stage.
    """

    owner: object
    name: str
    stage: str


# The time of a stage excludes the stages that it calls.
TIMED_STAGES = (
    TimedFunction(registration.registrar, "read_stored", "reading"),
    TimedFunction(registration.pipeline, "to_working_frame", "working frame"),
    TimedFunction(SuperRetinaMultimodal, "describe", "network"),
    TimedFunction(SuperRetinaMatcher, "describe", "keypoints"),
    TimedFunction(registration.keypoint_matcher, "match_descriptors", "matching"),
    TimedFunction(registration.guided_fit, "estimate_transform", "robust fit"),
    TimedFunction(RidgePair, "refine", "refinement"),
    TimedFunction(registration.affine_refinement, "fit_patches", "patches"),
    TimedFunction(RidgePair, "agreement", "agreement"),
)


class StageClock:
    """Adds up the time of each stage, without that of the stages that it calls.

    Attributes:
        seconds, calls: totals by stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        # Time of the called stages, for each running stage; the first entry is the caller of all.
        self._inner = [0.0]

    def timed(
        self, function: Callable[Parameters, Returned], stage: str
    ) -> Callable[Parameters, Returned]:
        """The same function, with its time added to a stage."""

        @wraps(function)
        def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
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
        """Time all ``TIMED_STAGES`` of the code inside."""
        with ExitStack() as stack:
            for owner, name, stage in TIMED_STAGES:
                timed = self.timed(getattr(owner, name), stage)
                stack.enter_context(patch.object(owner, name, timed))
            yield


def time_stages(pairs: list[WrittenPair], registrar: Registrar) -> dict[str, Row]:
    """Seconds per pair, calls per pair and share of the whole, by stage."""
    clock, start = StageClock(), time.perf_counter()
    with clock.running():
        for pair in pairs:
            registrar.register(pair.fixed, pair.moving)
    whole = time.perf_counter() - start
    clock.seconds["rest"] = whole - sum(clock.seconds.values())
    rows: dict[str, Row] = {
        stage: {
            "seconds": seconds / len(pairs),
            "calls": clock.calls[stage] / len(pairs),
            "share": seconds / whole,
        }
        for stage, seconds in clock.seconds.items()
    }
    rows["whole"] = {"seconds": whole / len(pairs), "calls": 1, "share": 1.0}
    return rows


def time_methods(
    pairs: list[WrittenPair], names: list[str], options: MethodOptions
) -> dict[str, Row]:
    """Mean and largest seconds per pair of each method, and the ratio to the first.

    Args:
        pairs: on which the methods alternate; a first round on the first pair is not timed.
        names: of the methods.
        options: of all methods.

    Returns:
        The figures by method; "missing" holds the reason where a method is not available.
    """
    methods: dict[str, Method] = {}
    rows: dict[str, Row] = {}
    for name in names:
        try:
            methods[name] = load_method(name, options)
        except NotAvailable as missing:
            rows[name] = {"missing": str(missing)}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number, pair in enumerate([pairs[0], *pairs]):
        for name, method in methods.items():
            start = time.perf_counter()
            method.run(read_pair(pair))
            if number:
                seconds[name].append(time.perf_counter() - start)
    first = np.mean(seconds[names[0]])
    for name, values in seconds.items():
        rows[name] = {
            "seconds": float(np.mean(values)),
            "slowest": float(np.max(values)),
            "ratio": float(np.mean(values) / first),
        }
    return rows


def read_pair(pair: WrittenPair) -> EvaluationPair:
    """Read a pair from its files, without landmarks."""
    return EvaluationPair(
        key=pair.name,
        eye=pair.name,
        fixed=read_gray(pair.fixed),
        moving=read_gray(pair.moving),
        fixed_landmarks=np.zeros((0, 2)),
        moving_landmarks=np.zeros((0, 2)),
    )


def measure_size(fixed: str, moving: str, weights: str | None, side: int) -> Row:
    """Seconds and peak memory of a registration at one working size, in this process.

    Args:
        fixed, moving: image files.
        weights: checkpoint; None takes the shipped weights.
        side: working size, pixels.

    Returns:
        ``side``, ``seconds`` of a second registration, and ``peak_mib`` above the memory before the
        first (MiB).
    """
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


def time_sizes(pair: WrittenPair, sizes: list[int], weights: str | None) -> list[Row]:
    """:func:`measure_size` for every size, each in a process of its own."""
    return [
        in_new_process(measure_size, str(pair.fixed), str(pair.moving), weights, side)
        for side in sizes
    ]


def report(stages: dict[str, Row], methods: dict[str, Row], sizes: list[Row]) -> str:
    """Format the three tables."""
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
    first = float(sizes[0]["seconds"])
    for row in sizes:
        seconds = float(row["seconds"])
        lines.append(
            f"{row['side']:<14}{seconds:>9.3f}{seconds / first:>8.2f}{row['peak_mib']:>10.0f}"
        )
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", metavar="ROOT", help="folder of real pairs (default: synthesised pairs)"
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint (default: the weights shipped in save/pretrained)",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=["superretina", "sift", "xfeat", "aliked-lightglue"],
        metavar="METHOD",
        help="methods to compare; ratios are to the first",
    )
    parser.add_argument(
        "--side", type=int, default=512, help="long side of the image files, pixels"
    )
    parser.add_argument("--pairs", type=int, default=6, help="number of pairs")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[512, 1024, 2048], help="working sizes, pixels"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the angles")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the figures")
    return parser


def main() -> None:
    """Write the pairs, time the stages, the methods and the sizes, and print the tables."""
    args = get_args_parser().parse_args()
    if min(args.side, args.pairs, *args.sizes) < 1:
        raise InputError("--side, --pairs and --sizes must be above 0.")
    with tempfile.TemporaryDirectory() as folder:
        pairs = write_pairs(Path(folder), args.data, args.pairs, args.side, args.seed)
        registrar = Registrar(args.weights)
        registrar.register(pairs[0].fixed, pairs[0].moving)  # warm-up, not timed
        stages = time_stages(pairs, registrar)
        options = MethodOptions(weights={"superretina": args.weights})
        methods = time_methods(pairs, args.compare, options)
        large = write_pairs(Path(folder) / "large", args.data, 1, max(args.sizes), args.seed)[0]
        sizes = time_sizes(large, args.sizes, args.weights)
    print(report(stages, methods, sizes))
    if args.out:
        figures = {"stages": stages, "methods": methods, "sizes": sizes}
        write_text_atomically(args.out, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
