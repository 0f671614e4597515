"""Reference: the least-squares affine through the landmarks.

What it leaves is the placement error of the landmarks and deformation that no affine transform
describes. It minimises the squared errors; another affine can have a smaller median.
"""

from __future__ import annotations

from evaluation.method import Method, MethodOptions, Outcome
from geometry.estimation import fit_affine


def make(options: MethodOptions) -> Method:
    """See :mod:`evaluation.method`."""
    return Method(
        run=lambda pair: Outcome(fit_affine(pair.fixed_landmarks, pair.moving_landmarks)),
        settings={"transform": "affine"},
        is_reference=True,
    )
