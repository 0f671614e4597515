"""Cost of a training step: time, rate of arithmetic, operator calls, and time for making a batch.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --configs configs/superretina_lite.yaml --precision bf16

Measures for each configuration the median time of a step (forward, backward, update) and its ratio
to the first configuration; the floating-point operations, counted by torch, and their rate as a
share of the rate of large matrix products in the same precision on the same device; and "data", the
time to make a batch in this process over the time of a step: with n loading processes the step
waits for data where it exceeds n. The configurations alternate, so that other load on the machine
slows all of them alike; compare ratios, not seconds.

A second table counts the operator calls of a step (forward, backward, update, reading of its
figures) for several batch sizes, and how often the host would wait for a GPU. On a CPU the step is
counted as a GPU runs it; copies between devices are not seen there, but for the reading of the
figures, which is one.

Prints a table and writes nothing. On 2 cores one step of the defaults takes 0.3 to 5 s
(docs/measured.md), all of it about a minute.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operator_calls import CallCounter
from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from geometry import point_sets
from synthesis.generated_set import write_generated_set
from training.loftr_config import LoFTRConfig
from training.loftr_step import LoFTRStep
from training.processes import PRECISIONS, make_fabric
from training.step_output import StepOutput, read_outputs
from training.superretina_step import SuperRetinaConfig, SuperRetinaStep
from utils.config import build, read_config
from utils.device import DEVICES
from utils.errors import InputError, run_script

LOFTR = "loftr"  # config files of LoFTR have it in their name
UNFROZEN = "unfrozen"  # suffix of a LoFTR config file, after a colon: train all modules
DEFAULT_CONFIGS = (
    "configs/superretina_lite.yaml",
    "configs/superretina.yaml",
    "configs/loftr_v3_lite.yaml",
    f"configs/loftr_v3_lite.yaml:{UNFROZEN}",
)
COUNTED_BATCHES = (1, 4, 16)
COUNTED_SIDE = (
    128  # of the views for which calls are counted, pixels; it hardly changes their number
)
MATRIX_SIDE = 1536  # of the square matrices whose product gives the reference rate

LossStep = Callable[[nn.Module, dict[str, Any]], StepOutput]


class MeasuredConfig(NamedTuple):
    """A configuration that is measured.

    Attributes:
        name: config file, with a suffix where there is one.
        step: runs one step on a fixed batch.
        operations: floating-point operations of a step.
        batch_seconds: time to make the batch.
    """

    name: str
    step: Callable[[], None]
    operations: int
    batch_seconds: float


class CountedConfig(NamedTuple):
    """Operator calls of a step of a configuration for each batch size.

    Attributes:
        name: config file, with a suffix where there is one.
        calls: number of calls for each batch size.
        waits: number of times that the host would wait for a GPU, likewise.
    """

    name: str
    calls: list[int]
    waits: list[int]


def make_model(name: str, device: torch.device) -> tuple[nn.Module, LossStep]:
    """Build the network of a configuration and its forward pass with losses.

    Args:
        name: config file; ``:unfrozen`` behind a LoFTR's file trains all modules.
        device: on which the step runs.

    Raises:
        InputError: missing or faulty configuration.
    """
    file, _, variant = name.partition(":")
    if LOFTR not in Path(file).name:
        joint_config = build(SuperRetinaConfig, read_config(file), file)
        torch.manual_seed(0)
        detector = joint_config.build_model()
        return detector, SuperRetinaStep(joint_config, detector)
    config = build(LoFTRConfig, read_config(file), file)
    torch.manual_seed(0)
    model = config.build_model()
    model.freeze(() if variant == UNFROZEN else config.current.freeze)
    return model, LoFTRStep(model, config.current.loss, device)


def make_batch(data: Path, size: int, n_pairs: int) -> tuple[dict[str, Any], float]:
    """Collate generated views, and the time that it takes.

    Args:
        data: folder of generated data.
        size: side of the views, pixels.
        n_pairs: in the batch; views of the same eyes where there are fewer.
    """
    geometry = ViewGeometry(img_size=size, long_side=size)
    pairs = AlignedPairs(discover_samples(data, ["cffa"])[0], geometry)
    pairs[ViewKey(1, 0)]  # the first access is slower: left out of the time
    start = time.perf_counter()
    batch = default_collate([pairs[ViewKey(1, index)] for index in range(n_pairs)])
    return batch, time.perf_counter() - start


class Step(NamedTuple):
    """A step of a configuration in two parts.

    Attributes:
        train: zero the gradients, forward, backward and reading of the figures, on a given batch.
        update: of the weights.
    """

    train: Callable[[dict[str, Any]], None]
    update: Callable[[], object]

    def __call__(self, batch: dict[str, Any]) -> None:
        """Both parts."""
        self.train(batch)
        self.update()


def make_step(name: str, fabric: Fabric) -> Step:
    """Build network, objective and optimizer of a configuration.

    Args:
        name: see :func:`make_model`.
        fabric: device and precision.

    Raises:
        InputError: missing or faulty configuration.
    """
    model, loss_step = make_model(name, fabric.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    network, optimizer = fabric.setup(model, torch.optim.AdamW(trained, lr=1e-4))

    def train(batch: dict[str, Any]) -> None:
        optimizer.zero_grad()
        output = loss_step(network, batch)
        fabric.backward(output.losses["total"])
        read_outputs([output.without_graph()])

    return Step(train, optimizer.step)


def prepare(name: str, data: Path, args: argparse.Namespace, fabric: Fabric) -> MeasuredConfig:
    """A configuration with its batch, after a first step.

    Args:
        name: see :func:`make_model`.
        data: folder of generated data, at least one batch of it.
        args: of the command.
        fabric: device and precision.

    Raises:
        InputError: missing or faulty configuration.
    """
    step = make_step(name, fabric)
    batch, batch_seconds = make_batch(data, args.img_size, args.batch_size)
    batch = fabric.to_device(batch)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return MeasuredConfig(name, lambda: step(batch), counter.get_total_flops(), batch_seconds)


def count(name: str, data: Path, args: argparse.Namespace, fabric: Fabric) -> CountedConfig:
    """Count the calls of a step of a configuration, for each batch size.

    Args:
        name: see :func:`make_model`.
        data: folder of generated data.
        args: of the command.
        fabric: device and precision.

    Raises:
        InputError: missing or faulty configuration.
    """
    step = make_step(name, fabric)
    calls, waits = [], []
    for n_pairs in args.counted:
        batch = fabric.to_device(make_batch(data, COUNTED_SIDE, n_pairs)[0])
        step(batch)  # the optimizer makes its state in the first step
        with patch.object(point_sets, "FREE_READ_DEVICES", ()), CallCounter() as trained:
            step.train(batch)
        with CallCounter() as updated:
            step.update()
        calls.append(trained.calls + updated.calls)
        # What AdamW reads, the numbers of its steps, is on the CPU in any case.
        waits.append(trained.waits + int(fabric.device.type == "cpu"))
    return CountedConfig(name, calls, waits)


def matrix_rate(fabric: Fabric, precision: str) -> float:
    """Operations per second of the device on large matrix products: the best of five."""
    dtype = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype, device=fabric.device)
    matrix @ matrix
    return 2 * MATRIX_SIDE**3 / min(timed(lambda: matrix @ matrix, fabric) for _ in range(5))


def timed(action: Callable[[], object], fabric: Fabric) -> float:
    """Seconds of an action, including the work that it queued on the device."""

    def wait() -> None:
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)

    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def report(measured: list[MeasuredConfig], seconds: dict[str, list[float]], rate: float) -> str:
    """Format the table.

    Args:
        measured: in the order of the rows; ratios are to the first.
        seconds: times of the steps by name; their median counts.
        rate: operations per second of large matrix products.
    """
    typical = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    first = typical[measured[0].name]
    lines = [
        f"matrix products: {rate / 1e9:.0f} GFLOP/s",
        f"{'configuration':<40}{'s/step':>8}{'ratio':>7}{'GFLOP':>8}{'of matrix rate':>16}"
        f"{'data':>7}",
    ]
    for each in measured:
        took = typical[each.name]
        lines.append(
            f"{each.name:<40}{took:>8.3f}{took / first:>7.2f}{each.operations / 1e9:>8.1f}"
            f"{each.operations / took / rate:>16.1%}{each.batch_seconds / took:>7.2f}"
        )
    return "\n".join(lines)


def report_counts(counted: list[CountedConfig], batch_sizes: list[int]) -> str:
    """Format the table of the calls.

    Args:
        counted: in the order of the rows.
        batch_sizes: of the columns.
    """
    lines = [
        f"operator calls, then waits for a GPU, in a step of {COUNTED_SIDE} px",
        f"{'configuration':<40}" + "".join(f"{f'batch {size}':>15}" for size in batch_sizes),
    ]
    for each in counted:
        cells = zip(each.calls, each.waits, strict=True)
        lines.append(f"{each.name:<40}" + "".join(f"{f'{c}, {w}':>15}" for c, w in cells))
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        default=DEFAULT_CONFIGS,
        help=f"config files; FILE:{UNFROZEN} trains all modules of a LoFTR",
    )
    parser.add_argument("--img_size", type=int, default=256, help="side of the views, pixels")
    parser.add_argument("--batch_size", type=int, default=4, help="pairs per step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each configuration")
    parser.add_argument(
        "--counted",
        type=int,
        nargs="*",
        default=COUNTED_BATCHES,
        metavar="N",
        help="batch sizes for which operator calls are counted; none skips the count",
    )
    parser.add_argument("--precision", default="32", choices=list(PRECISIONS))
    parser.add_argument("--device", default="auto", choices=DEVICES)
    return parser


def main() -> None:
    """Build all configurations, time their steps alternately and print the table."""
    args = get_args_parser().parse_args()
    if min(args.img_size, args.batch_size, args.steps, *args.counted) < 1:
        raise InputError("--img_size, --batch_size, --steps and --counted must be above 0.")
    fabric = make_fabric(args.device, args.precision)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "eyes"
        write_generated_set(data, args.batch_size, size=max(64, args.img_size), progress=False)
        measured = [prepare(name, data, args, fabric) for name in args.configs]
        counted = [count(name, data, args, fabric) for name in args.configs if args.counted]
    seconds: dict[str, list[float]] = {each.name: [] for each in measured}
    for _ in range(args.steps):
        for each in measured:
            seconds[each.name].append(timed(each.step, fabric))
    print(report(measured, seconds, matrix_rate(fabric, args.precision)))
    if counted:
        print(f"\n{report_counts(counted, args.counted)}")


if __name__ == "__main__":
    run_script(main)
