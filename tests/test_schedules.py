"""Schedules, longer runs, patience, learning rates by name, and frozen parts."""

from __future__ import annotations

import signal
import warnings

import pytest
import torch
from helpers import assert_equal_nested, error_of, without_measured
from torch import nn

from model.named_parts import freeze_named, parameters_named
from training.loop_settings import TrainSettings
from training.optimizer import WARM_UP_START, make_optimizer, make_schedule
from training.run_state import why_complete
from utils.checkpoint import read_checkpoint
from utils.errors import InputError

N_STEPS = 20  # of an epoch


def network() -> nn.Module:
    """Two parts, one with a normalisation that has running statistics."""
    parts = {
        "encoder": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        "decoder": nn.Linear(4, 2),
    }
    return nn.ModuleDict(parts)


def rates(settings: TrainSettings, steps: int, model: nn.Module | None = None) -> list[list[float]]:
    """The learning rate of every group in each step."""
    optimizer = make_optimizer(model or network(), settings)
    schedule = make_schedule(optimizer, settings, N_STEPS)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
    return found


def test_cosine_rises_linearly_and_falls_to_zero():
    settings = TrainSettings(schedule="cosine", epochs=5, lr=0.1, warmup_share=0.2)
    found = [group[0] for group in rates(settings, 100)]
    assert found[0] == pytest.approx(0.1 * WARM_UP_START)
    assert found[10] == pytest.approx(0.1 * (1 + WARM_UP_START) / 2), "half of the rise"
    assert found[20] == pytest.approx(0.1) == max(found)
    assert found[60] == pytest.approx(0.05), "half of the fall"
    assert 0 < found[99] < 1e-4
    without = rates(TrainSettings(schedule="cosine", epochs=5, lr=0.1, warmup_share=0.0), 100)
    assert without[0] == [0.1] and without[50][0] == pytest.approx(0.05)


@pytest.mark.parametrize("epochs", [1, 7])
def test_constant_rises_in_the_first_epoch_whatever_the_length_of_the_run(epochs):
    settings = TrainSettings(schedule="constant", epochs=epochs, lr=0.1, warmup_share=0.5)
    found = [group[0] for group in rates(settings, 20)]
    assert found[0] == pytest.approx(0.1 * WARM_UP_START)
    assert found[5] == pytest.approx(0.1 * (1 + WARM_UP_START) / 2)
    assert found[10:] == pytest.approx([0.1] * 10)
    without = TrainSettings(schedule="constant", epochs=epochs, lr=0.1, warmup_share=0.0)
    assert rates(without, 3) == [[0.1]] * 3


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_the_rates_of_the_groups_keep_their_ratio(schedule):
    settings = TrainSettings(
        schedule=schedule, epochs=2, lr=0.1, lr_scale={"encoder": 0.1, "encoder.1": 0.5}
    )
    model = network()
    groups = make_optimizer(model, settings).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [
        (pytest.approx(0.1), 2),
        (pytest.approx(0.01), 2),
        (pytest.approx(0.05), 2),
    ]
    longest = zip(groups[2]["params"], model["encoder"][1].parameters(), strict=True)
    assert all(a is b for a, b in longest)
    for full, tenth, half in rates(settings, 40, model):
        assert (tenth, half) == (pytest.approx(0.1 * full), pytest.approx(0.5 * full))


