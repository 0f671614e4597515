"""The guard against forgetting: it lowers the share of real samples, then stops."""

from __future__ import annotations

import math

import pytest

from training.real_settings import RealSettings
from training.sharing_guard import SharingGuard
from utils.errors import InputError


def test_a_fall_lowers_the_share_until_it_stops():
    guard = SharingGuard.of(RealSettings(share=0.4, max_drop=0.05, min_share=0.15))
    assert guard.judge(0.60) == ("", "")  # the first figure is the reference
    assert guard.judge(0.56) == ("", "")  # within max_drop
    assert guard.judge(0.70) == ("", "")  # the reference rises with the best figure
    line, why_stop = guard.judge(0.64)
    assert "from 0.700 to 0.640" in line and why_stop == ""
    assert guard.share == pytest.approx(0.2)
    line, why_stop = guard.judge(0.64)  # 0.1 would be below the least share
    assert line == "" and "best.pth is kept" in why_stop
    assert guard.share == pytest.approx(0.2)


def test_stop_and_off():
    stop, off = (SharingGuard.of(RealSettings(guard=name)) for name in ("stop", "off"))
    assert stop.judge(0.9) == off.judge(0.9) == ("", "")
    assert stop.judge(0.1)[1] and stop.share == 0.5
    assert off.judge(0.1) == ("", "") and off.share == 0.5


def test_state_round_trip():
    guard = SharingGuard.of(RealSettings())
    guard.judge(0.9)
    guard.judge(0.2)
    other = SharingGuard.of(RealSettings())
    other.load_state_dict(guard.state_dict())
    assert (other.share, other.best) == (0.25, 0.9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0.0}, "--real_share 0"),
        ({"share": math.nan}, "--real_share nan"),
        ({"forms": ("masks",)}, "masks: choose from landmarks"),
        ({"forms": ()}, "choose from"),
        ({"form_weight": {"self": 1.0}}, "give landmarks a weight"),
        ({"guard": "hope"}, "real.guard: 'hope'"),
        ({"max_drop": 1.5}, "real.max_drop"),
        ({"min_tolerance_px": 0.0}, "real.min_tolerance_px"),
    ],
)
def test_settings_are_checked(settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        RealSettings(**settings)
