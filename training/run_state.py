"""The state of a run in a checkpoint; a restored run continues as an uninterrupted one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

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
        finished_epochs: -1 before the validation of the untrained network, which is epoch 0.
        progress: of the epoch under way.
        history: one record per finished epoch.
        best_score: largest validation score so far.
    """

    fabric: Fabric
    task: TrainingTask
    optimizer: Optimizer
    scheduler: LRScheduler
    finished_epochs: int = -1
    progress: EpochProgress = field(default_factory=EpochProgress)
    history: list[dict[str, float]] = field(default_factory=list)
    best_score: float = -float("inf")

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
            "config": self.task.config,
            "extra": {name: part.state_dict() for name, part in self.task.extra_state.items()},
        }

    def load(self, path: Path, run_dir: Path, total_steps: int, epochs: int) -> None:
        """Restore the state from a checkpoint.

        Args:
            path: of the checkpoint.
            run_dir: folder of this run.
            total_steps: of the learning-rate schedule of this run.
            epochs: number of epochs of this run.

        Raises:
            InputError: unreadable file, other architecture, other number of steps, or a complete
                run.
        """
        content = read_checkpoint(path, REQUIRED_PARTS)
        load_strictly(self.task.model, content["model"], path)
        saved_steps = content["scheduler"]["total_steps"]
        if saved_steps != total_steps:
            raise InputError(
                f"{path}: was written by a run of {saved_steps} steps, this one has {total_steps}; "
                "resume with the same --epoch, --batch_size and data, or start a new run from it "
                "with --pretrained."
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
        self.best_score = float(content["best_score"]) if same_folder else -float("inf")
        if self.finished_epochs >= epochs:
            raise InputError(
                f"{path}: the run is complete ({self.finished_epochs} epochs); train longer in a "
                "new run (--pretrained), or evaluate it."
            )
