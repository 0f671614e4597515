"""The guard against forgetting: the validation on generated pairs must not fall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.real_settings import LOWER, OFF, RealSettings


@dataclass
class SharingGuard:
    """The share of the real samples, which falls when the generated validation falls.

    Attributes:
        settings: of the run.
        share: of the real samples now.
        best: largest figure of the generated validation pairs so far; None before the first.
    """

    settings: RealSettings
    share: float
    best: float | None = None

    @classmethod
    def of(cls, settings: RealSettings) -> SharingGuard:
        """The guard of a new run.

        Args:
            settings: of the run.
        """
        return cls(settings, settings.share)

    def judge(self, figure: float) -> tuple[str, str]:
        """Compare a validation with the best so far, and lower the share if it fell.

        Args:
            figure: of the generated pairs; larger is better.

        Returns:
            A line for the log, and why the training must stop; "" for nothing.
        """
        settings, best = self.settings, self.best
        self.best = figure if best is None else max(best, figure)
        if settings.guard == OFF or best is None or figure >= best - settings.max_drop:
            return "", ""
        fell = f"the generated validation fell from {best:.3f} to {figure:.3f}"
        lower = 0.5 * self.share
        if settings.guard == LOWER and lower >= settings.min_share:
            self.share = lower
            return f"{fell}: the share of real samples is now {lower:.3g}", ""
        return "", f"{fell}: stopped by real.guard {settings.guard}; best.pth is kept"

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"share": self.share, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Args:
            state: of a checkpoint.
        """
        self.share, self.best = state["share"], state["best"]
