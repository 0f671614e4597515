"""The joint objective yields what its former loop over the samples yielded, without reading."""

from __future__ import annotations

import numpy as np
import pytest
from step_cases import CASES, RECORD, run_case


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_losses_gradients_and_observations(name):
    """To 1e-6 of each value; gradients to 1e-6 of their norm."""
    with np.load(RECORD) as record:
        wanted = {key: record[key] for key in record if key.startswith(f"{name}/")}
    found = {
        f"{name}/{step}/{figure}": value
        for step, figures in enumerate(run_case(name))
        for figure, value in figures.items()
    }
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].shape == value.shape, key
        scale = np.abs(value).max(initial=0.0)
        if "gradient" in key:
            scale = value[:, :1]
        assert (np.abs(found[key] - value) <= 1e-6 * scale + 1e-9).all(), key
