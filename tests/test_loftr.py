"""The LoFTR network: its size, weights files, frozen modules, settings and positions."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers import SMALL_LOFTR
from kornia.feature import LoFTR
from loftr_cases import textures

from geometry.cells import CellMatches, cell_centres
from loss.vessel_matching import VesselWeights, fine_loss
from model.loftr_modules import COARSE_STRIDE, HALF_WINDOW_PX, MODULES, kornia_config
from model.loftr_vessel import LoFTRSettings, LoFTRVessel
from model.pretrained import load_pretrained
from registration.trained_matchers import build_model
from utils.errors import InputError

FROZEN = ("backbone", "pos_encoding", "fine_preprocess")


@pytest.fixture(scope="module")
def published():
    """The published size, untrained. Read only."""
    torch.manual_seed(0)
    return build_model(LoFTRSettings())


@pytest.fixture()
def small():
    torch.manual_seed(0)
    return build_model(SMALL_LOFTR)


def first_cells(n=4):
    cells = torch.arange(n)
    return CellMatches(torch.zeros(n, dtype=torch.long), cells, cells, torch.zeros(n, 2))


# --- published size and weights files ---


def test_published_size_has_the_published_parameters(published):
    published = copy.deepcopy(published)
    assert sum(p.numel() for p in published.parameters()) == 11_561_456
    published.freeze(FROZEN)
    assert sum(p.numel() for p in published.parameters() if p.requires_grad) == 5_579_776


@pytest.mark.parametrize("prefix", ["matcher.", ""])
def test_every_tensor_of_a_checkpoint_in_minima_layout_is_loaded(published, tmp_path, prefix):
    """A file with the keys and shapes of MINIMA's, which is not available here."""
    torch.manual_seed(1)
    network = LoFTR(None, kornia_config(128, (128, 196, 256), 8, 4, 1, 0.1))
    torch.save(
        {
            "state_dict": {
                f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()
            }
        },
        tmp_path / "minima_loftr.ckpt",
    )
    model = copy.deepcopy(published)
    line = load_pretrained(model, tmp_path / "minima_loftr.ckpt")
    assert f"all {len(network.state_dict())} tensors" in line
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.state_dict()[f"matcher.{name}"], tensor), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("matcher.backbone.conv1.weight"),
            r"1 missing \(matcher.backbone.conv1.weight\)",
        ),
        (
            lambda state: state.update({"matcher.surplus": torch.zeros(1)}),
            r"1 unexpected \(matcher.surplus\)",
        ),
        (
            lambda state: state.update({"matcher.backbone.bn1.bias": torch.zeros(3)}),
            r"1 of another shape \(matcher.backbone.bn1.bias\)",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(small, tmp_path, change, message):
    state = small.state_dict()
    change(state)
    torch.save({"state_dict": state}, tmp_path / "weights.ckpt")
    with pytest.raises(InputError, match=message):
        load_pretrained(small, tmp_path / "weights.ckpt")


def test_files_without_weights_are_refused(small, tmp_path):
    for name, content, message in (
        ("list.ckpt", [1, 2], "neither"),
        ("text.ckpt", {"state_dict": {"a": "b"}}, "neither"),
        ("object.ckpt", {"state_dict": small}, "holds more than tensors"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=message):
            load_pretrained(small, tmp_path / name)


def test_matches_equal_those_of_kornia_with_the_same_weights(published):
    """The added training path does not change the matches of published weights."""
    model = copy.deepcopy(published).eval()
    network = LoFTR(None, kornia_config(128, (128, 196, 256), 8, 4, 1, 0.1)).eval()
    network.load_state_dict(model.matcher.state_dict())
    fixed, moving = textures(seed=1).chunk(2)
    everywhere = torch.ones(1, 64, dtype=torch.bool)
    with torch.inference_mode():
        theirs = network({"image0": fixed, "image1": moving})
    found = model.match(
        model.describe(fixed), model.describe(moving), everywhere, everywhere, min_confidence=0.0
    )
    assert len(found.confidence) > 0
    centres = cell_centres((64, 64), COARSE_STRIDE, 0.0)
    assert torch.equal(centres[found.fixed_cell], theirs["keypoints0"])
    assert torch.allclose(
        centres[found.moving_cell] + found.offset_px, theirs["keypoints1"], atol=1e-4
    )
    assert torch.allclose(found.confidence, theirs["confidence"], atol=1e-6)


# --- freezing ---


def test_frozen_modules_stay_in_evaluation_mode(small):
    small.freeze(FROZEN)
    for _ in range(2):
        small.eval()
        small.train()
        assert small.training and small.matcher.loftr_coarse.training
        assert not any(
            module.training for name in FROZEN for module in getattr(small.matcher, name).modules()
        )


def test_training_mode_set_on_the_inner_network_changes_no_statistics():
    small = build_model(SMALL_LOFTR)
    small.freeze(FROZEN)
    small.train()
    small.matcher.train()
    before = {name: value.clone() for name, value in small.matcher.backbone.state_dict().items()}
    cells = torch.zeros(2, dtype=torch.long)
    small(
        torch.rand(1, 1, 64, 64),
        torch.rand(1, 1, 64, 64),
        CellMatches(cells, cells, cells, torch.zeros(2, 2)),
    )
    assert all(
        torch.equal(before[name], value)
        for name, value in small.matcher.backbone.state_dict().items()
    )


@pytest.mark.parametrize(
    ("freeze", "without_graph"),
    [
        (FROZEN, {"backbone", "pos_encoding"}),
        (("backbone",), {"backbone", "pos_encoding"}),
        (("pos_encoding",), set()),
        (("loftr_coarse",), set()),
        (("loftr_coarse", "fine_preprocess", "loftr_fine"), set()),
        (("backbone", "loftr_fine"), {"backbone", "pos_encoding"}),
        (("backbone", "loftr_coarse"), {"backbone", "pos_encoding", "loftr_coarse"}),
        (tuple(name for name in MODULES if name != "loftr_fine"), set(MODULES) - {"loftr_fine"}),
    ],
)
def test_only_modules_before_the_first_trained_one_run_without_a_graph(freeze, without_graph):
    """A frozen module after a trained one passes the gradient on; its own weights get none."""
    torch.manual_seed(0)
    small = build_model(replace(SMALL_LOFTR, position_cells=0))
    small.freeze(freeze)
    small.train()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    outputs = {}

    def remember(name):
        return lambda module, inputs, output: outputs.update(
            {name: output[0] if isinstance(output, (tuple, list)) else output}
        )

    for name in MODULES:
        getattr(small.matcher, name).register_forward_hook(remember(name))
    features = small(textures(2), textures(2), first_cells())
    assert set(outputs) == set(MODULES)
    assert {name for name in MODULES if not outputs[name].requires_grad} == without_graph
    (features.similarity.square().sum() + features.offset_px.square().sum()).backward()
    for name in MODULES:
        module = getattr(small.matcher, name)
        for key, parameter in module.named_parameters():
            trains = parameter.grad is not None and bool((parameter.grad != 0).any())
            assert trains == (name not in freeze), f"{name}.{key}"
            assert parameter.grad is None or name not in freeze
        same = [
            torch.equal(before[f"matcher.{name}.{k}"], v) for k, v in module.state_dict().items()
        ]
        assert all(same) or name not in freeze, f"{name}: its statistics changed"


def test_the_fine_loss_alone_reaches_the_coarse_transformer():
    """Through the frozen ``fine_preprocess``, which takes the coarse features."""
    torch.manual_seed(0)
    small = build_model(SMALL_LOFTR)
    small.freeze(FROZEN)
    small.train()
    matches = first_cells()._replace(offset_px=torch.ones(4, 2))
    features = small(textures(1), textures(1, seed=1), matches)
    weights = VesselWeights(torch.ones(1, 64), torch.ones(1, 64), 0.0)
    term = fine_loss(features.offset_px, features.spread, matches, weights, HALF_WINDOW_PX)
    assert term.valid.all()
    term.mean().backward()
    for name in MODULES:
        for key, parameter in getattr(small.matcher, name).named_parameters():
            if name in FROZEN:
                assert parameter.grad is None, f"{name}.{key}"
            else:
                assert parameter.grad.abs().sum() > 0, f"{name}.{key}"


def test_freezing_nothing_undoes_an_earlier_freeze(small):
    small.freeze(FROZEN)
    small.freeze(())
    assert all(parameter.requires_grad for parameter in small.parameters())
    before = small.matcher.backbone.bn1.running_mean.clone()
    small.train()(textures(2), textures(2), first_cells())
    assert not torch.equal(before, small.matcher.backbone.bn1.running_mean)


def test_unknown_module_cannot_be_frozen(small):
    with pytest.raises(InputError, match="backbones.*choose from backbone"):
        small.freeze(["backbones"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"stem": "wavelet"},
        {"block_dims": (8, 8)},
        {"heads": 3},
        {"temperature": 0.0},
        {"coarse_layers": 0},
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(InputError):
        LoFTRSettings(**({"initial_dim": 8, "block_dims": (8, 8, 16), "heads": 2} | wrong))


def test_positions_of_a_view_are_a_random_crop_of_the_larger_grid():
    torch.manual_seed(0)
    model = LoFTRVessel(
        LoFTRSettings(
            stem="ridge",
            initial_dim=8,
            block_dims=(8, 8, 16),
            heads=2,
            coarse_layers=1,
            position_cells=40,
        )
    )
    coarse = torch.zeros(50, 16, 8, 8)
    crops = model._crop_of_positions(coarse)
    table = model.matcher.pos_encoding.pe[0]
    places = [
        next(
            (top, left)
            for top in range(33)
            for left in range(33)
            if torch.equal(crop, table[:, top : top + 8, left : left + 8])
        )
        for crop in crops
    ]
    assert len(set(places)) > 40 and max(max(place) for place in places) > 25
