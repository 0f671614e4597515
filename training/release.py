"""Reduce a checkpoint of a training run to the parts that matching needs, for distribution.

    python -m training.release save/cffa/mine/best.pth save/pretrained/superretina_multimodal.pth
    python -m training.release save/cffa/mine/best.pth OUT --match configs/superretina_release.yaml

With ``--match`` the file gets the ``match`` settings of that config instead of those of the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from registration.trained_matchers import INFERENCE_PARTS, TRAINABLE_MATCHERS
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import build, read_config, to_plain
from utils.errors import InputError, run_script


def release(checkpoint: Path, out: Path, max_mb: float, match_config: Path | None = None) -> float:
    """Write the inference parts of a checkpoint.

    Args:
        checkpoint: of a training run.
        out: the file to write.
        max_mb: largest allowed size of the weights, MB (10^6 bytes).
        match_config: config whose ``match`` section replaces that of the run.

    Returns:
        Size of the file, MB.

    Raises:
        InputError: not a checkpoint of a training run, or the result is larger than ``max_mb``.
    """
    content = read_checkpoint(checkpoint, INFERENCE_PARTS)
    size = sum(tensor.numel() * tensor.element_size() for tensor in content["model"].values()) / 1e6
    if size > max_mb:
        raise InputError(
            f"{checkpoint}: {size:.1f} MB of weights, more than --max_mb {max_mb:g}; release a "
            "smaller network."
        )
    parts = {part: content[part] for part in INFERENCE_PARTS}
    if match_config is not None:
        settings = TRAINABLE_MATCHERS[content["kind"]].match_settings
        parts["match_settings"] = to_plain(
            build(settings, read_config(match_config).get("match", {}), f"{match_config}: match")
        )
    save_checkpoint(out, parts)
    return out.stat().st_size / 1e6


def main() -> None:
    """Read the checkpoint, drop the training state, write the rest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max_mb", type=float, default=16.0, help="refuse to write more")
    parser.add_argument(
        "--match", type=Path, metavar="YAML", help="config whose match section to use"
    )
    args = parser.parse_args()
    print(f"{args.out}: {release(args.checkpoint, args.out, args.max_mb, args.match):.2f} MB")


if __name__ == "__main__":
    run_script(main)
