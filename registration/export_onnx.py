"""Export the keypoint network to ONNX, and compare its maps with those of ONNX Runtime.

    python -m registration.export_onnx --weights save/cffa/demo/best.pth --out superretina.onnx

Input ``image``: (1, 1, H, W) float32 in [0, 1]; H and W multiples of ``size_multiple``, which is in
the metadata of the file. Outputs: ``detector`` (1, 1, H, W), the probability of a keypoint at each
pixel, and ``descriptors`` (1, D, H / s, W / s) of unit length; the stride s is in the metadata as
``descriptor_stride``. A network with two encoders is written as two files, ``<name>_fixed.onnx``
and ``<name>_moving.onnx``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from geometry.matrices import Size
from model.super_retina_multimodal import ROLES, SuperRetinaMultimodal
from registration.trained_matchers import load_matcher
from utils.errors import InputError, run_script
from utils.files import replace_atomically

MAX_DIFFERENCE = 1e-4  # allowed between PyTorch and ONNX Runtime, at any value of both maps
CHECKED_SIZES = ((256, 320), (448, 384))  # (height, width) of the compared images, pixels
MAX_CELLS = 512  # largest side of an image, in multiples of ``size_multiple``


class OneRole(nn.Module):
    """The network for images in one role, with a plain tuple of tensors as output."""

    def __init__(self, network: SuperRetinaMultimodal, role: str) -> None:
        super().__init__()
        self.network, self.role = network, role

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Detector map and descriptor map of an image (1, 1, H, W) in [0, 1]."""
        maps = self.network.describe(image, self.role)
        return maps.detector, maps.descriptors


def export(network: SuperRetinaMultimodal, role: str, path: Path) -> None:
    """Write the network for one role as an ONNX file, for images of variable size.

    Args:
        network: to be exported.
        role: "fixed" or "moving".
        path: of the file.
    """
    multiple = network.size_multiple
    height, width = (
        multiple * torch.export.Dim(f"{name}_by_{multiple}", min=1, max=MAX_CELLS)
        for name in ("height", "width")
    )
    program = torch.onnx.export(
        OneRole(network, role).eval(),
        (torch.rand(1, 1, 6 * multiple, 8 * multiple),),
        dynamo=True,
        input_names=["image"],
        output_names=["detector", "descriptors"],
        dynamic_shapes={"image": {2: height, 3: width}},
        verbose=False,
    )
    assert program is not None, "the exporter with dynamo=True returns a program"
    content = program.model_proto
    for key, value in (
        ("size_multiple", multiple),
        ("descriptor_stride", network.descriptor_stride),
        ("role", role),
    ):
        content.metadata_props.add(key=key, value=str(value))
    onnx.checker.check_model(content)
    with replace_atomically(path) as temporary:
        temporary.write_bytes(content.SerializeToString())


def largest_difference(network: SuperRetinaMultimodal, role: str, path: Path, size: Size) -> float:
    """Largest absolute difference between PyTorch and ONNX Runtime over both maps.

    Args:
        network: that was exported.
        role: "fixed" or "moving".
        path: of the ONNX file.
        size: (height, width) of the random test image, pixels.
    """
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = [each.numpy() for each in network.eval().describe(image, role)]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(["detector", "descriptors"], {"image": image.numpy()})
    return max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))


def main() -> None:
    """Export, compare at two sizes, and print the differences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument("--out", required=True, type=Path, metavar="ONNX", help="file to write")
    args = parser.parse_args()
    matcher, _ = load_matcher(args.weights)
    network = getattr(matcher, "model", None)
    if not isinstance(network, SuperRetinaMultimodal):
        raise InputError(
            f"{args.weights}: only the keypoint network (superretina_multimodal) can be exported "
            "to ONNX."
        )
    roles = ROLES if network.moving_encoder is not None else ROLES[:1]
    network = network.to(memory_format=torch.contiguous_format)
    for role in roles:
        path = args.out if len(roles) == 1 else args.out.with_stem(f"{args.out.stem}_{role}")
        export(network, role, path)
        for size in CHECKED_SIZES:
            _check(network, role, path, size)


def _check(network: SuperRetinaMultimodal, role: str, path: Path, size: Size) -> None:
    """Print the largest difference at a size (height, width); remove the file if too large."""
    difference = largest_difference(network, role, path, size)
    print(f"{path}: at {size[1]} x {size[0]} px ONNX Runtime differs by at most {difference:.1e}")
    if not difference < MAX_DIFFERENCE:
        path.unlink()
        raise InputError(
            f"{path}: ONNX Runtime differs by {difference:.1e}, more than {MAX_DIFFERENCE:.0e}; "
            "the file was removed. Try other versions of torch and onnxruntime."
        )


if __name__ == "__main__":
    run_script(main)
