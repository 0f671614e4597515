"""The training engine: one loop for every training script, on Lightning Fabric.

Fabric carries the device, mixed precision and torch DDP; the loop, the logs and the checkpoints are here. A script
describes *what* is trained in a :class:`TrainingTask` and calls :meth:`Engine.fit`.

Every draw in the data comes from (seed, epoch, index), so the state of a run is its weights, optimizer, schedule and
value maps, and a resumed run continues as if it had never stopped.
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dataset.generated_pairs import ViewKey
from utils.checkpoint import load_strictly, read_checkpoint, save_checkpoint
from utils.device import pick_device
from utils.errors import InputError, NonFiniteLossError
from utils.image_io import write_text_atomically
from utils.run_report import EpochLog, draw_curves

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class StepOutput(NamedTuple):
    """One training step: named loss terms with ``total`` (means over the batch, with graph), how many samples of the batch
    had something to say to each term, counts for the log, and anything that the task wants back once the step is done
    on all processes."""

    losses: dict[str, torch.Tensor]
    n_valid: dict[str, int]
    counts: dict[str, float]
    observations: list[Any]


class Stateful(Protocol):
    """Part of a run's state besides the network (a value map)."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True)
class ValidationReport:
    """Result of one validation: ``score`` chooses the best checkpoint (larger is better), ``summary`` goes to the curves,
    ``text`` to the log."""

    score: float
    summary: dict[str, float]
    text: str


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the loop.

    Attributes:
        epochs: number of epochs.
        batch_size: pairs per step over all processes.
        views_per_sample: how often each sample is seen per epoch, each time in another view.
        lr: largest learning rate of the one-cycle schedule (Smith & Topin, 2018).
        warmup_share: part of the run in which the rate rises.
        weight_decay: of AdamW.
        max_gradient_norm: gradients are scaled down to this norm.
        workers: data loading processes.
    """

    epochs: int = 5
    batch_size: int = 4
    views_per_sample: int = 2
    lr: float = 2e-3
    warmup_share: float = 0.15
    weight_decay: float = 1e-4
    max_gradient_norm: float = 1.0
    workers: int = 2


@dataclass
class TrainingTask:
    """What a training script trains.

    Attributes:
        model: the network (unwrapped); parameters with ``requires_grad`` are trained.
        dataset: indexed by :class:`dataset.generated_pairs.ViewKey`.
        step: (wrapped network, batch on the device) -> :class:`StepOutput`.
        learn: called after each optimizer step with the observations of all processes, in order.
        validate: (epoch, folder for pictures) -> :class:`ValidationReport`; runs on the first process only.
        description: what a checkpoint needs to rebuild the model (see ``model.factory.describe_model``).
        config: everything that defines the run, kept in the checkpoint.
        extra_state: named parts of the state besides the network.
        statistics: figures of those parts, for the log of each epoch.
    """

    model: nn.Module
    dataset: Dataset
    step: Callable[[nn.Module, dict], StepOutput]
    learn: Callable[[list[Any]], None]
    validate: Callable[[int, Path], ValidationReport]
    description: dict[str, Any]
    config: dict[str, Any]
    extra_state: dict[str, Stateful] = field(default_factory=dict)
    statistics: Callable[[], dict[str, float]] = dict


class ViewBatches(Sampler[list[ViewKey]]):
    """Batches of view keys for one epoch; each process takes its share of every batch.

    The order depends on (seed, epoch) alone. Process r of n takes items r, r + n, ... of each batch, so n processes
    together see exactly the batches that one would see.
    """

    def __init__(self, n_samples: int, settings: TrainSettings, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if settings.batch_size % world_size:
            raise InputError(f"--batch_size {settings.batch_size} cannot be shared evenly by {world_size} processes.")
        self.n_views = n_samples * settings.views_per_sample
        self.batch_size, self.seed, self.rank, self.world_size = settings.batch_size, seed, rank, world_size
        self.epoch = 1

    def __len__(self) -> int:
        return max(1, self.n_views // self.batch_size)

    def __iter__(self) -> Iterator[list[ViewKey]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_views)
        # A small data set fills its one batch by starting over.
        order = np.resize(order, len(self) * self.batch_size)
        for start in range(0, len(order), self.batch_size):
            batch = order[start:start + self.batch_size][self.rank::self.world_size]
            yield [ViewKey(self.epoch, int(index)) for index in batch]


def make_fabric(device: str = "auto", precision: str = "32") -> Fabric:
    """Fabric for one process, or for the processes that ``torchrun`` started.

    Args:
        device: "auto" (CUDA where there is one, else the CPU), "cpu" or "cuda". precision: "32", "bf16" or "fp16".

    Raises:
        InputError: a device that this machine lacks, or fp16 on a CPU.
    """
    accelerator = pick_device(device).type
    if precision == "fp16" and accelerator == "cpu":
        raise InputError("--precision fp16 needs a GPU; use bf16 or 32 on a CPU.")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(accelerator=accelerator, devices=local, num_nodes=max(1, world // local),
                    strategy="ddp" if world > 1 else "auto", precision=PRECISIONS[precision])
    fabric.launch()
    return fabric


def raise_if_not_finite(losses: dict[str, torch.Tensor], where: str, keys: list[str]) -> None:
    """Stop on a NaN or infinite term, naming it.

    Raises:
        NonFiniteLossError: with the terms, the place in the run and the samples of the batch.
    """
    names = list(losses)
    finite = torch.isfinite(torch.stack([losses[name].detach() for name in names])).tolist()
    broken = [name for name, fine in zip(names, finite, strict=True) if not fine]
    if broken:
        raise NonFiniteLossError(f"loss term {', '.join(broken)} is not finite at {where}; samples: {', '.join(keys)}. "
                                 "Check these samples, lower --lr, or use --precision 32.")


class Engine:
    """Runs a task and leaves its traces in ``run_dir``: logs, curves, TensorBoard events, checkpoints, pictures.

    Args:
        fabric: from :func:`make_fabric`.
        task: what is trained.
        settings: of the loop.
        run_dir: folder of the run.
        seed: of the order of the views.
        overfit: train on the views of the first batch of epoch 1 only, to see whether the network can learn at all.
    """

    def __init__(self, fabric: Fabric, task: TrainingTask, settings: TrainSettings, run_dir: Path, seed: int,
                 overfit: bool = False) -> None:
        self.fabric, self.task, self.settings, self.run_dir, self.overfit = fabric, task, settings, run_dir, overfit
        self.batches = ViewBatches(len(task.dataset), settings, seed, fabric.global_rank, fabric.world_size)
        loader = DataLoader(task.dataset, batch_sampler=self.batches, num_workers=settings.workers,
                            persistent_workers=settings.workers > 0, pin_memory=fabric.device.type == "cuda")
        self.loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
        model = task.model.to(memory_format=torch.channels_last)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total_steps=settings.epochs * len(self.batches) + 1,
            pct_start=settings.warmup_share)
        self.finished_epochs = 0
        self.history: list[dict[str, float]] = []
        self.best_score = -float("inf")
        self._writer: SummaryWriter | None = None

    # --- the loop ----------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Validate the untrained network, then train and validate until the last epoch."""
        if self.finished_epochs == 0 and not self.history:
            self._finish_epoch(0, {})
        for epoch in range(self.finished_epochs + 1, self.settings.epochs + 1):
            self._finish_epoch(epoch, self._train_one_epoch(epoch))
        if self._writer is not None:
            self._writer.close()

    def _train_one_epoch(self, epoch: int) -> dict[str, float]:
        """All steps of an epoch. Returns the mean of every term over the samples that had something to say to it, the
        mean of every count over the steps."""
        self.model.train()
        self.batches.epoch = 1 if self.overfit else epoch
        sums: dict[str, float] = {}
        shares: dict[str, float] = {}
        waited, start = 0.0, time.perf_counter()
        progress = tqdm(self._batches_of_epoch(), total=len(self.batches), desc=f"epoch {epoch}", unit="step",
                        disable=not self.fabric.is_global_zero, dynamic_ncols=True, mininterval=1.0)
        asked = time.perf_counter()
        for batch in progress:
            waited += time.perf_counter() - asked
            output = self._train_one_step(batch, f"epoch {epoch}, step {progress.n + 1}")
            for name, value in {**output.losses, **output.counts}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
                share = output.n_valid.get(name, len(batch["key"])) / len(batch["key"])
                shares[name] = shares.get(name, 0.0) + share
            progress.set_postfix(loss=f"{float(output.losses['total']):.3f}", refresh=False)
            asked = time.perf_counter()
        seconds = time.perf_counter() - start
        sums, shares = self._mean_over_processes(sums), self._mean_over_processes(shares)
        # A term that no sample contributed to is zero.
        terms = {name: value / max(shares[name], 1e-9) for name, value in sums.items()}
        terms |= {f"map_{name}": float(value) for name, value in self.task.statistics().items()}
        return terms | {"lr": self.scheduler.get_last_lr()[0], "waiting_share": waited / seconds,
                        "pairs_per_second": len(self.batches) * self.settings.batch_size / seconds}

    def _batches_of_epoch(self) -> Iterator[dict]:
        if not self.overfit:
            yield from self.loader
            return
        first = next(iter(self.loader))
        for _ in range(len(self.batches)):
            yield first

    def _train_one_step(self, batch: dict, where: str) -> StepOutput:
        output = self.task.step(self.model, batch)
        raise_if_not_finite(output.losses, where, batch["key"])
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(output.losses["total"])
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.settings.max_gradient_norm,
                                          error_if_nonfinite=False)
        # Under fp16 an overflowing gradient is ordinary: the scaler skips that step by itself.
        if getattr(self.fabric.strategy.precision, "scaler", None) is None:
            raise_if_not_finite({"gradient norm": norm}, where, batch["key"])
        self.optimizer.step()
        self.scheduler.step()
        self.task.learn(self._observations_of_all(output.observations))
        detached = {name: value.detach() for name, value in output.losses.items()}
        return StepOutput(detached, output.n_valid, output.counts | {"gradient_norm": float(norm)}, [])

    # --- several processes -------------------------------------------------------------------------------------------

    def _observations_of_all(self, observations: list[Any]) -> list[Any]:
        """Observations of all processes in the order of the whole batch, so that every process learns the same."""
        if self.fabric.world_size == 1:
            return observations
        gathered: list[list[Any]] = [[] for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather_object(gathered, observations)
        return [item for group in zip(*gathered, strict=True) for item in group]

    def _mean_over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        if self.fabric.world_size == 1:
            return sums
        values = self.fabric.all_reduce(torch.tensor(list(sums.values()), device=self.fabric.device), reduce_op="mean")
        return dict(zip(sums, values.tolist(), strict=True))

    # --- what a run leaves -------------------------------------------------------------------------------------------

    def _finish_epoch(self, epoch: int, terms: dict[str, float]) -> None:
        """Validate, log and save, on the first process; the others wait."""
        self.finished_epochs = epoch
        if self.fabric.is_global_zero:
            report = self.task.validate(epoch, self.run_dir / f"epoch{epoch}")
            self.history.append({"epoch": float(epoch)} | terms | {f"val_{k}": v for k, v in report.summary.items()})
            EpochLog(self.run_dir / "validation_log.txt").write(epoch, report.text)
            if terms:
                line = "  ".join(f"{name} {value:.5g}" for name, value in terms.items())
                EpochLog(self.run_dir / "train_log.txt").write(epoch, line)
            self._write_events(epoch, self.history[-1])
            draw_curves(self.run_dir / "curves.png", self.history)
            is_best = report.score > self.best_score
            self.best_score = max(report.score, self.best_score)
            self._save(is_best)
            tqdm.write(f"epoch {epoch}: " + (f"loss {terms['total']:.4f}, " if terms else "")
                       + ", ".join(f"{name} {value:.4g}" for name, value in report.summary.items()))
        self.fabric.barrier()

    def _write_events(self, epoch: int, record: dict[str, float]) -> None:
        if self._writer is None:
            # What a resumed run repeats replaces what the stopped one wrote.
            self._writer = SummaryWriter(self.run_dir / "events", purge_step=epoch)
        for name, value in record.items():
            if name != "epoch" and np.isfinite(value):
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def _save(self, is_best: bool) -> None:
        content = self.task.description | {
            "model": self.task.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(), "epoch": self.finished_epochs, "history": self.history,
            "best_score": self.best_score, "config": self.task.config,
            "extra": {name: part.state_dict() for name, part in self.task.extra_state.items()},
            "random_state": torch.get_rng_state()}
        save_checkpoint(self.run_dir / "latest.pth", content)
        if is_best:
            save_checkpoint(self.run_dir / "best.pth", content)

    def resume(self, path: Path) -> None:
        """Continue the run that wrote a checkpoint.

        Raises:
            InputError: unreadable file, other architecture, other number of steps, or a run that is already complete.
        """
        content = read_checkpoint(path, ("model", "optimizer", "scheduler", "epoch", "history", "best_score", "extra",
                                         "random_state"))
        load_strictly(self.task.model, content["model"], path)
        if content["scheduler"]["total_steps"] != self.scheduler.total_steps:
            raise InputError(f"{path}: was written by a run of {content['scheduler']['total_steps']} steps, this one has "
                             f"{self.scheduler.total_steps}; resume with the same --epoch, --batch_size and data, or start "
                             "a new run from it with --pretrained.")
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        for name, part in self.task.extra_state.items():
            part.load_state_dict(content["extra"][name])
        torch.set_rng_state(content["random_state"])
        self.finished_epochs, self.history = int(content["epoch"]), list(content["history"])
        # best.pth of another folder stays there: here the next epoch is the best so far.
        same_folder = path.resolve().parent == self.run_dir.resolve()
        self.best_score = float(content["best_score"]) if same_folder else -float("inf")
        if self.finished_epochs >= self.settings.epochs:
            raise InputError(f"{path}: the run is complete ({self.finished_epochs} epochs); raise --epoch only in a new run "
                             "(--pretrained), or evaluate it.")


def write_run_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Write the resolved settings of a run as ``config.yaml``."""
    import yaml
    write_text_atomically(run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False))
