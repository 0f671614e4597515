"""Ablation study: train with one thing changed and the same number of steps; score the bare view.

    python -m benchmarks.ablations --mixed data/release --real ../shared/data/real_pairs \\
        --doc docs/measured.md
    python -m benchmarks.ablations --only reference "L_geo of the plan" --seeds 0

Each variant is trained once for each seed: 2,070 steps of 4 pairs of 128 px of CF-FA and CF-OCT.
Measured at the last step, in the bare view, with the same pairs for all: on validation eyes the
repeatability and localisation error of the detector, the share of right matches and the
registrations; on test eyes and on real pairs the registrations at 15, 30 and 45 degrees. Defaults
are chosen by the figures of the validation eyes. "untrained" has random weights. "staged" trains in
three runs with the same total number of steps: detector and descriptor first, then with the
geometric term, then with the keypoint expansion.

Every result is added to --record as it is measured, and not measured again. Writes runs to
save/<mode>/ablation_*, tables and plot to save/ablations; with --doc the table also goes between
the markers of that document. A run takes 6 to 10 minutes on one core; two processes with different
--seeds can share the record.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ablation_table import REFERENCE, draw_differences, table
from benchmarks.ablation_variants import (
    BASE_CONFIG,
    BUDGET,
    MIXED,
    MODES,
    STAGED,
    STAGES,
    UNTRAINED,
    VARIANTS,
)
from benchmarks.documents import write_into
from benchmarks.study_record import StudyRecord, Values
from dataset.aligned_pairs import AlignedPairs
from dataset.samples import discover_samples
from dataset.split import read_manifest, split_by_eye, write_manifest
from evaluation.statistics import ALL_REAL
from registration.trained_matchers import load_matcher, untrained_matcher
from training.arguments import DEFAULT_DATA
from training.superretina_step import SuperRetinaConfig
from training.validation import ValidationSettings, Validator
from utils.commands import run
from utils.config import build, merge_settings, read_config, to_plain
from utils.errors import run_script
from utils.files import write_text_atomically

# Of the validation eyes: two pairs of each mode of each eye.
CHECKS = ValidationSettings(pairs=56, pictures=0, rotation_deg=45.0, scale=(0.7, 1.45))
# Rotations of the moving image at which test pairs and real pairs are registered, degrees.
TEST_ROTATIONS = (30,)
REAL_ROTATIONS = (0, 15, 30, 45)


def settings_of_runs(args: argparse.Namespace) -> dict[str, Any]:
    """All that the results depend on, besides variant and seed, for the record."""
    settings = merge_settings(read_config(BASE_CONFIG), BUDGET)
    config = build(SuperRetinaConfig, settings, BASE_CONFIG)
    parts = (config.model, config.match.bare(), config.view, config.data, config.loss, config.train)
    return {
        "base": {type(part).__name__: to_plain(part) for part in parts},
        "modes": list(MODES),
        "precision": args.precision,
        "checks": {"pairs": CHECKS.pairs, "rotation_deg": CHECKS.rotation_deg},
        "rotations": {"test": list(TEST_ROTATIONS), "real": list(REAL_ROTATIONS)},
    }


def train(
    name: str, seed: int, change: dict[str, Any], data: str, args: argparse.Namespace, *more: object
) -> Path:
    """Train one run unless it is finished; continue it if it was interrupted.

    Args:
        name: of the run, without the prefix "ablation_" and the seed.
        seed: of weights and views.
        change: settings on top of ``BASE_CONFIG`` and ``BUDGET``.
        data: folder of generated data.
        args: of the command.
        *more: further arguments of a new run.

    Returns:
        The folder of the run.
    """
    file_name = re.sub(r"[^a-z0-9]+", "_", name.lower())
    folder = Path(args.save) / "_".join(MODES) / f"ablation_{file_name}_{seed}"
    if (folder / "finished").is_file():
        return folder
    config = Path(args.save) / "ablations" / f"{folder.name}.yaml"
    settings = merge_settings(merge_settings(read_config(BASE_CONFIG), BUDGET), change)
    write_text_atomically(config, yaml.safe_dump(settings, sort_keys=False))
    command: list[object] = ["train_multimodal_e2e.py", "--config", config, "--data", data]
    command += ["--mode", *MODES, "--name", folder.name, "--save", args.save, "--seed", seed]
    command += ["--precision", args.precision]
    run(*command, *(["--resume"] if (folder / "latest.pth").is_file() else more))
    write_text_atomically(folder / "finished", "")
    return folder


def train_variant(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Train all runs of a variant. Returns the folder of the last one."""
    if name == UNTRAINED:
        return train_variant(REFERENCE, seed, args)
    if name == MIXED:
        return train(name, seed, VARIANTS[name], args.mixed, args)
    if name != STAGED:
        return train(name, seed, VARIANTS[name], args.data, args)
    start: list[object] = []
    for number, change in enumerate(STAGES, start=1):
        folder = train(f"staged {number}", seed, change, args.data, args, *start)
        start = ["--pretrained", folder / "latest.pth"]
    return folder


