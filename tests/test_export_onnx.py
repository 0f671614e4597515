"""ONNX export: ONNX Runtime computes the same maps as torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import run_main

from model.super_retina_multimodal import ModelSettings, SuperRetinaMultimodal
from registration import export_onnx
from registration.export_onnx import export, largest_difference
from registration.registrar import DEFAULT_WEIGHTS
from registration.trained_matchers import load_matcher

pytestmark = pytest.mark.slow  # tracing a network takes up to half a minute


@pytest.fixture(scope="module")
def exported(untrained_weights, tmp_path_factory) -> Path:
    """A network exported by the script, once for all tests."""
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    with pytest.MonkeyPatch.context() as patch:
        assert run_main(export_onnx, patch, "--weights", untrained_weights, "--out", path) == 0
    return path


def test_onnx_runtime_gives_the_same_maps_at_two_sizes(exported, untrained_weights):
    network = load_matcher(untrained_weights)[0].model
    for size in ((64, 96), (136, 80)):
        assert largest_difference(network, "fixed", exported, size) < 1e-4
    session = onnxruntime.InferenceSession(str(exported))
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata == {"size_multiple": "8", "descriptor_stride": "4", "role": "fixed"}
    detector, descriptors = session.run(None, {"image": np.zeros((1, 1, 48, 72), np.float32)})
    assert detector.shape == (1, 1, 48, 72) and descriptors.shape == (1, 16, 12, 18)


def test_the_weights_that_ship_are_exported(tmp_path, monkeypatch):
    path = tmp_path / "shipped.onnx"
    assert run_main(export_onnx, monkeypatch, "--weights", DEFAULT_WEIGHTS, "--out", path) == 0
    network = load_matcher(DEFAULT_WEIGHTS)[0].model
    for size in ((256, 320), (512, 384)):
        assert largest_difference(network, "fixed", path, size) < 1e-4


def test_the_comparison_detects_a_different_network(exported, untrained_weights):
    network = load_matcher(untrained_weights)[0].model
    with torch.no_grad():
        network.decoder.detector_head.bias += 0.5
    assert largest_difference(network, "fixed", exported, (64, 64)) > 1e-3


@pytest.mark.parametrize(
    "role, arguments",
    [
        ("fixed", {"architecture": "published", "stem": "raw"}),
        ("moving", {"encoders": "dual", "widths": (8, 8, 8), "descriptor_dim": 8}),
    ],
)
def test_the_other_networks_are_exported_too(role, arguments, tmp_path):
    torch.manual_seed(0)
    network = SuperRetinaMultimodal(ModelSettings(**arguments)).eval()
    export(network, role, tmp_path / "network.onnx")
    multiple = network.size_multiple
    for size in ((6 * multiple, 5 * multiple), (4 * multiple, 9 * multiple)):
        assert largest_difference(network, role, tmp_path / "network.onnx", size) < 1e-4