def test_a_state_of_a_schedule_is_restored():
    settings = TrainSettings(schedule="cosine", epochs=2, lr=0.1)
    optimizer = make_optimizer(network(), settings)
    schedule = make_schedule(optimizer, settings, N_STEPS)
    whole = rates(settings, 40)
    for _ in range(15):
        optimizer.step()
        schedule.step()
    states = optimizer.state_dict(), schedule.state_dict()
    other = make_optimizer(network(), settings)
    restored = make_schedule(other, settings, N_STEPS)
    other.load_state_dict(states[0])
    restored.load_state_dict(states[1])
    for expected in whole[15:]:
        assert [group["lr"] for group in other.param_groups] == expected
        other.step()
        restored.step()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "cosin"}, "train.schedule: 'cosin' is unknown; choose from onecycle"),
        ({"patience": -1}, "train.patience"),
        ({"warmup_share": 2.0}, "train.warmup_share"),
        ({"lr_scale": {"encoder": 0.0}}, "train.lr_scale: factors must be above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        TrainSettings(**settings)


def test_a_name_that_no_part_has_is_refused_with_the_names_there_are():
    for name in ("heads", "encod", "encoder.*.nothing"):
        with pytest.raises(
            InputError, match="train.lr_scale.*top-level names are encoder, decoder"
        ):
            make_optimizer(network(), TrainSettings(lr_scale={name: 0.1}))


def test_names_stand_for_parts():
    model = network()
    for name, n_parameters in (("encoder", 4), ("encoder.1", 2), ("*.weight", 3), ("*coder", 6)):
        assert len(parameters_named(model, name, "x")) == n_parameters, name


def test_frozen_parts_stay_as_they_are_and_pass_gradients():
    model = network()
    frozen = freeze_named(model, ["encoder"], "x")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    for module in frozen:
        module.eval()
    assert model["decoder"].training and not model["encoder"][1].training
    inputs = torch.randn(5, 3, requires_grad=True)
    optimizer = make_optimizer(model, TrainSettings(lr=0.1))
    model["decoder"](model["encoder"](inputs)).sum().backward()
    optimizer.step()
    assert inputs.grad is not None and inputs.grad.abs().sum() > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder"), name


def test_a_partly_frozen_module_still_trains():
    model = network()
    assert freeze_named(model, ["encoder.1.weight"], "x") == []
    with pytest.raises(InputError, match="no parameter is left to train"):
        freeze_named(model, ["*"], "x")


def test_patience_counts_from_the_best_epoch():
    settings = TrainSettings(epochs=9, patience=3)
    assert why_complete({"epoch": 4, "best_epoch": 2}, settings) == ""
    assert "no better validation for 3 epochs after epoch 2" in why_complete(
        {"epoch": 5, "best_epoch": 2}, settings
    )
    assert why_complete({"epoch": 5, "best_epoch": 2}, TrainSettings(epochs=9)) == ""
    assert why_complete({"epoch": 8}, settings) == "", "a checkpoint of an earlier version"


# --- the script -----------------------------------------------------------------------------------

# Validation scores of the epochs 0, 1, ... in place of those of the network.
SCORES = """
from training.engine import Engine
validate = Engine._validate
def scored(self, epoch):
    from dataclasses import replace
    return replace(validate(self, epoch), score={scores}[epoch])
Engine._validate = scored
"""


@pytest.fixture(scope="module")
def begin(tiny_data, tiny_config, tmp_path_factory):
    """Arguments of a new run by name, those that resume it, and its folder."""
    save = tmp_path_factory.mktemp("runs")

    def arguments(name: str, *more: object) -> tuple[list, list, object]:
        which = ["--save", save, "--name", name]
        new = [*which, "--config", tiny_config, "--data", tiny_data, *more]
        return new, [*which, "--resume"], save / "cffa" / name

    return arguments


def assert_same_checkpoint(folder, other) -> None:
    contents = [read_checkpoint(each / "latest.pth") for each in (folder, other)]
    assert_equal_nested(*map(without_measured, contents))


@pytest.mark.slow
def test_a_constant_run_with_more_epochs_equals_an_uninterrupted_one(begin, forked_runs):
    constant = ["--set", "train.schedule=constant", "train.warmup_share=0.7"]
    new, _, whole = begin("whole", *constant, "--epoch", 3)
    assert forked_runs(*new)["codes"] == [0]
    new, resume, folder = begin("longer", *constant, "--epoch", 1)
    assert forked_runs(*new)["codes"] == [0]
    assert "train longer with a larger --epoch" in error_of(forked_runs(*resume))
    reply = forked_runs(*resume, "--epoch", 3)
    assert reply["codes"] == [0], reply["output"]
    assert_same_checkpoint(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["onecycle", "cosine"])
def test_a_run_that_falls_to_zero_has_no_more_epochs(begin, forked_runs, schedule):
    new, resume, folder = begin(schedule, "--set", f"train.schedule={schedule}", "--epoch", 2)
    reply = forked_runs(*new, signal=int(signal.SIGKILL), at=100_000)
    assert reply["codes"] == [-signal.SIGKILL]
    message = error_of(forked_runs(*resume, "--epoch", 4))
    for words in ("train.epochs was 2 and is now 4", f"The schedule {schedule} lowers", "constant"):
        assert words in message
    assert forked_runs(*resume)["codes"] == [0]
    assert read_checkpoint(folder / "latest.pth")["epoch"] == 2


@pytest.mark.slow
def test_patience_ends_a_run_and_its_count_survives_a_stop(begin, forked_runs):
    patch = SCORES.format(scores=[0.1, 0.3, 0.2, 0.3, 0.5, 0.6])
    options = ["--epoch", 5, "--set", "train.patience=2"]
    new, _, whole = begin("patient", *options)
    reply = forked_runs(*new, patch=patch)
    assert reply["codes"] == [0] and "no better validation for 2 epochs" in reply["output"]
    content = read_checkpoint(whole / "latest.pth")
    assert (content["epoch"], content["best_epoch"]) == (3, 1)
    assert read_checkpoint(whole / "best.pth")["epoch"] == 1

    new, resume, folder = begin("stopped", *options)
    stopped = forked_runs(
        *new, patch=patch, signal=int(signal.SIGINT), at=int(0.8 * reply["events"])
    )
    assert stopped["codes"] == [130] and "epoch 3 of 5" in stopped["output"], stopped["output"]
    assert forked_runs(*resume, patch=patch)["codes"] == [0]
    assert_same_checkpoint(folder, whole)

    message = error_of(forked_runs(*resume, patch=patch))
    assert "no better validation for 2 epochs after epoch 1; raise train.patience" in message
    reply = forked_runs(*resume, "--set", "train.patience=0", patch=patch)
    assert reply["codes"] == [0], reply["output"]
    content = read_checkpoint(folder / "latest.pth")
    assert (content["epoch"], content["best_epoch"]) == (5, 5)


@pytest.mark.slow
def test_patience_ends_all_processes(begin, forked_runs):
    new, _, folder = begin("both", "--epoch", 5, "--set", "train.patience=1")
    reply = forked_runs(*new, patch=SCORES.format(scores=[0.3, 0.1, 0.2]), processes=2)
    assert reply["codes"] == [0, 0], reply["output"]
    assert read_checkpoint(folder / "latest.pth")["epoch"] == 1


@pytest.mark.slow
def test_frozen_parts_of_a_run_stay_bit_identical(begin, forked_runs, tiny_config):
    new, _, start = begin("start", "--epoch", 1)
    assert forked_runs(*new)["codes"] == [0]
    start = start / "latest.pth"
    options = ["--freeze", "encoder", "decoder.blocks.0", "--pretrained", start, "--epoch", 2]
    options += ["--set", "train.lr_scale={decoder.descriptor_head: 0.5}"]
    new, resume, folder = begin("frozen", *options)
    reply = forked_runs(*new)
    assert reply["codes"] == [0], reply["output"]
    content = read_checkpoint(folder / "latest.pth")
    assert content["config"]["settings"]["train"]["freeze"] == ["encoder", "decoder.blocks.0"]
    before, after = read_checkpoint(start)["model"], content["model"]
    for name in before:
        frozen = name.startswith(("encoder.", "decoder.blocks.0."))
        if frozen or "num_batches" not in name:
            assert torch.equal(before[name], after[name]) == frozen, name
    assert "train.freeze" in error_of(forked_runs(*resume, "--freeze", "none"))
    assert "top-level names" in error_of(forked_runs(*begin("typo", "--freeze", "encodr")[0]))
