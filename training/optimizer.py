"""Optimizer and learning-rate schedule of the training loop."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from model.named_parts import parameters_named
from training.loop_settings import TrainSettings

# Share of the learning rate with which a linear warm-up starts; that of torch's one-cycle schedule.
WARM_UP_START = 1 / 25


def make_optimizer(model: nn.Module, settings: TrainSettings) -> AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) over the parameters that train.

    Args:
        model: parameters with ``requires_grad`` are trained.
        settings: learning rate, its factors by name, and weight decay.

    Raises:
        InputError: a name in ``lr_scale`` that no parameter has.
    """
    factors = lr_factors(model, settings.lr_scale)
    trained = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    # The log shows the rate of the first group: the one without a factor, where there is one.
    groups = [
        {
            "params": [each for name, each in trained if factors[name] == factor],
            "lr": settings.lr * factor,
        }
        for factor in sorted({factors[name] for name, _ in trained}, key=lambda f: (f != 1.0, f))
    ]
    return AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def lr_factors(model: nn.Module, lr_scale: dict[str, float]) -> dict[str, float]:
    """The factor of the learning rate of every parameter, by its name; 1 where none is given.

    Args:
        model: the network.
        lr_scale: factors by the name of a part, see :func:`model.named_parts.parameters_named`; of
            several names for one parameter the longest counts.

    Raises:
        InputError: a name that no parameter has.
    """
    factors = {name: 1.0 for name, _ in model.named_parameters()}
    for part in sorted(lr_scale, key=lambda part: (len(part), part)):
        found = parameters_named(model, part, "train.lr_scale")
        factors |= dict.fromkeys(found, lr_scale[part])
    return factors


def make_schedule(
    optimizer: Optimizer, settings: TrainSettings, steps_per_epoch: int
) -> LRScheduler:
    """The schedule of the learning rate, stepped after every optimizer step.

    Args:
        optimizer: whose learning rates are scheduled; they are the largest ones.
        settings: kind of the schedule, number of epochs and share of the warm-up.
        steps_per_epoch: optimizer steps of an epoch.
    """
    n_steps = settings.epochs * steps_per_epoch
    if settings.schedule == "onecycle":
        # Smith & Topin, 2018. The last call of ``step`` comes after the last step, hence one more.
        rates = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, rates, n_steps + 1, pct_start=settings.warmup_share)
    if settings.schedule == "constant":
        # The length of the run is open, so it cannot decide the length of the warm-up.
        warm_up = round(settings.warmup_share * steps_per_epoch)
        start = WARM_UP_START if warm_up else 1.0
        return LinearLR(optimizer, start, total_iters=max(1, warm_up))
    warm_up = min(round(settings.warmup_share * n_steps), n_steps - 1)
    if not warm_up:
        return CosineAnnealingLR(optimizer, n_steps)
    # Made first, because it must see the full rates: a LinearLR lowers them when it is made.
    fall = CosineAnnealingLR(optimizer, n_steps - warm_up)
    rise = LinearLR(optimizer, WARM_UP_START, total_iters=warm_up)
    return SequentialLR(optimizer, [rise, fall], milestones=[warm_up])
