"""How well the matches of a training view agree with the transform of its sample."""

from __future__ import annotations

from typing import NamedTuple


class Agreement(NamedTuple):
    """Matches of one training view, counted.

    Attributes:
        key: of the sample.
        form: of the sample: "generated", "landmarks", "registered" or "self".
        n_matches: mutual nearest neighbours among the detections of both images.
        n_right: of them, those that agree with the sample's transform within its tolerance.
        expected_right: how many of them would agree by chance.
    """

    key: str
    form: str
    n_matches: int
    n_right: int
    expected_right: float