def validate(name: str, seed: int, folder: Path, args: argparse.Namespace) -> Values:
    """Figures of the validation eyes."""
    checkpoint = folder / "latest.pth"
    matcher, limits = load_matcher(checkpoint)
    if name == UNTRAINED:
        matcher = untrained_matcher(checkpoint, seed)
    eyes = set(read_manifest(write_split(args))["val"])
    samples, _ = discover_samples(args.data, MODES)
    whole = CHECKS.view_geometry(matcher.settings.long_side)
    chosen = [sample for sample in samples if sample.eye in eyes]
    views = AlignedPairs(chosen, whole, None, CHECKS.seed)
    validator = Validator(matcher, views, [], CHECKS, limits)
    scores = validator.score(0, Path(args.save) / "ablations")
    return {name: [value] for name, value in validator.report(scores).summary.items()}


def write_split(args: argparse.Namespace) -> Path:
    """Write the split of ``--data`` that all runs on it have. Returns the file."""
    data = build(SuperRetinaConfig, read_config(BASE_CONFIG), BASE_CONFIG).data
    eyes = [sample.eye for sample in discover_samples(args.data, MODES)[0]]
    split = split_by_eye(eyes, data.val_test_share, data.split_seed)
    path = Path(args.save) / "ablations" / "split.yaml"
    write_manifest(path, [args.data], data.split_seed, split)
    return path


def test(name: str, seed: int, folder: Path, args: argparse.Namespace) -> Values:
    """Success rates, in the bare view, of pairs of test eyes and of real pairs."""
    method = ["superretina"]
    if name == UNTRAINED:
        method = ["untrained", "--untrained_seed", str(seed)]
    command = ["evaluate.py", "--bare", "--weights", folder / "latest.pth", "--compare", *method]
    command += ["--no_pictures", "--report_cases", 0, "--overwrite"]
    out = Path(args.save) / "ablations" / f"{folder.name}_{method[0]}"
    generated = ["--generated", args.data, "--generated_mode", *MODES]
    generated += ["--split", write_split(args), "--draws", 1, "--draw_rotation", 0]
    run(*command, *generated, "--rotations", *TEST_ROTATIONS, "--out", out / "test")
    values = success_rates(out / "test", "test")
    if args.real:
        real = ["--real", *sorted(Path(args.real).iterdir()), "--rotations", *REAL_ROTATIONS]
        run(*command, *real, "--out", out / "real")
        values |= success_rates(out / "real", "real")
    return values


def success_rates(out: Path, prefix: str) -> Values:
    """Share of the pairs below 5 px for each rotation, over all sets of an evaluation.

    Args:
        out: folder of the evaluation.
        prefix: begins the names of the columns.
    """
    records = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["results"]
    values: Values = {}
    for angle in sorted({record["rotation"] for record in records}):
        # The union of the real sets would count every pair twice.
        chosen = [each for each in records if each["rotation"] == angle and each["set"] != ALL_REAL]
        total = sum(record["pairs"] for record in chosen)
        below = sum(record["success_median5"] * record["pairs"] for record in chosen)
        values[f"{prefix} {angle:g}"] = [below / total]
    return values


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default=DEFAULT_DATA, help="generated data of all variants but one")
    add("--mixed", help=f"generated data of several sources, for '{MIXED}'")
    add("--real", help="folder that holds folders of real pairs")
    add(
        "--only",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        metavar="VARIANT",
        help="variants besides the reference (default: all)",
    )
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="each variant is trained for each")
    add("--precision", default="bf16", help="of the training")
    add("--save", default="save", help="folder of all runs")
    add("--record", type=Path, default=Path("docs/studies/ablations.json"), help="of the results")
    add("--doc", type=Path, help="document whose table is replaced")
    return parser


def main() -> None:
    """Train and measure what the record lacks; write the table after each result."""
    args = get_args_parser().parse_args()
    record = StudyRecord(args.record, settings_of_runs(args))
    record.check()
    names = [REFERENCE, *(name for name in args.only if name != REFERENCE)]
    out = Path(args.save) / "ablations"
    for seed in args.seeds:
        for name in names:
            if name == MIXED and not args.mixed:
                print(f"{MIXED}: left out, because --mixed is not given", file=sys.stderr)
            elif (name, seed) not in record.results():
                folder = train_variant(name, seed, args)
                values = validate(name, seed, folder, args) | test(name, seed, folder, args)
                record.add(name, seed, values)
            write_text_atomically(out / "table.md", table(record.results()) + "\n")
    draw_differences(out / "ablations.png", record.results())
    if args.doc:
        write_into(args.doc, table(record.results()))
    print(table(record.results()))


if __name__ == "__main__":
    run_script(main)
