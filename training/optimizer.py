"""Optimizer and learning-rate schedule of the training loop."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from training.loop_settings import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) over the parameters that train.

    Args:
        model: parameters with ``requires_grad`` are trained.
        settings: learning rate and weight decay.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)


def make_schedule(optimizer: Optimizer, settings: TrainSettings, total_steps: int) -> LRScheduler:
    """One-cycle schedule (Smith & Topin, 2018), stepped after every optimizer step.

    Args:
        optimizer: whose learning rate is scheduled.
        settings: largest learning rate and share of the warm-up.
        total_steps: of the run.
    """
    return OneCycleLR(optimizer, settings.lr, total_steps, pct_start=settings.warmup_share)
