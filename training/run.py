"""Train a task to its end, and record its settings and split."""

from __future__ import annotations

import argparse
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from dataset.split import write_manifest
from training.data import TrainingData
from training.engine import Engine
from training.run_config import RunConfig
from training.run_folder import Run, write_run_config
from training.task import TrainingTask
from utils.config import to_plain


def train_run(
    run: Run,
    task: TrainingTask,
    config: RunConfig,
    data: TrainingData,
    fabric: Fabric,
    args: argparse.Namespace,
) -> None:
    """Train a new run, or continue a resumed one.

    Args:
        run: where it is kept, and the checkpoint that it continues from.
        task: what is trained.
        config: of the run.
        data: its images, for the record of the split.
        fabric: devices and processes.
        args: parsed arguments, for the record.

    Raises:
        InputError: as :class:`training.engine.Engine`.
    """
    if run.damage:
        fabric.print(f"damaged checkpoint: {run.damage}")
    engine = Engine(fabric, task, config.loop, run.folder, config.seed, args.overfit, args.profile)
    if run.checkpoint is not None:
        engine.resume(run.checkpoint)
    if fabric.is_global_zero:
        parameters = describe_parameters(task.model)
        with engine.folder.writing():
            split_seed = None if args.split_file else config.data.split_seed
            manifest = run.folder / "split.yaml"
            write_manifest(manifest, data.roots, split_seed, data.split, data.real.split)
            content: dict[str, Any] = {
                "arguments": vars(args),
                "parameters": parameters,
                "settings": to_plain(config),
            }
            write_run_config(run.folder, content)
        fabric.print(
            f"{len(data.train)} training samples, {config.loop.views_per_sample} views of each "
            f"per epoch = {len(engine.batches)} steps; {parameters}; device {fabric.device}; run "
            f"folder {run.folder}"
        )
    engine.fit()


def describe_parameters(model: nn.Module) -> str:
    """Number of trained and of all parameters, for logs.

    Args:
        model: parameters with ``requires_grad`` are trained.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    return f"{trained:,} of {total:,} parameters train ({trained / total:.0%})"
