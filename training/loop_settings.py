"""Settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        schedule: of the learning rate, one of ``SCHEDULES``. "onecycle": rises, then falls to 0
            (Smith & Topin, 2018). "cosine": linear rise, then half a cosine to 0 (Loshchilov &
            Hutter, ICLR 2017). "constant": linear rise, then constant; a run can be continued
            with more epochs.
        lr: largest learning rate of the schedule.
        lr_scale: factor of the learning rate by the name of a part of the network, see
            :func:`model.named_parts.parameters_named`; the longest name counts.
        freeze: names of parts of the network that do not train.
        warmup_share: share of the steps in which the learning rate rises, of all steps of the run;
            of those of one epoch with the schedule "constant".
        weight_decay: of AdamW.
        max_gradient_norm: gradients with a larger L2 norm are scaled down to it.
        workers: data loading processes; None: as :func:`training.batches.count_workers` says, all
            cores but one.
        patience: the run stops after this many epochs without a better validation score; 0 never.
        max_bad_share: share of the samples (rounded up) that may be unreadable in an epoch before
            the run stops.
        save_seconds: shortest time between two checkpoints within an epoch, seconds; 0 saves after
            every step.
    """

    epochs: int = 5
    batch_size: int = 4
    accumulate: int = 1
    views_per_sample: int = 2
    schedule: str = "onecycle"
    lr: float = 2e-3
    lr_scale: dict[str, float] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    warmup_share: float = 0.15
    weight_decay: float = 1e-4
    max_gradient_norm: float = 1.0
    workers: int | None = None
    patience: int = 0
    max_bad_share: float = 0.02
    save_seconds: float = 120.0

    def __post_init__(self) -> None:
        if self.accumulate < 1 or not self.save_seconds >= 0 or not 0 <= self.max_bad_share < 1:
            raise InputError(
                "train.accumulate must be at least 1, train.save_seconds at least 0, and "
                "train.max_bad_share in [0, 1)."
            )
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"train.schedule: '{self.schedule}' is unknown; choose from {', '.join(SCHEDULES)}."
            )
        if not 0 <= self.warmup_share <= 1 or self.patience < 0:
            raise InputError(
                "train.warmup_share must lie between 0 and 1, train.patience be at least 0."
            )
        if not all(0 < factor < float("inf") for factor in self.lr_scale.values()):
            raise InputError(
                "train.lr_scale: factors must be above 0; train.freeze stops the training of a "
                "part."
            )

    @property
    def has_open_end(self) -> bool:
        """Whether no learning rate depends on the number of epochs."""
        return self.schedule == OPEN_ENDED

    def free_settings(self) -> tuple[str, ...]:
        """Names of the settings that a resumed run may change, because no step depends on them."""
        return FREE_SETTINGS + (("epochs",) if self.has_open_end else ())


SCHEDULES = ("onecycle", "cosine", "constant")
OPEN_ENDED = "constant"
# Settings that do not change what any step computes: a resumed run may change them.
FREE_SETTINGS = ("workers", "save_seconds", "patience")
