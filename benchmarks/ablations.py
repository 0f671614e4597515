"""What each part of the recipe is worth: the same budget with one thing changed, scored on unseen generated and on real pairs.

    python -m benchmarks.ablations --data data/release --procedural data/generated --real ../shared/data/real_pairs
    python -m benchmarks.ablations --only reference "raw stem" --data data/release

Trains what is not trained yet (save/<mode>/ablation_*), evaluates every variant with the same draws, and writes
save/ablations/table.md and, with --doc, between that file's markers. "staged" is the scheme that the joint objective replaces:
the same steps in three runs, detector and descriptor first, then the geometric term, then the keypoint expansion.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.loftr_study import write_into
from evaluation.running import ALL_REAL
from utils.commands import run
from utils.config import read_yaml
from utils.errors import run_script
from utils.files import write_text_atomically

BASE_CONFIG = "configs/superretina_release.yaml"
MODES = ("cffa", "cfoct")
# Milder than the release, for a budget of minutes: what is compared is the parts, not the reach.
BUDGET: dict[str, Any] = {
    "view": {"ramp_epochs": 2, "scale": [0.7, 1.45], "rotation_deg": 45},
    "data": {"ranges": {"p_apply": 0.3}},
    "train": {"epochs": 3, "views_per_sample": 1},
    "validation": {"views": 16, "pictures": 1},
    # Copies of the moving image would cover up much of what the variants differ in.
    "match": {"try_turns": False, "smaller_copy": 1.0},
}
FULL = {"det": 1.0, "des": 1.0, "geo": 0.5, "pke": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {},
    "raw stem": {"model": {"stem": "raw"}},
    "dual encoder": {"model": {"encoders": "dual"}},
    "triplet": {"loss": {"descriptor": "triplet"}},
    **{f"no {name}": {"loss": {"weights": FULL | {name: 0.0}}} for name in FULL},
    # data/generated holds a third as many pairs of these kinds as data/release: the same number of steps.
    "procedural only": {"train": {"views_per_sample": 3}},
    "staged": {},
}
STAGES = (FULL | {"geo": 0.0, "pke": 0.0}, FULL | {"pke": 0.0}, FULL)
STAGE_EPOCHS = (1, 1, 1)
SCORES = (("generated", 0.0), ("real", 0.0), ("real", 30.0), ("real", 45.0))


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``change`` in place of its own, level by level."""
    result = dict(base)
    for name, value in change.items():
        nested = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if nested else value
    return result


def train(
    name: str,
    change: dict[str, Any],
    data: str,
    args: argparse.Namespace,
    pretrained: Path | None = None,
) -> Path:
    """Train one run if it is not there yet. Returns its last checkpoint."""
    folder = Path(args.save) / "_".join(MODES) / f"ablation_{name.replace(' ', '_')}"
    checkpoint = folder / "latest.pth"
    done = folder / "finished"
    if not done.is_file():
        config = merged(merged(read_yaml(BASE_CONFIG), BUDGET), change)
        file = Path(args.save) / "ablations" / f"{name.replace(' ', '_')}.yaml"
        write_text_atomically(file, yaml.safe_dump(config, sort_keys=False))
        start = (
            ["--resume"]
            if checkpoint.is_file()
            else ["--pretrained", pretrained]
            if pretrained
            else []
        )
        run(
            "train_multimodal_e2e.py",
            "--config",
            file,
            "--data",
            data,
            "--mode",
            *MODES,
            "--name",
            folder.name,
            "--save",
            args.save,
            "--precision",
            args.precision,
            *start,
        )
        write_text_atomically(done, "")
    return checkpoint


def train_variant(name: str, args: argparse.Namespace) -> Path:
    """Train a variant, in its stages if it has several. Returns its last checkpoint."""
    data = args.procedural if name == "procedural only" else args.data
    if name != "staged":
        return train(name, VARIANTS[name], data, args)
    checkpoint = None
    for number, (weights, epochs) in enumerate(zip(STAGES, STAGE_EPOCHS, strict=True), start=1):
        change = {"loss": {"weights": weights}, "train": {"epochs": epochs}}
        checkpoint = train(f"staged {number}", change, data, args, checkpoint)
    return checkpoint


def evaluate(name: str, checkpoint: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Records of ``metrics.json`` of a variant; the generated test eyes are those of the reference run for all."""
    out = Path(args.save) / "ablations" / name.replace(" ", "_")
    reference = Path(args.save) / "_".join(MODES) / "ablation_reference" / "split.yaml"
    real = ["--data", *sorted(Path(args.real).iterdir())] if args.real else []
    run(
        "evaluate.py",
        *real,
        "--generated",
        args.data,
        "--generated_mode",
        "+".join(MODES),
        "--split",
        reference,
        "--draws",
        1,
        "--draw_rotation",
        45,
        "--draw_scale",
        1.4,
        "--draw_overlap",
        0.5,
        "--compare",
        "superretina",
        "--weights",
        checkpoint,
        "--rotations",
        *sorted({angle for _, angle in SCORES}),
        "--no_pictures",
        "--report_cases",
        0,
        "--overwrite",
        "--out",
        out,
    )
    return json.loads((out / "metrics.json").read_text())["results"]


def score(records: list[dict[str, Any]], kind: str, angle: float) -> str:
    """Pairs under 5 px of all pairs of a kind at an angle, "-" where there are none."""
    wanted = (
        {"generated"}
        if kind == "generated"
        else {record["set"] for record in records} - {"generated", ALL_REAL}
    )
    chosen = [
        record for record in records if record["set"] in wanted and record["rotation"] == angle
    ]
    total = sum(record["pairs"] for record in chosen)
    found = sum(record["success_median5"] * record["pairs"] for record in chosen)
    return f"{found:.0f}/{total:.0f}" if total else "-"


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """The table in Markdown."""
    heads = [f"{kind}, {angle:g}°" for kind, angle in SCORES]
    lines = ["| variant | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(score(records, *which) for which in SCORES) + " |"
        for name, records in results.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, evaluate, write the table; after every variant, so that a stopped study shows what it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="generated data of all sources")
    parser.add_argument(
        "--procedural", help="generated data of invented eyes alone, for 'procedural only'"
    )
    parser.add_argument("--real", help="folder of folders of real pairs")
    parser.add_argument(
        "--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT"
    )
    parser.add_argument("--precision", default="32")
    parser.add_argument("--save", default="save")
    parser.add_argument("--doc", type=Path, help="document whose table is replaced")
    args = parser.parse_args()
    results = {}
    for name in ["reference", *(name for name in args.only if name != "reference")]:
        if name == "procedural only" and not args.procedural:
            print("procedural only: left out, for --procedural is not given", file=sys.stderr)
            continue
        results[name] = evaluate(name, train_variant(name, args), args)
        write_text_atomically(Path(args.save) / "ablations" / "table.md", table(results))
        if args.doc:
            write_into(args.doc, table(results))
    print(table(results))


if __name__ == "__main__":
    run_script(main)
