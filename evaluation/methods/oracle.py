"""Reference: the least-squares affine through the landmarks.

Its error is the lower bound of an affine transform: placement error of the landmarks and
deformation that no affine transform describes.
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
