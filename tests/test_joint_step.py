"""The joint objective without loops over the samples: equal to the former one, and as few calls."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from step_cases import CASES, RECORD, Case, filled_map, make_batch, objective_of, run_case
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.operator_calls import CallCounter
from geometry import point_sets
from geometry.point_sets import PointSet
from utils.transfer import read_together

GPU = "cuda"  # pretended: nothing is computed there


@pytest.mark.parametrize("as_on_a_gpu", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_recorded_losses_gradients_and_observations(name, as_on_a_gpu, monkeypatch):
    """To 1e-6 of each value; gradients to 1e-5 of their norm. A GPU computes padding too.

    Mapped places differ by a rounding error of 1e-5 px; the gradients of the maps move with them.
    """
    if as_on_a_gpu:
        monkeypatch.setattr(point_sets, "FREE_READ_DEVICES", ())
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
            scale = 10.0 * value[:, :1]
        assert (np.abs(found[key] - value) <= 1e-6 * scale + 1e-9).all(), key


def counted(case: Case) -> CallCounter:
    """Calls of the objective of a case as a GPU would run it."""
    objective, memory = objective_of(case), filled_map(case)
    fixed, moving, batch = make_batch(case, 10)
    with CallCounter() as counter:
        objective(fixed, moving, batch, memory)
    return counter


def repeated(case: Case, n_samples: int) -> Case:
    """The case with the form of its first samples, over and over."""
    n_forms = min(2, len(case.forms))
    return case._replace(
        **{
            name: (getattr(case, name)[:n_forms] * n_samples)[:n_samples]
            for name in ("forms", "tolerance_px", "labelled")
        }
    )


@pytest.mark.parametrize("name", ["generated", "real"])
def test_calls_do_not_grow_with_the_batch(name, monkeypatch):
    """The loop over the samples needed 4,884 calls at 4 exact samples, and 16,446 at 16."""
    monkeypatch.setattr(point_sets, "FREE_READ_DEVICES", ())
    two, eight = (counted(repeated(CASES[name], number)) for number in (2, 8))
    assert eight.calls <= 1.2 * two.calls and eight.calls < 3000
    assert two.waits == eight.waits == 0


@pytest.mark.parametrize("name", CASES)
def test_a_gpu_does_not_wait_for_the_objective(name):
    """On a pretended GPU: no value is read, nothing is copied back, and every copy is queued.

    A read of a value raises an error there, because there is none.
    """
    case = CASES[name]
    fixed, moving, batch = make_batch(case, 10)
    packed = filled_map(case).packed(batch["key"])
    memory, objective = SimpleNamespace(packed=lambda keys: packed), objective_of(case)

    def on_gpu(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty(value.shape, dtype=value.dtype, device=GPU)

    with (
        torch.backends.cudnn.flags(enabled=False),  # its operators cannot be pretended
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        maps = [
            SimpleNamespace(detector=on_gpu(each.detector), descriptors=on_gpu(each.descriptors))
            for each in (fixed, moving)
        ]
        on_device = {name: on_gpu(value) for name, value in batch.items()}
        with CallCounter() as counter:
            result = objective(*maps, on_device, memory)
        assert counter.calls > 1000 and counter.waits == 0
        tensors = [*result.losses.values(), *result.counts.values(), *result.n_valid.values()]
        assert all(each.device.type == GPU for each in tensors + result.observations.tensors())
        with CallCounter() as counter:
            torch.cat([each.reshape(-1).float() for each in tensors]).cpu()
        assert counter.waits == 1, "the counter sees a transfer"


def test_values_of_all_types_are_read_in_one_transfer():
    tensors = [torch.tensor(3), torch.tensor([[True, False]]), torch.rand(2, 0, 2), torch.rand(4)]
    read = read_together(tensors)
    assert [each.shape for each in read] == [(), (1, 2), (2, 0, 2), (4,)]
    assert read[0] == 3 and read[1].tolist() == [[1, 0]]
    assert np.array_equal(read[3], tensors[3].numpy())
    assert read_together([]) == []


# --- points of a batch ---


def example() -> PointSet:
    return PointSet.packed([torch.arange(6.0).reshape(3, 2), torch.zeros(0, 2), torch.ones(1, 2)])


def test_points_are_padded_and_unpacked_in_order():
    points = example()
    assert points.points.shape == (3, 3, 2) and points.numbers().tolist() == [3, 0, 1]
    assert [each.tolist() for each in points.unpacked()] == [
        [[0, 1], [2, 3], [4, 5]],
        [],
        [[1, 1]],
    ]
    assert PointSet.packed([torch.zeros(0, 2)]).valid.tolist() == [[False]]


def test_gaps_between_points_are_closed_and_the_rest_is_cut():
    points = example().only(torch.tensor([[True, False, True]] * 3))
    joined = points.joined(example())
    assert [each.tolist() for each in joined.first(3).unpacked()] == [
        [[0, 1], [4, 5], [0, 1]],
        [],
        [[1, 1], [1, 1]],
    ]
    closed = joined.compacted(4)
    assert closed.valid.tolist() == [[True] * 4, [False] * 4, [True, True, False, False]]
    assert closed.points[0].tolist() == [[0, 1], [4, 5], [0, 1], [2, 3]]
    assert closed.points[1:, 2:].abs().max() == 0


def test_padding_is_near_nothing():
    points, others = example(), PointSet.packed([torch.zeros(1, 2)] * 3)
    assert points.near(others, 1.0).tolist() == [[True, False, False], [False] * 3, [False] * 3]
    radius = torch.tensor([4.0, 1.0, 2.0])
    assert points.near(others, radius).tolist() == [
        [True, True, False],
        [False] * 3,
        [True, False, False],
    ]
    nobody = others.only(torch.zeros(3, 1, dtype=torch.bool))
    assert not points.near(nobody, 1e9).any() and points.gaps(nobody).isinf().all()
