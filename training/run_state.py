"""The state of a run in a checkpoint; a restored run continues as an uninterrupted one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.loop_settings import TrainSettings
from training.progress import EpochProgress
from training.task import TrainingTask
from utils.checkpoint import load_strictly, read_checkpoint
from utils.errors import InputError

REQUIRED_PARTS = ("model", "optimizer", "scheduler", "epoch", "history", "best_score", "extra")


@dataclass
class RunState:
    """What a checkpoint saves and a resumed run restores, besides the settings.

    Attributes:
        fabric: holds the loss scaler of fp16.
        task: holds the network and further parts with state.
        optimizer, scheduler: of the loop.
        total_steps: optimizer steps of the whole run, plus one.
        finished_epochs: -1 before the validation of the untrained network, which is epoch 0.
        progress: of the epoch under way.
        history: one record per finished epoch.
        best_score: largest validation score so far.
        best_epoch: its epoch; -1 before the first validation.
    """

    fabric: Fabric
    task: TrainingTask
    optimizer: Optimizer
    scheduler: LRScheduler
    total_steps: int
    finished_epochs: int = -1
    progress: EpochProgress = field(default_factory=EpochProgress)
    history: list[dict[str, float]] = field(default_factory=list)
    best_score: float = -float("inf")
    best_epoch: int = -1

    def content(self) -> dict[str, Any]:
        """The content of a checkpoint, see ``utils.checkpoint``."""
        return self.task.description | {
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "epoch": self.finished_epochs,
            "progress": asdict(self.progress),
            "history": self.history,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "total_steps": self.total_steps,
            "config": self.task.config,
            "extra": {name: part.state_dict() for name, part in self.task.extra_state.items()},
        }

    def load(self, path: Path, run_dir: Path, settings: TrainSettings) -> None:
        """Restore the state from a checkpoint.

        Args:
            path: of the checkpoint.
            run_dir: folder of this run.
            settings: of the loop of this run.

        Raises:
            InputError: unreadable file, other architecture, other number of steps, or a complete
                run.
        """
        content = read_checkpoint(path, REQUIRED_PARTS)
        load_strictly(self.task.model, content["model"], path)
        # Checkpoints of earlier versions have the number in their one-cycle schedule only.
        saved_steps = content.get("total_steps", content["scheduler"].get("total_steps"))
        if saved_steps != self.total_steps and not settings.has_open_end:
            raise InputError(
                f"{path}: was written by a run of {saved_steps} steps, this one has "
                f"{self.total_steps}; resume with the same --epoch, --batch_size and data, or "
                "start a new run from it with --pretrained."
            )
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        # Checkpoints of the first versions have no "progress" and no "scaler".
        self.progress = EpochProgress(**content.get("progress", {}))
        if content.get("scaler"):
            self.fabric.strategy.precision.load_state_dict(content["scaler"])
        for name, part in self.task.extra_state.items():
            part.load_state_dict(content["extra"][name])
        self.finished_epochs = int(content["epoch"])
        self.history = list(content["history"])
        # best.pth is not copied from another folder, so the next epoch must write one here.
        same_folder = path.resolve().parent == run_dir.resolve()
        keep = same_folder and scores_the_bare_view(content)
        self.best_score = float(content["best_score"]) if keep else -float("inf")
        self.best_epoch = int(content.get("best_epoch", self.finished_epochs))
        why = why_complete(content, settings)
        if why:
            raise InputError(f"{path}: the run is complete: {why}, or evaluate it.")

    def is_out_of_patience(self, patience: int) -> bool:
        """Whether the last epochs brought no better validation score.

        Args:
            patience: number of these epochs; 0 never.
        """
        return 0 < patience <= self.finished_epochs - self.best_epoch


def scores_the_bare_view(content: dict[str, Any]) -> bool:
    """Whether the best score of a checkpoint can be compared with those of this version.

    Earlier versions scored the whole pipeline, which is higher, and had no ``validation.select``.

    Args:
        content: of the checkpoint.
    """
    settings = content.get("config", {}).get("settings", {})
    return "select" in settings.get("validation", {})


def why_complete(content: dict[str, Any], settings: TrainSettings) -> str:
    """Why a run has no epoch left, with the remedy; "" if it has.

    Args:
        content: of its checkpoint.
        settings: of its loop.
    """
    epoch = int(content["epoch"])
    # Earlier versions had no patience and did not count.
    waited = epoch - int(content.get("best_epoch", epoch))
    if epoch >= settings.epochs:
        more = "with a larger --epoch" if settings.has_open_end else "in a new run (--pretrained)"
        return f"{epoch} epochs; train longer {more}"
    if 0 < settings.patience <= waited:
        return (
            f"no better validation for {waited} epochs after epoch {epoch - waited}; raise "
            "train.patience (0 = off) with --set to train on"
        )
    return ""
