"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from utils.errors import InputError


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the loop.

    Attributes:
        epochs: number of epochs.
        batch_size: pairs per step over all processes.
        accumulate: number of parts in which a batch is computed, one after the other, to save
            memory; the result is the same.
        views_per_sample: views of each sample per epoch, all different.
        lr: largest learning rate of the one-cycle schedule (Smith & Topin, 2018).
        warmup_share: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        max_gradient_norm: gradients with a larger L2 norm are scaled down to it.
        workers: data loading processes.
        max_bad_share: share of the samples (rounded up) that may be unreadable in an epoch before
            the run stops.
        save_seconds: shortest time between two checkpoints within an epoch, seconds; 0 saves after
            every step.
    """

    epochs: int = 5
    batch_size: int = 4
    accumulate: int = 1
    views_per_sample: int = 2
    lr: float = 2e-3
    warmup_share: float = 0.15
    weight_decay: float = 1e-4
    max_gradient_norm: float = 1.0
    workers: int = 2
    max_bad_share: float = 0.02
    save_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.accumulate < 1 or not self.save_seconds >= 0 or not 0 <= self.max_bad_share < 1:
            raise InputError(
                "train.accumulate must be at least 1, train.save_seconds at least 0, and "
                "train.max_bad_share in [0, 1)."
            )


# Settings that do not change the result of a run: a resumed run may change them.
FREE_SETTINGS = ("workers", "save_seconds")
