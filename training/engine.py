"""The training engine: one loop for every training script, on Lightning Fabric.

Fabric carries the device, mixed precision and torch DDP; the loop, the logs and the checkpoints are here. A script
describes *what* is trained in a :class:`TrainingTask` and calls :meth:`Engine.fit`.

Every draw in the data comes from (seed, epoch, index) and every draw in a step from (seed, epoch, step), so the state of a
run is its weights, optimizer, schedule, scaler, value maps and place. It is saved in the middle of an epoch too, and a
resumed run continues as if it had never stopped: on a CPU bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.batches import (
    TolerantViews,
    ViewBatches,
    collate_views,
    seed_step,
    split_batch,
    start_worker,
)
from training.interrupt import StopRequest
from training.processes import gather_objects, on_first_process, sum_over_processes
from training.profiling import describe_seconds, operator_profiler, peak_memory_mb
from training.run_folder import RunFolder
from training.settings import TrainSettings
from training.task import EpochProgress, StepOutput, TrainingTask, ValidationReport
from utils.checkpoint import load_strictly, read_checkpoint, save_checkpoint
from utils.errors import InputError, NonFiniteLossError, RunStoppedError

# Figures of the machine and not of the training: they differ from run to run.
MEASURED = ("waiting_share", "pairs_per_second", "peak_memory_mb")
# fp16 halves its scale at each overflow; one that has come down to this was no overflow.
SMALLEST_SCALE = 1.0


class Engine:
    """Runs a task and leaves its traces in ``run_dir``: logs, curves, TensorBoard events, checkpoints, pictures.

    Args:
        fabric: from :func:`training.processes.make_fabric`.
        task: what is trained.
        settings: of the loop.
        run_dir: folder of the run; claimed until :meth:`fit` ends.
        seed: of the order of the views, and of whatever a step draws.
        overfit: train on the views of the first batch of epoch 1 only, to see whether the network can learn at all.
        profile: print where the time goes.

    Raises:
        InputError: a batch that cannot be shared, or a folder that another process uses or that cannot be written to.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: TrainingTask,
        settings: TrainSettings,
        run_dir: Path,
        seed: int,
        overfit: bool = False,
        profile: bool = False,
    ) -> None:
        self.fabric, self.task, self.settings, self.seed = fabric, task, settings, seed
        self.overfit, self.profile = overfit, profile
        self.batches = ViewBatches(
            len(task.dataset), settings, seed, fabric.global_rank, fabric.world_size
        )
        views = TolerantViews(task.dataset, settings.max_bad_share)
        self.max_bad = views.max_bad
        loader = DataLoader(
            views,
            batch_sampler=self.batches,
            num_workers=settings.workers,
            collate_fn=collate_views,
            worker_init_fn=start_worker,
            persistent_workers=settings.workers > 0,
            pin_memory=fabric.device.type == "cuda",
        )
        self.loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
        model = task.model.to(memory_format=torch.channels_last)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            settings.lr,
            total_steps=settings.epochs * len(self.batches) + 1,
            pct_start=settings.warmup_share,
        )
        # Epoch 0 is the validation of the untrained network.
        self.finished_epochs, self.progress = -1, EpochProgress()
        self.history: list[dict[str, float]] = []
        self.best_score = -float("inf")
        self.stop, self._first_epoch = StopRequest(), True
        self._saved_at = time.monotonic()
        self.folder = RunFolder(Path(run_dir))
        on_first_process(fabric, self.folder.open)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Validate the untrained network, then train and validate until the last epoch.

        Raises:
            RunStoppedError: the user or the system asked to stop; the state is saved.
            NonFiniteLossError: a loss or a gradient is not finite; a dump to repeat the step is saved.
            InputError: too many unreadable samples, or a folder that cannot be written to any more.
        """
        try:
            with self.stop.listening():
                if self.finished_epochs < 0:
                    self._save()
                for epoch in range(self.finished_epochs + 1, self.settings.epochs + 1):
                    if epoch > 0:
                        self._train_one_epoch(epoch)
                    self._finish_epoch(epoch)
        except KeyboardInterrupt:
            raise RunStoppedError(
                f"{self._place()}. Go on from the last checkpoint with: {self.task.resume_hint}"
            ) from None
        finally:
            self.folder.close()

    def _train_one_epoch(self, epoch: int) -> None:
        """The steps of an epoch that are not done yet."""
        self.model.train()
        self.batches.epoch, self.batches.first_step = (
            (1, 0) if self.overfit else (epoch, self.progress.steps)
        )
        batches = self._batches_of_epoch()
        n_steps = len(self.batches)
        with (
            tqdm(
                total=n_steps,
                initial=self.progress.steps,
                desc=f"epoch {epoch}",
                unit="step",
                dynamic_ncols=True,
                mininterval=1.0,
                disable=not self.fabric.is_global_zero,
            ) as bar,
            operator_profiler()
            if self.profile and self._first_epoch
            else nullcontext() as profiler,
        ):
            while self.progress.steps < n_steps:
                with self._timed("all"):
                    total = self._train_one_step(batches, epoch)
                if profiler is not None:
                    profiler.step()
                bar.set_postfix(loss=f"{total:.3f}", refresh=False)
                bar.update()
        self._first_epoch = False
        with self._timed("all"):
            self._save()

    def _train_one_step(self, batches: Iterator[dict], epoch: int) -> float:
        """One optimizer step on the next batch. Returns the total loss."""
        batch, n_skipped = self._next_batch(batches)
        parts = split_batch(batch, self.settings.accumulate)
        seed_step(self.seed, epoch, self.progress.steps, self.fabric.global_rank)
        self.optimizer.zero_grad(set_to_none=True)
        figures: dict[str, float] = {"skipped_views": n_skipped}
        shares: dict[str, float] = {}
        observations: list[Any] = []
        for number, part in enumerate(parts, start=1):
            # The gradients of several processes are averaged once, after the last part.
            with self.fabric.no_backward_sync(self.model, enabled=number < len(parts)):
                with self._timed("forward and loss"):
                    output = self.task.step(self.model, part)
                    self._add_figures(output, part, epoch, figures, shares, len(parts))
                with self._timed("backward"):
                    self.fabric.backward(output.losses["total"] / len(parts))
            observations += output.observations
        with self._timed("optimizer"):
            figures |= self._update_weights(batch, epoch)
        with self._timed("value map"):
            self.task.learn(self._observations_of_all(observations))
        self.progress.add(figures, shares)
        self.progress.steps += 1
        return figures["total"]

    def _update_weights(self, batch: dict, epoch: int) -> dict[str, float]:
        """Step the optimizer and the schedule. Returns figures for the log."""
        norm = float(
            self.fabric.clip_gradients(
                self.model,
                self.optimizer,
                max_norm=self.settings.max_gradient_norm,
                error_if_nonfinite=False,
            )
        )
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        figures = {"gradient_norm": norm}
        if not np.isfinite(norm):
            # Under fp16 an overflowing gradient is ordinary: the scaler skips that step by itself and lowers its scale.
            if scaler is None or scaler.get_scale() <= SMALLEST_SCALE:
                self._stop_at_non_finite(
                    [
                        f"gradient of {name}"
                        for name, parameter in self.task.model.named_parameters()
                        if parameter.grad is not None and not parameter.grad.isfinite().all()
                    ],
                    batch,
                    epoch,
                )
            figures = {}
        self.optimizer.step()
        self.scheduler.step()
        return figures | ({"overflows": float(not figures)} if scaler is not None else {})

    def _add_figures(
        self,
        output: StepOutput,
        part: dict,
        epoch: int,
        figures: dict[str, float],
        shares: dict[str, float],
        n_parts: int,
    ) -> None:
        """Add one part's terms, counts and shares, over all processes, to those of the step.

        Raises:
            NonFiniteLossError
        """
        names = list(output.losses)
        own = torch.stack([output.losses[name].detach().float() for name in names]).tolist()
        n_items, world = len(part["key"]), self.fabric.world_size
        n_valid = [float(output.n_valid.get(name, n_items)) for name in names]
        summed = sum_over_processes(
            self.fabric, [*own, *n_valid, *map(float, output.counts.values())]
        )
        if not np.isfinite(summed[: len(names)]).all():
            self._stop_at_non_finite(
                [
                    f"loss term {name}"
                    for name, value in zip(names, own, strict=True)
                    if not np.isfinite(value)
                ],
                part,
                epoch,
            )
        for index, name in enumerate(names):
            figures[name] = figures.get(name, 0.0) + summed[index] / world / n_parts
            shares[name] = shares.get(name, 0.0) + summed[len(names) + index] / (
                n_items * world * n_parts
            )
        for name, value in zip(output.counts, summed[2 * len(names) :], strict=True):
            figures[name] = figures.get(name, 0.0) + value

    def _observations_of_all(self, observations: list[Any]) -> list[Any]:
        """Observations of all processes in the order of the whole batch, so that every process learns the same."""
        return [
            item
            for group in zip(*gather_objects(self.fabric, observations), strict=True)
            for item in group
        ]

    # --- the data ----------------------------------------------------------------------------------------------------

    def _batches_of_epoch(self) -> Iterator[dict]:
        if not self.overfit:
            yield from self.loader
            return
        first = next(iter(self.loader))
        while True:
            yield dict(first)

    def _next_batch(self, batches: Iterator[dict]) -> tuple[dict, float]:
        """The next batch, and how many views of it stand in for others; the moment to save, to stop, and to look at faults.

        Raises:
            InputError: a killed worker, or too many unreadable samples. RunStoppedError: asked to stop.
        """
        fault, batch = "", {"skipped": []}
        with self._timed("waiting for data"):
            try:
                batch = next(batches)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                fault = (
                    "a data worker was killed by the system, often for want of memory "
                    f"({str(error).splitlines()[0]}); lower --workers or data.cache_mb"
                )
        due = (
            self.fabric.is_global_zero
            and time.monotonic() - self._saved_at >= self.settings.save_seconds
        )
        skipped = batch.pop("skipped")
        n_faults, n_skipped, stop, save = sum_over_processes(
            self.fabric,
            [float(bool(fault)), float(len(skipped)), float(self.stop.requested), float(due)],
        )
        if n_faults or n_skipped:
            fault = self._look_at_faults(fault, skipped)
        if fault or stop or save:
            self._save()
        if fault:
            raise InputError(
                f"{self._place()}: {fault}. The run is saved; then go on with: {self.task.resume_hint}"
            )
        if stop:
            raise RunStoppedError(f"{self._place()}; saved. Go on with: {self.task.resume_hint}")
        return batch, n_skipped

    def _look_at_faults(self, fault: str, skipped: list[tuple[int, str]]) -> str:
        """Name and count the unreadable samples of all processes. Returns why the run has to stop, or nothing."""
        known = self.progress.skipped
        for other_fault, other_skipped in gather_objects(self.fabric, (fault, skipped)):
            fault = fault or other_fault
            for number, problem in other_skipped:
                if number not in known:
                    known[number] = problem
                    if self.fabric.is_global_zero:
                        tqdm.write(f"skipped, another sample stands in: {problem}")
        if len(known) > self.max_bad:
            fault = fault or (
                f"{len(known)} of {len(self.task.dataset)} training samples cannot be read, more than the "
                f"{self.max_bad} that train.max_bad_share {self.settings.max_bad_share:g} allows: "
                f"{' '.join(list(known.values())[:3])} `python -m dataset.check ROOT` lists every problem of the "
                "data at once"
            )
        return fault

    # --- faults in numbers -------------------------------------------------------------------------------------------

    def _stop_at_non_finite(self, broken: list[str], batch: dict, epoch: int) -> None:
        """Stop on all processes; the first one leaves a checkpoint from before the step, with the batches in it.

        Raises:
            NonFiniteLossError: with the terms, the place in the run, the samples and the dump.
        """
        own = {
            "broken": broken,
            "samples": list(batch["key"]),
            "batch": {
                name: value.cpu()
                for name, value in batch.items()
                if isinstance(value, torch.Tensor)
            },
        }
        found = gather_objects(self.fabric, own)
        dump = self.folder.path / "nonfinite.pth"

        def write() -> None:
            with self.folder.writing():
                save_checkpoint(dump, self._content() | {"failure": found})

        on_first_process(self.fabric, write)
        what = dict.fromkeys(name for part in found for name in part["broken"])
        samples = [key for part in found if part["broken"] for key in part["samples"]]
        raise NonFiniteLossError(
            f"{', '.join(list(what)[:6])}{', ...' if len(what) > 6 else ''} not finite at epoch {epoch}, step "
            f"{self.progress.steps + 1}; samples: {', '.join(samples)}. Check these samples, lower --lr, or use --precision 32. "
            f"{dump} holds the batch and the state before it; --resume {dump} repeats the step."
        )

    # --- what a run leaves -------------------------------------------------------------------------------------------

    def _finish_epoch(self, epoch: int) -> None:
        """Validate, log and save, on the first process; the others wait."""
        report = on_first_process(self.fabric, lambda: self._validate(epoch))
        terms, progress = self._terms_of_epoch(), self.progress
        self.finished_epochs, self.progress = epoch, EpochProgress()
        is_best = False
        if report is not None:
            self.history.append(
                {"epoch": float(epoch)} | terms | {f"val_{k}": v for k, v in report.summary.items()}
            )
            is_best, self.best_score = (
                report.score > self.best_score,
                max(report.score, self.best_score),
            )
        on_first_process(self.fabric, lambda: self._write_epoch(epoch, report, terms, progress))
        self._save(is_best)

    def _validate(self, epoch: int) -> ValidationReport:
        # The epoch's training is saved already, so a stop during the validation loses nothing.
        with self.stop.at_once(), self.folder.writing():
            return self.task.validate(epoch, self.folder.path / f"epoch{epoch}")

    def _terms_of_epoch(self) -> dict[str, float]:
        """The figures of the epoch's training; none for epoch 0."""
        if not self.progress.steps:
            return {}
        terms = self.progress.means() | {
            f"map_{name}": float(value) for name, value in self.task.statistics().items()
        }
        seconds = self.progress.seconds
        return terms | {
            "lr": self.scheduler.get_last_lr()[0],
            "waiting_share": seconds["waiting for data"] / seconds["all"],
            "pairs_per_second": self.progress.steps * self.settings.batch_size / seconds["all"],
            "peak_memory_mb": peak_memory_mb(self.fabric.device),
        }

    def _write_epoch(
        self, epoch: int, report: ValidationReport, terms: dict[str, float], progress: EpochProgress
    ) -> None:
        line = "  ".join(f"{name} {value:.5g}" for name, value in terms.items())
        skipped = [f"skipped: {problem}" for _, problem in sorted(progress.skipped.items())]
        self.folder.write_epoch(
            epoch, report.text, "\n".join([line, *skipped]) if terms else "", self.history
        )
        tqdm.write(
            f"epoch {epoch}: "
            + (f"loss {terms['total']:.4f}, " if terms else "")
            + ", ".join(f"{name} {value:.4g}" for name, value in report.summary.items())
        )
        if self.profile and terms:
            tqdm.write(describe_seconds(progress.seconds, progress.steps))

    def _place(self) -> str:
        return (
            f"stopped in epoch {self.finished_epochs + 1} of {self.settings.epochs}, after {self.progress.steps} of "
            f"{len(self.batches)} steps"
        )

    def _timed(self, part: str) -> AbstractContextManager[None]:
        return _timed(self.progress.seconds, part, self.fabric.device if self.profile else None)

    def _content(self) -> dict[str, Any]:
        """Everything that a checkpoint holds."""
        return self.task.description | {
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "epoch": self.finished_epochs,
            "progress": asdict(self.progress),
            "history": self.history,
            "best_score": self.best_score,
            "config": self.task.config,
            "extra": {name: part.state_dict() for name, part in self.task.extra_state.items()},
        }

    def _save(self, is_best: bool = False) -> None:
        """Write the newest checkpoint, on the first process."""
        with self._timed("saving"):
            on_first_process(self.fabric, lambda: self.folder.save(self._content(), is_best))
        self._saved_at = time.monotonic()

    def resume(self, path: Path) -> None:
        """Continue the run that wrote a checkpoint.

        Raises:
            InputError: unreadable file, other architecture, other number of steps, or a run that is already complete.
        """
        try:
            self._load(path)
        except InputError:
            self.folder.close()
            raise

    def _load(self, path: Path) -> None:
        content = read_checkpoint(
            path, ("model", "optimizer", "scheduler", "epoch", "history", "best_score", "extra")
        )
        load_strictly(self.task.model, content["model"], path)
        if content["scheduler"]["total_steps"] != self.scheduler.total_steps:
            raise InputError(
                f"{path}: was written by a run of {content['scheduler']['total_steps']} steps, this one has "
                f"{self.scheduler.total_steps}; resume with the same --epoch, --batch_size and data, or start "
                "a new run from it with --pretrained."
            )
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        # Checkpoints of earlier versions were written between epochs and without a scaler.
        self.progress = EpochProgress(**content.get("progress", {}))
        if content.get("scaler"):
            self.fabric.strategy.precision.load_state_dict(content["scaler"])
        for name, part in self.task.extra_state.items():
            part.load_state_dict(content["extra"][name])
        self.finished_epochs, self.history = int(content["epoch"]), list(content["history"])
        # best.pth of another folder stays there: here the next epoch is the best so far.
        same_folder = path.resolve().parent == self.folder.path.resolve()
        self.best_score = float(content["best_score"]) if same_folder else -float("inf")
        if self.finished_epochs >= self.settings.epochs:
            raise InputError(
                f"{path}: the run is complete ({self.finished_epochs} epochs); raise --epoch only in a new run "
                "(--pretrained), or evaluate it."
            )


@contextmanager
def _timed(
    seconds: dict[str, float], part: str, synchronised: torch.device | None
) -> Iterator[None]:
    """Add the time of the block to ``seconds``; with a GPU given, wait for it first, so that the time is the block's own."""
    start = time.perf_counter()
    yield
    if synchronised is not None and synchronised.type == "cuda":
        torch.cuda.synchronize(synchronised)
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start
