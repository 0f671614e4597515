"""Ablation study: train with one thing changed and the same budget, then evaluate.

    python -m benchmarks.ablations --data data/release --procedural data/generated \
        --real ../shared/data/real_pairs
    python -m benchmarks.ablations --only reference "raw stem" --data data/release

Measures for each variant how many pairs have a median error below 5 px at 512: generated pairs of
held-out eyes and real pairs, with the same draws for all variants. "no <term>" sets the weight of
one loss term to 0. "staged" trains in three runs with the same total number of steps: detector and
descriptor first, then with the geometric term, then with the keypoint expansion.

Writes the runs to save/<mode>/ablation_*, an evaluation per variant to save/ablations/<variant> and
the table to save/ablations/table.md; with --doc the table also goes between the markers of that
document. Finished runs are not trained again. A variant takes 3 epochs of 154 steps with
data/release.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.documents import markdown_table, write_into
from evaluation.statistics import ALL_REAL
from loss.joint_objective import ObjectiveSettings
from utils.commands import run
from utils.config import merge_settings, read_config
from utils.errors import run_script
from utils.files import write_text_atomically

BASE_CONFIG = "configs/superretina_release.yaml"
MODES = ("cffa", "cfoct")
# Settings of every variant on top of the base config.
BUDGET: dict[str, Any] = {
    # Smaller changes of view than in the base config: 3 epochs are too few for its full range.
    "view": {"ramp_epochs": 2, "scale": [0.7, 1.45], "rotation_deg": 45},
    "data": {"ranges": {"p_apply": 0.3}},
    "train": {"epochs": 3, "views_per_sample": 1},
    "validation": {"pairs": 16, "pictures": 1},
    # Rotated and smaller copies of the moving image would hide differences between the variants.
    "match": {"try_turns": False, "smaller_copy": 1.0},
}
WEIGHTS = ObjectiveSettings().weights  # of the loss terms that the full objective contains
VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    "raw stem": {"model": {"stem": "raw"}},
    "dual encoder": {"model": {"encoders": "dual"}},
    "triplet": {"loss": {"descriptor": "triplet"}},
    **{f"no {term}": {"loss": {"weights": WEIGHTS | {term: 0.0}}} for term in WEIGHTS},
    # Three views of each sample, because data/generated holds a third as many pairs of these modes
    # as data/release: the number of steps is the same.
    "procedural only": {"train": {"views_per_sample": 3}},
    "staged": {},
}
# Weights of the successive runs of "staged"; each run is one epoch.
STAGED_WEIGHTS = (WEIGHTS | {"geo": 0.0, "pke": 0.0}, WEIGHTS | {"pke": 0.0}, WEIGHTS)
# Columns of the table: kind of pairs, rotation of the moving image in degrees.
SCORES = (("generated", 0.0), ("real", 0.0), ("real", 30.0), ("real", 45.0))
# The same draws and stresses for every variant.
EVALUATION = (
    *("--draws", 1, "--draw_rotation", 45, "--draw_scale", 1.4, "--draw_overlap", 0.5),
    *("--rotations", *sorted({angle for _, angle in SCORES})),
    *("--compare", "superretina", "--no_pictures", "--report_cases", 0, "--overwrite"),
)


def train(
    name: str,
    change: dict[str, Any],
    data: str,
    args: argparse.Namespace,
    pretrained: Path | None = None,
) -> Path:
    """Train one run unless it is finished; continue it if it was interrupted.

    Args:
        name: name of the run, without the prefix "ablation_".
        change: settings on top of ``BASE_CONFIG`` and ``BUDGET``.
        data: folder of generated data.
        args: of the command.
        pretrained: checkpoint with the initial weights; None starts from random weights.

    Returns:
        The last checkpoint of the run.
    """
    file_name = name.replace(" ", "_")
    folder = Path(args.save) / "_".join(MODES) / f"ablation_{file_name}"
    checkpoint, finished = folder / "latest.pth", folder / "finished"
    if finished.is_file():
        return checkpoint
    config = Path(args.save) / "ablations" / f"{file_name}.yaml"
    settings = merge_settings(merge_settings(read_config(BASE_CONFIG), BUDGET), change)
    write_text_atomically(config, yaml.safe_dump(settings, sort_keys=False))
    command: list[object] = ["train_multimodal_e2e.py", "--config", config, "--data", data]
    command += ["--mode", *MODES, "--name", folder.name, "--save", args.save]
    command += ["--precision", args.precision]
    if checkpoint.is_file():
        command += ["--resume"]
    elif pretrained:
        command += ["--pretrained", pretrained]
    run(*command)
    write_text_atomically(finished, "")
    return checkpoint


def train_variant(name: str, args: argparse.Namespace) -> Path:
    """Train all runs of a variant. Returns its last checkpoint."""
    if name == "staged":
        return train_stages(args)
    data = args.procedural if name == "procedural only" else args.data
    return train(name, VARIANTS[name], data, args)


def train_stages(args: argparse.Namespace) -> Path:
    """Train the runs of "staged", each from the weights of the previous one.

    Returns:
        The checkpoint of the last run.
    """
    checkpoints: list[Path | None] = [None]
    for number, weights in enumerate(STAGED_WEIGHTS, start=1):
        change = {"loss": {"weights": weights}, "train": {"epochs": 1}}
        checkpoints.append(train(f"staged {number}", change, args.data, args, checkpoints[-1]))
    last = checkpoints[-1]
    assert last is not None
    return last


def evaluate(name: str, checkpoint: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Evaluate a variant on the test eyes of the reference run and on the real pairs.

    Returns:
        The records of the evaluation's ``metrics.json``.
    """
    out = Path(args.save) / "ablations" / name.replace(" ", "_")
    split = Path(args.save) / "_".join(MODES) / "ablation_reference" / "split.yaml"
    real = ["--real", *sorted(Path(args.real).iterdir())] if args.real else []
    generated = ["--generated", args.data, "--generated_mode", *MODES, "--split", split]
    run("evaluate.py", *real, *generated, *EVALUATION, "--weights", checkpoint, "--out", out)
    return json.loads((out / "metrics.json").read_text())["results"]


