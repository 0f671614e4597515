"""The training engine: one loop for every training script, on Lightning Fabric.

Fabric provides the device, mixed precision and torch DDP; loop, logs and checkpoints are here. A
script describes what is trained in a :class:`training.task.TrainingTask` and calls
:meth:`Engine.fit`.

Every random draw in the data follows from (seed, epoch, index), and every draw in a step from
(seed, epoch, step). The state of a run is therefore its weights, optimizer, schedule, loss scaler,
value maps and position. It is saved in the middle of an epoch too, and on a CPU a resumed run is
bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from model.named_parts import freeze_named
from training.batches import (
    TolerantViews,
    ViewBatches,
    batches_of_epoch,
    count_workers,
    make_loader,
    seed_step,
    split_batch,
)
from training.epoch_log import status_line, training_text
from training.faults import (
    collect_data_faults,
    fetch,
    non_finite_gradients,
    stop_at_non_finite,
)
from training.interrupt import StopRequest
from training.loop_settings import TrainSettings
from training.optimizer import make_optimizer, make_schedule
from training.processes import (
    gather_in_batch_order,
    on_every_process,
    on_first_process,
    sum_over_processes,
)
from training.profiling import describe_seconds, operator_profiler, peak_memory_mb
from training.progress import EpochProgress, StepFigures, progress_bar, timed
from training.run_folder import RunFolder
from training.run_state import RunState
from training.step_output import HostOutput, StepOutput, read_outputs
from training.task import TrainingTask, ValidationReport
from utils.checkpoint import save_checkpoint
from utils.errors import InputError, RunStoppedError

# The fp16 loss scaler halves its scale after each overflow. A scale this small means that the
# gradients are non-finite for another reason.
SMALLEST_SCALE = 1.0


class Engine:
    """Runs a task; writes logs, curves, events, checkpoints and pictures to ``run_dir``.

    Args:
        fabric: from :func:`training.processes.make_fabric`.
        task: what is trained.
        settings: of the loop.
        run_dir: folder of the run; locked until :meth:`fit` ends.
        seed: of the order of the views and of the random draws in a step.
        overfit: train on the views of the first batch of epoch 1 only.
        profile: print the time of each part of a step.

    Raises:
        InputError: a batch that the processes cannot share, or a folder that another process uses
            or that cannot be written to.
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
        self.overfit, self.profile, self._profile_epoch = overfit, profile, profile
        ranks = (fabric.global_rank, fabric.world_size)
        self.batches = ViewBatches(len(task.dataset), settings, seed, *ranks, task.mixture)
        self.views = TolerantViews(task.dataset, settings.max_bad_share)
        changing = task.teaching is not None
        workers = count_workers(settings.workers, fabric)
        self.loader = make_loader(self.views, self.batches, workers, fabric, changing)
        self.frozen = freeze_named(task.model, settings.freeze, "--freeze (train.freeze)")
        optimizer = make_optimizer(task.model, settings)
        model = task.model.to(memory_format=torch.channels_last)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.scheduler = make_schedule(optimizer, settings, len(self.batches))
        total_steps = settings.epochs * len(self.batches) + 1
        self.state = RunState(fabric, task, self.optimizer, self.scheduler, total_steps)
        self.stop = StopRequest()
        self._saved_at = time.monotonic()
        self.folder = RunFolder(Path(run_dir))
        on_first_process(fabric, self.folder.open)

    @property
    def progress(self) -> EpochProgress:
        """Of the epoch under way."""
        return self.state.progress

    def resume(self, path: Path) -> None:
        """Continue the run that wrote a checkpoint.

        Args:
            path: of the checkpoint.

        Raises:
            InputError: as :meth:`training.run_state.RunState.load`.
        """
        try:
            self.state.load(path, self.folder.path, self.settings)
        except InputError:
            self.folder.close()
            raise

    # --- the loop ---------------------------------------------------------------------------------

    def fit(self) -> None:
        """Validate the untrained network, then train and validate until the run ends.

        Raises:
            RunStoppedError: the user or the system asked to stop; the state is saved.
            NonFiniteLossError: a loss or a gradient is not finite; the step is saved.
            InputError: too many unreadable samples, or a folder that cannot be written to any more.
        """
        patience = self.settings.patience
        try:
            with self.stop.listening():
                if self.state.finished_epochs < 0:
                    self._save()
                for epoch in range(self.state.finished_epochs + 1, self.settings.epochs + 1):
                    if epoch > 0:
                        self._train_one_epoch(epoch)
                    why_stop = self._finish_epoch(epoch)
                    if why_stop:
                        self.fabric.print(why_stop)
                        break
                    if self._is_validated(epoch) and self.state.is_out_of_patience(patience):
                        self.fabric.print(f"no better validation for {patience} epochs")
                        break
        except KeyboardInterrupt:
            raise RunStoppedError(
                f"{self._place()}. Continue from the last checkpoint with: {self.task.resume_hint}"
            ) from None
        finally:
            self.folder.close()

    def _train_one_epoch(self, epoch: int) -> None:
        """The remaining steps of an epoch."""
        if self.task.teaching is not None:
            with self._timed("registration of teaching pairs"), self.stop.at_once():
                self.batches.mixture = self.task.teaching.begin_epoch(epoch)
        self.model.train()
        for module in self.frozen:
            module.eval()
        first = (1, 0) if self.overfit else (epoch, self.progress.steps)
        self.batches.epoch, self.batches.first_step = first
        batches = batches_of_epoch(self.loader, self.overfit)
        n_steps = len(self.batches)
        bar = progress_bar(epoch, n_steps, self.progress.steps, self.fabric.is_global_zero)
        # Operators are profiled in the first epoch only.
        profiling = operator_profiler() if self._profile_epoch else nullcontext()
        with bar, profiling as profiler:
            while self.progress.steps < n_steps:
                with self._timed("all"):
                    total = self._train_one_step(batches, epoch)
                if profiler is not None:
                    profiler.step()
                bar.set_postfix(loss=f"{total:.3f}", refresh=False)
                bar.update()
        self._profile_epoch = False
        with self._timed("all"):
            self._save()

    def _train_one_step(self, batches: Iterator[dict[str, Any]], epoch: int) -> float:
        """One optimizer step on the next batch. Returns the total loss."""
        batch, n_skipped = self._next_batch(batches)
        parts = split_batch(batch, self.settings.accumulate)
        seed_step(self.seed, epoch, self.progress.steps, self.fabric.global_rank)
        self.optimizer.zero_grad(set_to_none=True)
        done: list[tuple[dict[str, Any], StepOutput]] = []
        for number, part in enumerate(parts, start=1):
            # The gradients of several processes are averaged once, after the last part.
            with self.fabric.no_backward_sync(self.model, enabled=number < len(parts)):
                with self._timed("forward and loss"):
                    output = self.task.step(self.model, part)
                with self._timed("backward"):
                    self.fabric.backward(output.losses["total"] / len(parts))
            done.append((part, output.without_graph()))
        with self._timed("optimizer"):
            figures, observations = self._update_weights(batch, done, epoch)
        with self._timed("value map"):
            self.task.learn(gather_in_batch_order(self.fabric, observations))
        figures.values = {"skipped_views": n_skipped} | figures.values
        self.progress.add(figures)
        return figures.values["total"]

    def _update_weights(
        self, batch: dict[str, Any], parts: list[tuple[dict[str, Any], StepOutput]], epoch: int
    ) -> tuple[StepFigures, list[Any]]:
        """Step the optimizer and the schedule, unless a loss or a gradient is not finite.

        Everything that the step yields is read here, once, after all its work is queued. Returns
        figures for the log, and the observations of this process.
        """
        max_norm = self.settings.max_gradient_norm
        gradient_norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=max_norm, error_if_nonfinite=False
        )
        norms = () if gradient_norm is None else (gradient_norm,)
        outputs, values = read_outputs([output for _, output in parts], *norms)
        figures = StepFigures()
        for (part, _), output in zip(parts, outputs, strict=True):
            self._add_figures(figures, output, part, epoch, len(parts))
        norm = values[0] if values else float("nan")
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if np.isfinite(norm):
            figures.add("gradient_norm", norm)
        # Gradients that overflow in fp16 are expected: the scaler skips the step and lowers
        # its scale.
        elif scaler is None or scaler.get_scale() <= SMALLEST_SCALE:
            self._stop_at_non_finite(non_finite_gradients(self.task.model), batch, epoch)
        if scaler is not None:
            figures.add("overflows", float(not np.isfinite(norm)))
        self.optimizer.step()
        self.scheduler.step()
        return figures, [each for output in outputs for each in output.observations]

    def _add_figures(
        self,
        figures: StepFigures,
        output: HostOutput,
        part: dict[str, Any],
        epoch: int,
        n_parts: int,
    ) -> None:
        """Add terms, counts and shares of one part, over all processes, to those of the step."""
        names, own = list(output.losses), list(output.losses.values())
        n_items, world = len(part["key"]), self.fabric.world_size
        n_valid = [output.n_valid.get(name, float(n_items)) for name in names]
        summed = sum_over_processes(self.fabric, [*own, *n_valid, *output.counts.values()])
        if not np.isfinite(summed[: len(names)]).all():
            values = zip(names, own, strict=True)
            broken = [f"loss term {name}" for name, value in values if not np.isfinite(value)]
            self._stop_at_non_finite(broken, part, epoch)
        for index, name in enumerate(names):
            share = summed[len(names) + index] / (n_items * world * n_parts)
            figures.add(name, summed[index] / world / n_parts, share)
        for name, value in zip(output.counts, summed[2 * len(names) :], strict=True):
            figures.add(name, value)

    # --- the data ---------------------------------------------------------------------------------

    def _next_batch(self, batches: Iterator[dict[str, Any]]) -> tuple[dict[str, Any], float]:
        """The next batch, and the number of its views that replace unreadable ones.

        Saves a checkpoint if one is due, and stops if any process has a fault or a stop request.

        Raises:
            InputError: a killed worker, or too many unreadable samples.
            RunStoppedError: the user or the system asked to stop.
        """
        with self._timed("waiting for data"):
            batch, own = fetch(batches)
        elapsed = time.monotonic() - self._saved_at
        due = self.fabric.is_global_zero and elapsed >= self.settings.save_seconds
        flags = [bool(own.fault), len(own.skipped), self.stop.requested, due]
        n_faults, n_skipped, stop, save = sum_over_processes(self.fabric, list(map(float, flags)))
        fault = ""
        if n_faults or n_skipped:
            fault = collect_data_faults(self.fabric, own, self.progress.skipped, self.views)
        if fault or stop or save:
            self._save()
        if fault:
            raise InputError(
                f"{self._place()}: {fault}. The run is saved; after the repair continue with: "
                f"{self.task.resume_hint}"
            )
        if stop:
            raise RunStoppedError(f"{self._place()}; saved. Continue with: {self.task.resume_hint}")
        return batch, n_skipped

    def _stop_at_non_finite(self, broken: list[str], batch: dict[str, Any], epoch: int) -> None:
        """Save the step, and stop all processes.

        Raises:
            NonFiniteLossError
        """

        def save(failure: list[dict[str, Any]]) -> Path:
            dump = self.folder.path / "nonfinite.pth"
            with self.folder.writing():
                save_checkpoint(dump, self.state.content() | {"failure": failure})
            return dump

        place = f"epoch {epoch}, step {self.progress.steps + 1}"
        stop_at_non_finite(self.fabric, broken, batch, place, save)

    # --- the end of an epoch ----------------------------------------------------------------------

    def _finish_epoch(self, epoch: int) -> str:
        """Validate, log and save. Returns why the run should stop; "" otherwise."""
        state = self.state
        report = self._validate(epoch) if self._is_validated(epoch) else None
        terms, progress = self._terms_of_epoch(), self.progress
        state.finished_epochs, state.progress = epoch, EpochProgress()
        record, is_best = {"epoch": float(epoch)} | terms, False
        if report is not None:
            record |= {f"val_{name}": value for name, value in report.summary.items()}
            is_best = report.score > state.best_score
            state.best_score = max(report.score, state.best_score)
        state.history.append(record)
        teaching, why_stop = self.task.teaching, ""
        if teaching is not None and epoch > 0:
            why_stop = teaching.end_epoch(epoch, report)
        on_first_process(self.fabric, lambda: self._write_epoch(epoch, report, terms, progress))
        self._save(is_best)
        return why_stop

    def _is_validated(self, epoch: int) -> bool:
        return epoch % self.task.validate_every == 0 or epoch == self.settings.epochs

    def _validate(self, epoch: int) -> ValidationReport:
        """Every process scores its share; all get the same report."""
        folder = self.folder.path / f"epoch{epoch}"
        ranks = (self.fabric.global_rank, self.fabric.world_size)

        def score() -> list[Any]:
            # The training of the epoch is saved already, so a stop here loses nothing.
            with self.stop.at_once(), self.folder.writing():
                return self.task.validation.score(epoch, folder, *ranks)

        with self._timed("validation"):
            of_processes = on_every_process(self.fabric, score)
        return self.task.validation.report([each for part in of_processes for each in part])

    def _terms_of_epoch(self) -> dict[str, float]:
        """The figures of the training of the epoch; none for epoch 0."""
        if not self.progress.steps:
            return {}
        terms = self.progress.means()
        terms |= {name: float(value) for name, value in self.task.statistics().items()}
        return (
            terms
            | {"lr": float(self.scheduler.get_last_lr()[0])}
            | self.progress.rates(self.settings.batch_size)
            | {"peak_memory_mb": peak_memory_mb(self.fabric.device)}
        )

    def _write_epoch(
        self,
        epoch: int,
        report: ValidationReport | None,
        terms: dict[str, float],
        progress: EpochProgress,
    ) -> None:
        text = training_text(terms, progress.skipped)
        self.folder.write_epoch(epoch, report.text if report else "", text, self.state.history)
        tqdm.write(status_line(epoch, terms, report.summary if report else {}))
        if self.profile and terms:
            tqdm.write(describe_seconds(progress.seconds, progress.steps))

    def _place(self) -> str:
        return (
            f"stopped in epoch {self.state.finished_epochs + 1} of {self.settings.epochs}, after "
            f"{self.progress.steps} of {len(self.batches)} steps"
        )

    def _timed(self, part: str) -> AbstractContextManager[None]:
        device = self.fabric.device if self.profile else None
        return timed(self.progress.seconds, part, device)

    def _save(self, is_best: bool = False) -> None:
        """Write the newest checkpoint, on rank 0."""
        if is_best:
            self.state.best_epoch = self.state.finished_epochs
        with self._timed("saving"):
            on_first_process(self.fabric, lambda: self.folder.save(self.state.content(), is_best))
        self._saved_at = time.monotonic()
