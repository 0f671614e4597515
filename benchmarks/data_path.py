"""Pairs a second that the data path alone delivers, in the first and in later epochs.

    python -m benchmarks.data_path
    python -m benchmarks.data_path --data data/generated --img_size 128 512 --workers 1 2 7

Measures the loader of the training without any training: reading the samples, drawing and making
the views, collating them, and moving the batches to the device. Rows: "decoded each time" keeps no
decoded sample; "workers" and "device" are the two values of ``data.augment_on``, with an empty
cache on disk in the first epoch. The rows take turns epoch by epoch, so that other load on the
machine slows all of them alike; the median of the later epochs counts. Compare ratios.

Prints a table; the cache is a temporary folder. On 2 cores the defaults take about three minutes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from dataset.aligned_pairs import AlignedPairs, DataSettings
from dataset.samples import Sample, discover_samples
from dataset.stack_cache import StackCache
from dataset.views import ViewGeometry
from synthesis.generated_set import write_generated_set
from training.batches import TolerantViews, ViewBatches, batches_of_epoch, make_loader
from training.loop_settings import TrainSettings
from training.processes import make_fabric
from utils.config import build, read_config
from utils.device import DEVICES
from utils.errors import InputError, run_script

UNCACHED, ROWS = "decoded each time", ("decoded each time", "workers", "device")
CACHE_GB = 16.0  # of the temporary folder; the data of a measurement is much smaller


class Row(NamedTuple):
    """One way of loading.

    Attributes:
        name: one of ``ROWS``, then size and number of workers.
        loader: of the batches.
        batches: keys of the batches; its epoch is set before each pass.
        rates: pairs a second of the epochs so far.
    """

    name: str
    loader: DataLoader
    batches: ViewBatches
    rates: list[float]


def make_row(
    name: str,
    workers: int,
    samples: list[Sample],
    geometry: ViewGeometry,
    args: argparse.Namespace,
    folder: Path,
    fabric: Fabric,
) -> Row:
    """Build a loader as a training run does.

    Args:
        name: one of ``ROWS``.
        workers: data loading processes.
        samples: of the data set.
        geometry: of the views.
        args: of the command.
        folder: for the cache of this row.
        fabric: of the device.
    """
    content = read_config(args.config)
    data = build(DataSettings, content.get("data", {}), f"{args.config}: data")
    cached = name != UNCACHED
    pairs = AlignedPairs(
        samples,
        geometry,
        data.ranges if args.photometric else None,
        cache=StackCache(CACHE_GB * cached, 0, folder),
        packed=name == "device",
        with_aligned=False,
    )
    settings = TrainSettings(batch_size=args.batch_size, views_per_sample=1)
    batches = ViewBatches(len(samples), settings, seed=0)
    loader = make_loader(TolerantViews(pairs, 0.0), batches, workers, fabric)
    return Row(f"{name}, {geometry.img_size} px, {workers} workers", loader, batches, [])


def run_epoch(row: Row, fabric: Fabric) -> None:
    """Load the views of the next epoch and note the pairs a second.

    Args:
        row: its rates are extended.
        fabric: of the device, on which the last batch must be complete.
    """
    row.batches.epoch = len(row.rates) + 1
    start, n_pairs = time.perf_counter(), 0
    for batch in batches_of_epoch(row.loader):
        n_pairs += len(batch["key"])
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    row.rates.append(n_pairs / (time.perf_counter() - start))


def report(rows: list[Row]) -> str:
    """Format the table.

    Args:
        rows: measured; ratios are to the first of the same size and number of workers.
    """
    lines = [f"{'pairs a second':<44}{'epoch 1':>9}{'later':>8}{'ratio':>7}"]
    first: dict[str, float] = {}
    for row in rows:
        later = statistics.median(row.rates[1:])
        base = first.setdefault(row.name.partition(",")[2], later)
        lines.append(f"{row.name:<44}{row.rates[0]:>9.1f}{later:>8.1f}{later / base:>7.2f}")
    return "\n".join(lines)


def make_groups(
    samples: list[Sample], args: argparse.Namespace, folder: Path, fabric: Fabric
) -> Iterator[list[Row]]:
    """The rows of each size and number of workers.

    Args:
        samples: of the data set.
        args: of the command.
        folder: for the caches.
        fabric: of the device.

    Raises:
        InputError: a faulty config.
    """
    content = read_config(args.config)
    view = build(ViewGeometry, content.get("view", {}), f"{args.config}: view")
    for size, workers in product(args.img_size, args.workers):
        geometry = replace(view, img_size=size, ramp_epochs=0)
        yield [
            make_row(
                name, workers, samples, geometry, args, folder / f"{name}{size}{workers}", fabric
            )
            for name in args.rows
        ]


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="generated data (default: some eyes are rendered for the measurement)")
    add("--mode", default="cffa", help="kind of pairs")
    add("--samples", type=int, default=32, help="number of samples that are loaded")
    add("--config", default="configs/superretina_release.yaml", help="views and randomisation")
    add("--photometric", action=argparse.BooleanOptionalAction, default=True)
    add("--img_size", type=int, nargs="+", default=[128, 512], help="sides of the views, pixels")
    add("--workers", type=int, nargs="+", default=[2], help="data loading processes")
    add("--batch_size", type=int, default=4, help="pairs in a batch")
    add("--epochs", type=int, default=4, help="of each row, the first one included")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    add("--device", default="auto", choices=DEVICES)
    return parser


def main() -> None:
    """Measure all rows and print the table."""
    args = get_args_parser().parse_args()
    if min(*args.img_size, args.batch_size, args.samples) < 1 or args.epochs < 2:
        raise InputError("--epochs must be at least 2, sizes and numbers at least 1.")
    if min(args.workers) < 0:
        raise InputError("--workers must be at least 0.")
    fabric = make_fabric(args.device, "32")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.data:
            args.data = str(folder / "eyes")
            write_generated_set(Path(args.data), args.samples, size=512, progress=False)
        samples = discover_samples(args.data, [args.mode])[0][: args.samples]
        for group in make_groups(samples, args, folder, fabric):
            for _ in range(args.epochs):
                for row in group:
                    run_epoch(row, fabric)
            rows += group
    print(f"device: {fabric.device}; {len(samples)} samples; batches of {args.batch_size}")
    print(report(rows))


if __name__ == "__main__":
    run_script(main)
