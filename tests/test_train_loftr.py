"""train_loftr_v3.py on a few small eyes: base, v3, and registration with the result."""

from __future__ import annotations

import csv
import json
import re
import shutil
import time

import pytest
import torch
import yaml
from helpers import run_main
from torch.utils.data import default_collate

import evaluate
import register
import train_loftr_v3
from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.samples import discover_samples
from registration.trained_matchers import build_model
from synthesis.generated_set import write_generated_set
from training.loftr_config import LoFTRConfig
from training.loftr_step import LoFTRStep
from training.step_meter import StepMeter, reset_peak_memory, step_memory_mb
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import build

pytestmark = pytest.mark.slow

FROZEN = ("backbone", "pos_encoding", "fine_preprocess")
LOOP = {"batch_size": 2, "views_per_sample": 1, "workers": 0}
TINY = {
    "model": {
        "stem": "ridge",
        "initial_dim": 8,
        "block_dims": [8, 8, 16],
        "heads": 2,
        "coarse_layers": 1,
        "temperature": 0.07,
        "unit_features": True,
        "position_cells": 12,
        "cell_offset_px": 0.0,
    },
    "view": {"img_size": 64, "long_side": 96},
    "match": {
        "long_side": 96,
        "try_turns": False,
        "smaller_copy": 1.0,
        "min_cell_confidence": 0.001,
    },
    "base": {"loss": {"eps": 0.1}, "train": LOOP | {"epochs": 1}},
    "v3": {"freeze": list(FROZEN), "train": LOOP | {"epochs": 2}},
    "validation": {"pairs": 2, "pictures": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Arguments for a tiny run; the eyes and the config are read only."""
    folder = tmp_path_factory.mktemp("tiny")
    write_generated_set(folder / "generated", eyes=6, size=96, progress=False)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return ["--config", folder / "tiny.yaml", "--data", folder / "generated", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The folder of base and v3 after one call without --pretrained."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        assert run_main(train_loftr_v3, patch, *tiny, "--save", folder) == 0
    return folder / "cffa"


def test_frozen_tensors_equal_the_base_bit_for_bit(trained):
    base = read_checkpoint(trained / "loftr_v3_base" / "best.pth")["model"]
    content = read_checkpoint(trained / "loftr_v3" / "latest.pth")
    assert content["epoch"] == 2 and base.keys() == content["model"].keys()
    heads = tuple(f"matcher.{name}." for name in FROZEN)
    frozen = [name for name in base if name.startswith(heads)]
    assert len(frozen) > 50 and any("running_mean" in name for name in frozen)
    assert all(torch.equal(base[name], content["model"][name]) for name in frozen)
    learnt = [name for name in base if name not in frozen]
    assert all(not torch.equal(base[name], content["model"][name]) for name in learnt)
    assert len(content["optimizer"]["state"]) == len(learnt)


def test_base_trains_everything(trained):
    content = read_checkpoint(trained / "loftr_v3_base" / "latest.pth")
    names = [
        name for name in content["model"] if "running" not in name and "num_batches" not in name
    ]
    assert len(content["optimizer"]["state"]) == len(names)
    assert content["config"]["settings"]["stage"] == "base" and content["kind"] == "loftr_vessel"


def test_run_writes_all_its_files(trained):
    run = trained / "loftr_v3"
    for name in (
        "config.yaml",
        "split.yaml",
        "curves.png",
        "latest.pth",
        "best.pth",
        "validation_log.txt",
    ):
        assert (run / name).stat().st_size > 0, name
    for epoch in (0, 1, 2):
        names = sorted(path.name for path in (run / f"epoch{epoch}").iterdir())
        sample = names[0].split("_fix_")[0]
        assert names == [
            f"{sample}_{kind}.png"
            for kind in ("fix_registered_checkerboard", "keypoints", "matches", "registered")
        ]
    log = (run / "train_log.txt").read_text()
    for figure in (
        "coarse",
        "fine",
        "total",
        "empty_coarse",
        "vessel_matches",
        "seconds_per_step",
        "peak_memory_mb",
        "lr",
    ):
        assert re.search(rf"\b{figure} [\d.e+-]+", log), figure
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert re.fullmatch(r"[\d,]+ of [\d,]+ parameters train \(\d+%\)", written["parameters"])


def test_register_and_evaluate_know_the_kind(trained, tiny, tmp_path, monkeypatch, capsys):
    weights, data = trained / "loftr_v3" / "best.pth", tiny[3]
    code = run_main(
        register,
        monkeypatch,
        data / "1_A" / "1_A_cf.png",
        data / "1_A" / "1_A_fa_gen.png",
        *(f"--weights {weights} --out {tmp_path / 'registered'} --device cpu").split(),
    )
    written = json.loads(
        (tmp_path / "registered" / "1_A_cf_1_A_fa_gen" / "transform.json").read_text()
    )
    assert written["status"] == ("failed" if code else "ok") and code in (0, 1)
    assert written["weights"] == str(weights)
    split = trained / "loftr_v3" / "split.yaml"
    assert (
        run_main(
            evaluate,
            monkeypatch,
            *(
                f"--generated {data} --split {split} --weights {weights} "
                f"--rotations 0 --draws 1 --out {tmp_path / 'out'} --device cpu "
                "--no_pictures"
            ).split(),
        )
        == 0
    )
    with open(tmp_path / "out" / "pairs.csv", encoding="utf-8", newline="") as handle:
        assert {row["method"] for row in csv.DictReader(handle)} == {"loftr", "identity", "oracle"}


def test_complete_base_is_used_again_and_freeze_none_trains_all(trained, tiny, monkeypatch, capsys):
    base = trained / "loftr_v3_base"
    before = (base / "latest.pth").read_bytes()
    assert (
        run_main(
            train_loftr_v3,
            monkeypatch,
            *tiny,
            *(
                f"--save {trained.parent} --name full --pretrained "
                f"{base / 'best.pth'} --freeze none --mask soft --mask_gradient --photometric "
                "--epoch 1"
            ).split(),
        )
        == 0
    )
    assert (base / "latest.pth").read_bytes() == before
    content = read_checkpoint(trained / "full" / "latest.pth")
    settings = content["config"]["settings"]["v3"]
    assert settings["freeze"] == [] and settings["loss"]["eps"] == 0.1 and settings["photometric"]
    assert settings["loss"]["mask"] and settings["loss"]["mask_gradient"]
    start = read_checkpoint(base / "best.pth")["model"]
    assert not torch.equal(
        start["matcher.backbone.bn1.running_mean"],
        content["model"]["matcher.backbone.bn1.running_mean"],
    )


def test_stopped_run_resumes_with_its_modules_frozen(trained, tiny, tmp_path, monkeypatch):
    from training.engine import Engine

    original = Engine._train_one_epoch

    def interrupted(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return original(self, epoch)

    start = trained / "loftr_v3_base" / "best.pth"
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_train_one_epoch", interrupted)
        assert (
            run_main(train_loftr_v3, patch, *tiny, "--save", tmp_path, "--pretrained", start) != 0
        )
    which = ["--save", tmp_path, "--device", "cpu", "--resume"]
    assert run_main(train_loftr_v3, monkeypatch, *which, "--eps", 0.5) == 2
    assert run_main(train_loftr_v3, monkeypatch, *which) == 0
    resumed, whole = (
        read_checkpoint(folder / "loftr_v3" / "latest.pth")["model"]
        for folder in (tmp_path / "cffa", trained)
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_modules_before_frozen_ones_train(trained, tiny, tmp_path, monkeypatch):
    """With the coarse transformer frozen, the gradient of both losses passes it to the backbone."""
    start = trained / "loftr_v3_base" / "best.pth"
    arguments = f"--save {tmp_path} --epoch 1 --freeze loftr_coarse loftr_fine --pretrained {start}"
    assert run_main(train_loftr_v3, monkeypatch, *tiny, *arguments.split()) == 0
    before = read_checkpoint(start)["model"]
    content = read_checkpoint(tmp_path / "cffa" / "loftr_v3" / "latest.pth")
    frozen = ("matcher.loftr_coarse.", "matcher.loftr_fine.", "matcher.pos_encoding.")
    for name, tensor in content["model"].items():
        assert torch.equal(tensor, before[name]) == name.startswith(frozen), name


@pytest.mark.parametrize(
    ("stage", "message"),
    [("v3", "of an earlier version.*--pretrained"), ("base", "the run is complete")],
)
def test_a_run_with_the_gradient_of_an_earlier_version_is_not_resumed(
    trained, tmp_path, monkeypatch, capsys, stage, message
):
    """Checkpoints of earlier versions lack the setting; their v3 had another gradient. A base
    without frozen modules and without a mask had the same one; it is only complete here."""
    name = {"base": "loftr_v3_base", "v3": "loftr_v3"}[stage]
    shutil.copytree(trained / name, tmp_path / "cffa" / name)
    path = tmp_path / "cffa" / name / "latest.pth"
    content = read_checkpoint(path)
    for settings in (content["config"]["settings"][each] for each in ("base", "v3")):
        del settings["loss"]["mask_gradient"]
    content["config"]["settings"]["base"]["loss"]["mask"] = False
    save_checkpoint(path, content)
    which = ["--save", tmp_path, "--device", "cpu", "--stage", stage, "--resume"]
    assert run_main(train_loftr_v3, monkeypatch, *which) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_training_step_brings_the_fine_loss_to_the_coarse_transformer(tiny):
    """On generated views and with the modules that v3 freezes; the coarse loss is left out."""
    torch.manual_seed(0)
    config = build(LoFTRConfig, TINY, "tiny")
    model = config.build_model()
    model.freeze(config.v3.freeze)
    model.train()
    views = AlignedPairs(discover_samples(tiny[3], ["cffa"])[0][:2], config.view)
    batch = default_collate([views[ViewKey(1, index)] for index in range(2)])
    output = LoFTRStep(model, config.v3.loss, torch.device("cpu"))(model, batch)
    assert output.n_valid["fine"] > 0
    output.losses["fine"].backward()
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(f"matcher.{module}." for module in FROZEN)):
            assert parameter.grad is None, name
        else:
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--freeze", "backbones"], "unknown; choose from"),
        (["--freeze", "none", "backbone"], "either none or names"),
        (["--mask", "none", "--eps", "0.1"], "leave --eps and --mask_gradient out"),
        (["--mask", "none", "--mask_gradient"], "leave --eps and --mask_gradient out"),
        (
            ["--freeze", "backbone", "loftr_coarse", "loftr_fine", "fine_preprocess"],
            "no parameter is left to train",
        ),
        (["--eps", "3"], "must lie between 0 and 1"),
        (["--img_size", "60"], "multiple of 8"),
        (["--pretrained", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_wrong_arguments_are_one_line(tiny, tmp_path, monkeypatch, capsys, arguments, message):
    stage = (
        []
        if "--pretrained" in arguments or "--resume" in arguments
        else ["--pretrained", "unused.pth"]
    )
    assert run_main(train_loftr_v3, monkeypatch, *tiny, "--save", tmp_path, *stage, *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.strip().splitlines()) == 1, error


def test_meter_times_a_step_from_its_first_part_to_its_end():
    meter = StepMeter(torch.device("cpu"))
    assert meter.start() == {}
    time.sleep(0.02)
    assert meter.start() == {}, "a further part of the same step"
    meter.stop()
    assert 0.02 <= meter.start()["seconds_per_step"] < 5.0


def test_peak_of_a_step_is_what_it_allocates():
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = step_memory_mb(device)
    torch.ones(60 * 2**18).sum()
    assert step_memory_mb(device) > before + 50
    reset_peak_memory(device)
    assert step_memory_mb(device) < before + 30


def test_training_starts_from_a_file_in_the_layout_of_minima(tiny, tmp_path, monkeypatch):
    """The layout of the published file: raw image as input, ``state_dict`` with ``matcher.`` keys.

    v3 starts from it without a base; in bf16.
    """
    settings = TINY | {"model": TINY["model"] | {"stem": "raw"}}
    config = tmp_path / "raw.yaml"
    config.write_text(yaml.safe_dump(settings))
    torch.manual_seed(3)
    model = build_model(build(LoFTRConfig, settings, str(config)).model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    file = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": file}, tmp_path / "minima.ckpt")
    assert (
        run_main(
            train_loftr_v3,
            monkeypatch,
            "--config",
            config,
            *tiny[2:],
            *(
                f"--save {tmp_path} --pretrained {tmp_path / 'minima.ckpt'} "
                "--epoch 1 --precision bf16"
            ).split(),
        )
        == 0
    )
    learnt = read_checkpoint(tmp_path / "cffa" / "loftr_v3" / "latest.pth")["model"]
    heads = tuple(f"matcher.{name}." for name in FROZEN)
    assert learnt.keys() == file.keys() and any(
        name.startswith("matcher.backbone.") for name in file
    )
    for name, tensor in learnt.items():
        assert torch.equal(tensor, file[name]) == name.startswith(heads), name


def test_a_complete_base_of_other_data_is_not_used(trained, tiny, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other"
    write_generated_set(other, eyes=6, size=96, seed=1, progress=False)
    shutil.copytree(trained / "loftr_v3_base", tmp_path / "cffa" / "mine_base")
    assert (
        run_main(
            train_loftr_v3,
            monkeypatch,
            *tiny[:2],
            *f"--data {other} --device cpu --save {tmp_path} --name mine".split(),
        )
        == 2
    )
    assert "trained on other data" in capsys.readouterr().err


def test_photometric_is_a_setting_of_the_stage(tiny, tmp_path, monkeypatch, capsys):
    config = tmp_path / "look.yaml"
    config.write_text(yaml.safe_dump(TINY | {"data": {"photometric": True}}))
    assert (
        run_main(train_loftr_v3, monkeypatch, "--config", config, *tiny[2:], "--save", tmp_path)
        == 2
    )
    assert "data.photometric" in capsys.readouterr().err


def test_a_base_of_another_split_is_refused(tiny, trained, tmp_path, monkeypatch, capsys):
    """It may have seen the test eyes of the v3 that starts from it."""
    shutil.copytree(trained / "loftr_v3_base", tmp_path / "cffa" / "loftr_v3_base")
    for arguments in (["--split_seed", 3], ["--fold", "1/3"]):
        assert run_main(train_loftr_v3, monkeypatch, *tiny, "--save", tmp_path, *arguments) == 2
        assert "with another split" in capsys.readouterr().err


def test_frozen_modules_are_a_setting_of_the_stages(tiny, tmp_path, monkeypatch, capsys):
    arguments = [*tiny, "--save", tmp_path, "--set", "base.train.freeze=[matcher]"]
    assert run_main(train_loftr_v3, monkeypatch, *arguments) == 2
    assert "set base.freeze or v3.freeze" in capsys.readouterr().err
    arguments = [*tiny, "--save", tmp_path, "--set", "stage=base"]
    assert run_main(train_loftr_v3, monkeypatch, *arguments) == 2
    assert "--set stage: the script sets this" in capsys.readouterr().err
