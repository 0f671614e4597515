"""The joint objective: all terms on a small network, their weights and their registry."""

from __future__ import annotations

import pytest
import torch
from helpers import SMALL_MODEL
from torch.utils.data import default_collate

from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from geometry.points import sample_map, warp_points
from loss.common import Term
from loss.descriptor import DESCRIPTOR_OBJECTIVES, choose_anchors
from loss.joint_objective import TERMS, JointObjective, LossTerm, ObjectiveSettings
from loss.term_inputs import AnchorShares, TermInputs
from loss.value_map import Observation, PKESettings, ValueMap
from model.super_retina_multimodal import ModelSettings
from registration.keypoints import find_keypoints, sample_descriptors
from registration.trained_matchers import build_model
from utils.config import build, to_plain
from utils.errors import InputError


def make_objective(stride: int, **settings) -> JointObjective:
    return JointObjective(
        ObjectiveSettings(**settings),
        lambda maps, points: sample_descriptors(maps, points, stride),
        lambda maps, allowed: find_keypoints(maps, 0.01, 4, 64, allowed),
    )


@pytest.fixture(scope="module")
def batch(generated_root):
    samples, _ = discover_samples(generated_root, ["cffa"])
    pairs = AlignedPairs(samples, ViewGeometry(img_size=96, long_side=192), seed=1, n_anchors=64)
    return default_collate([pairs[ViewKey(1, index)] for index in range(4)])


@pytest.fixture
def value_map(batch):
    """One admitted place in the middle of the view of each sample."""
    centre = torch.tensor([[47.5, 47.5]])
    places = {
        key: warp_points(centre, H)
        for key, H in zip(batch["key"], batch["H_fix_to_own"], strict=True)
    }
    settings = PKESettings(admit_value=0.5, learning_rate=0.6)
    memory = ValueMap(settings)
    memory.apply([Observation(key, place, torch.zeros(0, 2)) for key, place in places.items()])
    assert memory.statistics()["admitted"] == len(places)
    return memory


@pytest.mark.parametrize("encoders", ["shared", "dual"])
@pytest.mark.parametrize("descriptor", list(DESCRIPTOR_OBJECTIVES))
def test_every_parameter_gets_a_finite_gradient(batch, value_map, encoders, descriptor):
    torch.manual_seed(0)
    model = build_model(ModelSettings(**to_plain(SMALL_MODEL) | {"encoders": encoders}))
    result = make_objective(model.descriptor_stride, descriptor=descriptor)(
        *model(batch["fixed_image"], batch["moving_image"]), batch, value_map
    )
    assert (
        list(result.losses) == ["det", "des", "geo", "pke", "geo_plan", "total"]
        and result.counts["pke_labels"] > 0
    )
    weights = ObjectiveSettings().weights
    assert result.losses["total"].item() == pytest.approx(
        sum(weights[name] * result.losses[name].item() for name in weights), rel=1e-6
    )
    assert all(result.losses[name].item() > 0 for name in weights)
    result.losses["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


def test_joint_objective_of_halves_averages_to_the_whole(batch, value_map):
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL).eval()
    objective = make_objective(model.descriptor_stride)

    def losses(part: slice) -> dict[str, torch.Tensor]:
        piece = {name: values[part] for name, values in batch.items()}
        return objective(
            *model(piece["fixed_image"], piece["moving_image"]), piece, value_map
        ).losses

    with torch.no_grad():
        whole, first, second = losses(slice(0, 4)), losses(slice(0, 2)), losses(slice(2, 4))
    for name in whole:
        assert whole[name].item() == pytest.approx(
            0.5 * (first[name] + second[name]).item(), rel=1e-4, abs=1e-6
        ), name


def test_a_weight_of_zero_leaves_a_term_out(batch, value_map):
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL)
    objective = make_objective(
        model.descriptor_stride, weights={"det": 0.0, "des": 2.0, "geo": 0.0, "pke": 0.0}
    )
    result = objective(*model(batch["fixed_image"], batch["moving_image"]), batch, value_map)
    assert result.losses["total"].item() == pytest.approx(2 * result.losses["des"].item())
    result.losses["total"].backward()
    gradient = model.decoder.detector_head.weight.grad
    assert gradient is None or gradient.abs().max() == 0


def test_samples_without_a_field_of_view_are_finite_and_counted(batch):
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL)
    empty = dict(batch) | {
        name: torch.zeros_like(batch[name]) for name in ("fixed_fov", "moving_fov", "anchor_valid")
    }
    result = make_objective(model.descriptor_stride)(
        *model(batch["fixed_image"], batch["moving_image"]), empty, ValueMap()
    )
    assert result.losses["total"].item() == 0
    assert all(result.counts[f"empty_{name}"] == 4 for name in ("det", "des", "geo", "pke"))
    result.losses["total"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
def test_training_on_one_batch_lowers_the_losses(batch):
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL)
    objective, optimizer = (
        make_objective(model.descriptor_stride),
        torch.optim.AdamW(model.parameters(), lr=5e-3),
    )
    history = []
    for _ in range(25):
        losses = objective(
            *model(batch["fixed_image"], batch["moving_image"]), batch, ValueMap()
        ).losses
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in ("det", "des", "total"):
        assert history[-1][name] < 0.97 * history[0][name], name


