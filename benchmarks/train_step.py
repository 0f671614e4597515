"""What a training step costs: per configuration its time, the rate of arithmetic it reaches, and the share spent on data.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --configs configs/superretina_lite.yaml --precision bf16 --img_size 256

The configurations take turns, so that a busy machine slows all of them alike; compare the ratios. The rate (operations of the
network in both directions, counted by torch) is also given as a share of what this machine reaches on large matrix products in
the same precision in the same run. "data" is the time to make a batch in this process, over the time of a step: with n loading
processes the step waits for data when it exceeds n.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from dataset.generated_pairs import GeneratedPairs, ViewKey
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from registration.trained_matchers import build_model
from synthesis.generated_set import write_generated_set
from training.joint_step import JointConfig, JointStep
from training.processes import PRECISIONS, make_fabric
from training.vessel_step import LoFTRConfig, VesselStep
from utils.config import build, read_yaml
from utils.device import DEVICES
from utils.errors import InputError, run_script

LOFTR = "loftr"
DEFAULT_CONFIGS = (
    "configs/superretina_lite.yaml",
    "configs/superretina.yaml",
    "configs/loftr_v3_lite.yaml",
    "configs/loftr_v3_lite.yaml:unfrozen",
)
MATRIX_SIDE = 1536


class Contestant(NamedTuple):
    """One configuration: a full step (forward, backward, update), the same as the engine's, on one batch of pairs."""

    name: str
    step: Callable[[], None]
    operations: int
    batch_seconds: float


def make_contestant(name: str, data: Path, args: argparse.Namespace, fabric: Fabric) -> Contestant:
    """Build network, objective and optimizer of a configuration; ``:unfrozen`` behind a LoFTR's file trains all of it.

    Raises:
        InputError: missing or faulty configuration.
    """
    file, _, variant = name.partition(":")
    is_loftr = LOFTR in Path(file).name
    config = build(LoFTRConfig if is_loftr else JointConfig, read_yaml(file), file)
    torch.manual_seed(0)
    model = build_model(config.model)
    if is_loftr:
        model.freeze(() if variant == "unfrozen" else config.now.freeze)
        loss_step = VesselStep(model, config.now.loss, fabric.device)
    else:
        loss_step = JointStep(config, model)
    geometry = ViewGeometry(img_size=args.img_size, long_side=args.img_size)
    pairs = GeneratedPairs(discover_samples(data, ["cffa"])[0], geometry)
    pairs[ViewKey(1, 0)]
    start = time.perf_counter()
    batch = default_collate([pairs[ViewKey(1, index)] for index in range(args.batch_size)])
    batch_seconds = time.perf_counter() - start
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    network, optimizer = fabric.setup(model, torch.optim.AdamW(trained, lr=1e-4))
    batch = fabric.to_device(batch)

    def step() -> None:
        optimizer.zero_grad()
        fabric.backward(loss_step(network, batch).losses["total"])
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    return Contestant(name, step, counter.get_total_flops(), batch_seconds)


def matrix_rate(fabric: Fabric, precision: str) -> float:
    """Operations per second of this device on large matrix products."""
    kind = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, dtype=kind, device=fabric.device)
    matrix @ matrix
    return 2 * MATRIX_SIDE**3 / min(timed(lambda: matrix @ matrix, fabric) for _ in range(5))


def timed(action: Callable[[], object], fabric: Fabric) -> float:
    """Seconds of an action, with whatever it left running on the device."""

    def wait() -> None:
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)

    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def report(contestants: list[Contestant], seconds: dict[str, list[float]], rate: float) -> str:
    """The table; medians."""
    typical = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    first = typical[contestants[0].name]
    lines = [
        f"matrix products: {rate / 1e9:.0f} GFLOP/s",
        f"{'configuration':<40}{'s/step':>8}{'ratio':>7}{'GFLOP':>8}{'of matrix rate':>16}{'data':>7}",
    ]
    for one in contestants:
        took = typical[one.name]
        lines.append(
            f"{one.name:<40}{took:>8.3f}{took / first:>7.2f}{one.operations / 1e9:>8.1f}"
            f"{one.operations / took / rate:>16.1%}{one.batch_seconds / took:>7.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Build all configurations, let them take turns, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=DEFAULT_CONFIGS)
    parser.add_argument("--img_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each")
    parser.add_argument("--precision", default="32", choices=list(PRECISIONS))
    parser.add_argument("--device", default="auto", choices=DEVICES)
    args = parser.parse_args()
    if min(args.img_size, args.batch_size, args.steps) < 1:
        raise InputError("--img_size, --batch_size and --steps must be above 0.")
    fabric = make_fabric(args.device, args.precision)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "eyes"
        write_generated_set(data, args.batch_size, size=max(64, args.img_size), progress=False)
        contestants = [make_contestant(name, data, args, fabric) for name in args.configs]
    seconds: dict[str, list[float]] = {one.name: [] for one in contestants}
    for _ in range(args.steps):
        for one in contestants:
            seconds[one.name].append(timed(one.step, fabric))
    print(report(contestants, seconds, matrix_rate(fabric, args.precision)))


if __name__ == "__main__":
    run_script(main)
