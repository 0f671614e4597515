"""How real images teach: their share, their forms, and the guard against forgetting."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataset.photometric import PhotometricRanges
from dataset.teaching_samples import SELF_RANGES
from dataset.view_sources import LANDMARKS, REAL_FORMS, REGISTERED, SELF
from geometry.landmark_fits import FITS
from registration.consistency import ConsistencySettings
from training.teaching_set import TeachingSettings
from utils.errors import InputError

LOWER, STOP, OFF = "lower", "stop", "off"
GUARDS = (LOWER, STOP, OFF)


def default_form_weights() -> dict[str, float]:
    """Pairs teach what single images cannot, so each form of pairs has twice their weight."""
    return {LANDMARKS: 2.0, REGISTERED: 2.0, SELF: 1.0}


@dataclass(frozen=True)
class RealSettings:
    """Training on real images; without effect without ``--real``.

    Attributes:
        share: of the real samples in every batch, (0, 1]; 1 leaves generated pairs to the
            validation.
        forms: in which real images teach, some of ``dataset.teaching_samples.REAL_FORMS``. Pairs
            with landmarks are registered like the others if "landmarks" is not among them.
        form_weight: share of each form among the real samples, divided by the sum over the forms
            that there are.
        weak_junctions: whether junctions of the ridges that both images show are labels of the
            detector; otherwise real samples have no detector term.
        min_tolerance_px: least tolerance of a transform through landmarks, fixed px at 512.
            Landmarks computed from a fitted map leave no residual, whatever the error of the map.
        self_ranges: appearance of the views of form "self", each of the two by itself; strong,
            because they would be equal otherwise, and often inverted, as between modalities.
        consistency: which registrations become teaching pairs.
        teaching: when they are tried again, and when one leaves.
        guard: when the figure of the generated validation pairs falls: "lower" halves the share,
            "stop" ends the training, "off" does nothing.
        max_drop: fall of that figure below its best value so far that the guard accepts, [0, 1].
        min_share: the guard stops the training instead of lowering the share below this.

    Raises:
        InputError: a value outside of its range.
    """

    share: float = 0.5
    forms: tuple[str, ...] = REAL_FORMS
    form_weight: dict[str, float] = field(default_factory=default_form_weights)
    weak_junctions: bool = False
    min_tolerance_px: float = FITS.min_tolerance_px
    self_ranges: PhotometricRanges = SELF_RANGES
    consistency: ConsistencySettings = field(default_factory=ConsistencySettings)
    teaching: TeachingSettings = field(default_factory=TeachingSettings)
    guard: str = LOWER
    max_drop: float = 0.05
    min_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"--real_share {self.share:g} (real.share): must be in (0, 1].")
        unknown = sorted({*self.forms, *self.form_weight} - set(REAL_FORMS))
        if unknown or not self.forms:
            raise InputError(
                f"--real_forms (real.forms, real.form_weight) {', '.join(unknown)}: choose from "
                f"{', '.join(REAL_FORMS)}."
            )
        without = [form for form in self.forms if not self.form_weight.get(form, 0) > 0]
        if without:
            raise InputError(f"real.form_weight: give {without[0]} a weight above 0.")
        if self.guard not in GUARDS:
            raise InputError(f"real.guard: '{self.guard}' must be one of {', '.join(GUARDS)}.")
        if not 0 < self.min_tolerance_px < float("inf"):
            raise InputError("real.min_tolerance_px must be above 0 and finite.")
        if not (0 <= self.max_drop <= 1 and 0 < self.min_share <= 1):
            raise InputError("real.max_drop and real.min_share must lie between 0 and 1.")