def constant_term(inputs: TermInputs) -> Term:
    """A term of 0.25 for every sample but the first, which is empty."""
    valid = torch.arange(len(inputs.batch["key"])) > 0
    return Term(0.25 * valid + 0.0 * inputs.fixed.detector.sum(), valid)


def run_untrained(batch, **settings):
    """Result of the objective for the outputs of a network with seed 0."""
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL)
    objective = make_objective(model.descriptor_stride, **settings)
    return objective(*model(batch["fixed_image"], batch["moving_image"]), batch, ValueMap())


def test_a_registered_term_is_weighted_logged_and_counted(batch, monkeypatch):
    before = run_untrained(batch)
    monkeypatch.setitem(TERMS, "toy", LossTerm(constant_term))
    weights = ObjectiveSettings().weights
    assert "toy" not in weights, "the default weight is 0"
    result = run_untrained(batch, weights=weights | {"toy": 8.0})
    assert list(result.losses) == [*list(before.losses)[:-1], "toy", "total"]
    assert result.losses["toy"].item() == pytest.approx(0.25 * 3 / 4)
    assert result.losses["total"].item() == pytest.approx(before.losses["total"].item() + 1.5)
    assert result.counts["empty_toy"] == 1 and result.n_valid["toy"] == 3
    without = run_untrained(batch)
    assert without.losses["toy"].item() == result.losses["toy"].item(), "logged without a weight"
    assert torch.equal(without.losses["total"], before.losses["total"])


def test_a_term_with_a_default_weight_is_part_of_the_default_objective(monkeypatch):
    monkeypatch.setitem(TERMS, "toy", LossTerm(constant_term, default_weight=0.25))
    assert ObjectiveSettings().weights == {
        "det": 1.0,
        "des": 1.0,
        "geo": 0.5,
        "pke": 0.5,
        "toy": 0.25,
    }


def test_default_weights():
    assert ObjectiveSettings().weights == {"det": 1.0, "des": 1.0, "geo": 0.5, "pke": 0.5}


def test_a_weight_that_is_not_named_is_zero(batch):
    """Also in settings that are built from a config or from a checkpoint."""
    settings = build(ObjectiveSettings, {"weights": {"det": 1.0}}, "checkpoint")
    assert [settings.weight(name) for name in TERMS] == [1.0, 0.0, 0.0, 0.0, 0.0]
    result = run_untrained(batch, weights={"det": 1.0})
    assert torch.equal(result.losses["total"], result.losses["det"])
    assert result.losses["geo"] > 0, "logged although its weight is 0"


def test_unknown_settings_are_refused():
    with pytest.raises(
        InputError, match="weights.*unknown term dett; known are det, des, geo, pke, geo_plan"
    ):
        ObjectiveSettings(weights={"det": 1.0, "dett": 1.0})
    with pytest.raises(InputError, match="my.yaml.*weights.*unknown terms a, b"):
        build(ObjectiveSettings, {"weights": {"b": 1.0, "a": 1.0}}, "my.yaml")
    with pytest.raises(InputError, match="descriptor"):
        ObjectiveSettings(descriptor="hinge")
    with pytest.raises(InputError, match="loss.anchors.*at most 1"):
        ObjectiveSettings(anchors=AnchorShares(junctions=0.7, detections=0.4))


def test_anchors_are_mixed_by_their_shares(batch, value_map, monkeypatch):
    """Label places and detections up to their shares, vessel points for the rest."""
    seen: list[torch.Tensor] = []

    def spy(inputs: TermInputs) -> Term:
        seen.append(choose_anchors(inputs)[0])
        return constant_term(inputs)

    monkeypatch.setitem(TERMS, "spy", LossTerm(spy))

    def kinds(junctions: float, detections: float) -> tuple[int, int, int]:
        shares = AnchorShares(junctions=junctions, detections=detections)
        make_objective(4, anchors=shares)(*features, batch, value_map)
        points = seen[-1][0]
        vessels = batch["anchors"][0]
        heat = sample_map(batch["fixed_heatmap"][:1], points[None])[0, :, 0]
        is_vessel = torch.cdist(points, vessels).amin(1) < 0.2
        is_seed = ~is_vessel & (heat > 0.5)
        return int(is_seed.sum()), int((~is_vessel & ~is_seed).sum()), int(is_vessel.sum())

    torch.manual_seed(0)
    with torch.no_grad():
        features = build_model(SMALL_MODEL)(batch["fixed_image"], batch["moving_image"])
    n_anchors = batch["anchors"].shape[1]
    assert kinds(0.0, 0.0) == (0, 0, n_anchors)
    seeds, others, vessels = kinds(0.5, 0.0)
    # The admitted place in the middle of the view is a label too.
    assert seeds > 0 and others == 1 and seeds + others + vessels == n_anchors
    seeds, others, vessels = kinds(0.0, 0.25)
    assert others > 0 and seeds + others == n_anchors // 4 and vessels == n_anchors * 3 // 4
