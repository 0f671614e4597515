"""The terms of a loss for each form of sample apart, for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dataset.view_sources import FORMS, GENERATED
from loss.common import Term
from utils.transfer import to_device

GENERATED_ONLY = (GENERATED,)


def form_figures(
    terms: Mapping[str, Term], of_samples: Sequence[str], forms: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Each term for each form of sample, as figures ``<term>_<form>``.

    The names follow from ``forms`` alone, so they are the same in every step and process. Like a
    term, a figure is a sum over samples divided by the size of the *whole* batch; divided by the
    share of its samples that contributed, which the log does, it is their mean.

    Args:
        terms: by name.
        of_samples: form of each sample of the batch, (B,).
        forms: that the run has; with generated samples alone there are no such figures.

    Returns:
        Scalars without graph, not part of the total; and the number of samples that contributed
        to each, scalars too.

    Raises:
        ValueError: a sample of another form.
    """
    unknown = sorted(set(of_samples) - set(forms))
    if unknown:
        raise ValueError(f"samples of form {', '.join(unknown)} in a run of {', '.join(forms)}")
    if tuple(forms) == GENERATED_ONLY:
        return {}, {}
    names = [f"{name}_{form}" for form in forms for name in terms]
    per_sample = torch.stack([term.per_sample.detach() for term in terms.values()])
    valid = torch.stack([term.valid for term in terms.values()])
    is_form = np.array([[each == form for each in of_samples] for form in forms])
    chosen = to_device(is_form, valid.device)[:, None]
    values = torch.where(chosen, per_sample, torch.zeros_like(per_sample)).mean(-1)
    numbers = (valid & chosen).sum(-1)
    return (
        dict(zip(names, values.flatten().unbind(), strict=True)),
        dict(zip(names, numbers.flatten().unbind(), strict=True)),
    )


def term_and_form(figure: str) -> tuple[str, str]:
    """The term and the form of a figure of :func:`form_figures`; other figures have the form "".

    Args:
        figure: its name.
    """
    term, _, form = figure.rpartition("_")
    return (term, form) if form in FORMS else (figure, "")
