"""The terms of a loss for each form of sample apart, for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dataset.view_sources import FORMS, GENERATED
from loss.common import Term

GENERATED_ONLY = (GENERATED,)


def form_figures(
    terms: Mapping[str, Term], of_samples: Sequence[str], forms: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
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
        to each.

    Raises:
        ValueError: a sample of another form.
    """
    unknown = sorted(set(of_samples) - set(forms))
    if unknown:
        raise ValueError(f"samples of form {', '.join(unknown)} in a run of {', '.join(forms)}")
    figures: dict[str, torch.Tensor] = {}
    n_valid: dict[str, int] = {}
    for form in forms if tuple(forms) != GENERATED_ONLY else ():
        for name, term in terms.items():
            chosen = torch.tensor([each == form for each in of_samples], device=term.valid.device)
            own = term.per_sample.detach()
            figures[f"{name}_{form}"] = torch.where(chosen, own, torch.zeros_like(own)).mean()
            n_valid[f"{name}_{form}"] = int((term.valid & chosen).sum())
    return figures, n_valid


def term_and_form(figure: str) -> tuple[str, str]:
    """The term and the form of a figure of :func:`form_figures`; other figures have the form "".

    Args:
        figure: its name.
    """
    term, _, form = figure.rpartition("_")
    return (term, form) if form in FORMS else (figure, "")
