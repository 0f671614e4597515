"""The contract of a registration method: its options, its outcome, and what the record states.

A method is one file ``evaluation/methods/<name>.py`` with one function,
``make(options: MethodOptions) -> Method`` (see :mod:`evaluation.method_registry`). Most methods are
built by one of the functions in :mod:`evaluation.method_builders`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from evaluation.sets import EvaluationPair
from geometry.transforms import Transform
from registration.matcher import MatchSettings
from registration.transform_choice import matrix_kind_of

BARE_SUFFIX = "-bare"  # of the name of a method in the bare view, in all tables and files


class NotAvailable(Exception):
    """A method cannot run here; the message names what is missing and how to install it."""


@dataclass(frozen=True)
class MethodOptions:
    """Options that all methods of a comparison share.

    Attributes:
        weights: checkpoint file by name of the method, for trained methods; None is the default.
        transform: one of ``registration.transform_choice.TRANSFORMS``.
        long_side: working size, pixels: both images are scaled so that the circle with the area of
            their field of view has this diameter. None takes the size stored in each checkpoint.
        default_long_side: working size of methods without a checkpoint if ``long_side`` is None,
            pixels.
        device: "auto", "cpu" or "cuda".
        bare: run the project's own methods in the bare view
            (:meth:`registration.matcher.MatchSettings.bare`). Other methods are not affected.
        untrained_seed: of the random weights of the method ``untrained``.
    """

    weights: dict[str, str | None] = field(default_factory=dict)
    transform: str = "affine"
    long_side: int | None = None
    default_long_side: int = MatchSettings().long_side
    device: str = "auto"
    bare: bool = False
    untrained_seed: int = 0

    @property
    def matrix_kind(self) -> str:
        """Transform of methods that estimate matrices only: affine in place of a curved one."""
        return matrix_kind_of(self.transform)

    @property
    def working_px(self) -> int:
        """Working size of methods without a checkpoint, pixels."""
        return self.long_side or self.default_long_side


def _no_points() -> np.ndarray:
    return np.zeros((0, 2))


@dataclass(frozen=True)
class Outcome:
    """Result of a method on a pair, in original pixels (x, y) of both images.

    Attributes:
        H_fix_to_mov: (3, 3) float64, fixed to moving pixels; None exactly when failed. With a
            ``curved`` transform it is the affine part of that transform.
        reason: why it failed; "" when it did not.
        fixed_points, moving_points: (N, 2) float64, all matches, row i corresponds; empty for
            methods without matches.
        inliers: (N,) bool, the matches that agree with the matrix.
        seconds: run time; 0 if not measured.
        curved: transform beyond a matrix, if the method estimated one.
    """

    H_fix_to_mov: np.ndarray | None
    reason: str = ""
    fixed_points: np.ndarray = field(default_factory=_no_points, repr=False)
    moving_points: np.ndarray = field(default_factory=_no_points, repr=False)
    inliers: np.ndarray = field(default_factory=lambda: np.zeros(0, bool), repr=False)
    seconds: float = 0.0
    curved: Transform | None = None

    @property
    def status(self) -> str:
        """Either "ok" or "failed"."""
        return "failed" if self.H_fix_to_mov is None else "ok"

    @property
    def fix_to_mov(self) -> np.ndarray | Transform | None:
        """The transform from fixed to moving pixels: the curved one if there is one."""
        return self.curved or self.H_fix_to_mov


@dataclass(frozen=True)
class Method:
    """A method ready to run.

    Attributes:
        run: registers a pair.
        settings: everything that changes its results; printed, written to metrics.json and
            compared with the settings of kept results. JSON values only.
        is_reference: it returns a transform for any input, so it is not run on pairs of different
            eyes.
        is_bare: it runs in the bare view; its name in tables ends with ``BARE_SUFFIX``.
    """

    run: Callable[[EvaluationPair], Outcome]
    settings: dict[str, Any]
    is_reference: bool = False
    is_bare: bool = False


def require(package: str, name: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: module to import.
        name: of the method, for the message.

    Raises:
        NotAvailable: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise NotAvailable(
            f"{name}: not installed; python -m pip install -r requirements-bench.txt ({error})"
        ) from error