def score(records: list[dict[str, Any]], kind: str, angle: float) -> str:
    """Number of pairs below 5 px at 512 and number of all pairs, "5/8"; "-" where there are none.

    Args:
        records: results of an evaluation.
        kind: "generated", or "real" for all sets of real pairs.
        angle: rotation of the moving image, degrees.
    """
    sets = {record["set"] for record in records}
    wanted = {"generated"} if kind == "generated" else sets - {"generated", ALL_REAL}
    chosen = [each for each in records if each["set"] in wanted and each["rotation"] == angle]
    total = sum(record["pairs"] for record in chosen)
    below = sum(record["success_median5"] * record["pairs"] for record in chosen)
    return f"{below:.0f}/{total:.0f}" if total else "-"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown table of the records of each variant."""
    rows = {
        name: {f"{kind}, {angle:g}°": score(records, kind, angle) for kind, angle in SCORES}
        for name, records in results.items()
    }
    return markdown_table("variant", rows) + "\n"


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="generated data of all sources")
    parser.add_argument(
        "--procedural", help="generated data of procedural eyes only, for 'procedural only'"
    )
    parser.add_argument("--real", help="folder that holds folders of real pairs")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        metavar="VARIANT",
        help="variants to train and evaluate besides the reference (default: all)",
    )
    parser.add_argument("--precision", default="32", help="of the training")
    parser.add_argument("--save", default="save", help="folder of all runs")
    parser.add_argument("--doc", type=Path, help="document whose table is replaced")
    return parser


def main() -> None:
    """Train and evaluate the variants; write the table after each of them."""
    args = get_args_parser().parse_args()
    results = {}
    for name in ["reference", *(name for name in args.only if name != "reference")]:
        if name == "procedural only" and not args.procedural:
            print("procedural only: left out, because --procedural is not given", file=sys.stderr)
            continue
        results[name] = evaluate(name, train_variant(name, args), args)
        write_text_atomically(Path(args.save) / "ablations" / "table.md", table(results))
        if args.doc:
            write_into(args.doc, table(results))
    print(table(results))


if __name__ == "__main__":
    run_script(main)
