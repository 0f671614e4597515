"""The variants of the ablation study: what each one changes."""

from __future__ import annotations

from typing import Any

BASE_CONFIG = "configs/superretina_lite.yaml"
MODES = ("cffa", "cfoct")
# Settings of every variant on top of the base config: 2,070 steps on the 184 training samples of
# the built-in data. The settings that the study varies are written out, so that the reference stays
# what it was when a default changes.
BUDGET: dict[str, Any] = {
    "view": {"img_size": 128},
    "loss": {
        "weights": {"det": 1.0, "des": 1.0, "geo": 0.5, "pke": 0.5, "geo_plan": 0.0},
        "descriptor": "infonce",
        "temperature": 0.07,
        "margin": 0.8,
        "ignore_px": 6.0,
        "anchors": {"junctions": 0.25, "detections": 0.25},
        "partner_probability": 0.3,
        "pke": {"partner_probability": 0.5, "early_views": 0},
    },
    "train": {"epochs": 5, "batch_size": 4, "views_per_sample": 9, "workers": 0},
    # The study measures the last step itself.
    "validation": {"pairs": 2, "pictures": 0, "every": 100},
}
WEIGHTS: dict[str, float] = BUDGET["loss"]["weights"]
UNTRAINED, MIXED, STAGED = "untrained", "mixed data", "staged"


def _weights(**changed: float) -> dict[str, Any]:
    return {"loss": {"weights": WEIGHTS | changed}}


def _anchors(junctions: float, detections: float) -> dict[str, Any]:
    return {"anchors": {"junctions": junctions, "detections": detections}}


VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    UNTRAINED: {},
    "L_geo of the plan": _weights(geo=0.0, geo_plan=0.5),
    **{f"no L_{term}": _weights(**{term: 0.0}) for term, weight in WEIGHTS.items() if weight},
    "PKE: partner above 0.3": {"loss": {"pke": {"partner_probability": 0.3}}},
    "PKE: partner above 0.7 in 20 views": {
        "loss": {"pke": {"early_partner_probability": 0.7, "early_views": 20}}
    },
    "triplet": {"loss": {"descriptor": "triplet"}},
    "triplet as published": {
        "loss": {"descriptor": "triplet", "ignore_px": 0.0, **_anchors(0.5, 0.5)}
    },
    "anchors: vessels only": {"loss": _anchors(0.0, 0.0)},
    "raw stem": {"model": {"stem": "raw"}},
    "dual encoder": {"model": {"encoders": "dual"}},
    # 2,002 steps on the 616 samples of data/release (docs/model_card.md).
    MIXED: {"train": {"epochs": 13, "views_per_sample": 1}},
    STAGED: {},
}
# Settings of the successive runs of "staged": 2 + 1 + 2 epochs.
STAGES = (
    _weights(geo=0.0, pke=0.0) | {"train": {"epochs": 2}},
    _weights(pke=0.0) | {"train": {"epochs": 1}},
    {"train": {"epochs": 2}},
)
