"""Study of LoFTR v3: base, v3, masked gradient, full fine-tuning, soft mask, no mask; and its cost.

    python -m benchmarks.loftr_study --data data/generated --real ../shared/data/real_pairs \
        --seeds 0 1 --precision bf16 --doc docs/loftr_v3.md
    python -m benchmarks.loftr_study --only accuracy --seeds 0   # one seed; two processes can share
    python -m benchmarks.loftr_study --only cost                 # seconds and memory per step only

Measures the accuracy of every variant on (i) generated pairs of held-out eyes, (ii) real landmark
pairs, unchanged and rotated by 30 degrees, and (iii) photographs outside of the training domain
under known homographies, in the bare view and with the whole pipeline; and the time and memory of a
training step with and without frozen modules. For each seed all variants start from the same base,
take the same number of steps and are scored at their last epoch; the base is scored at the epoch
that its validation chose.

Writes the runs to save/<mode>/study_<seed>_<variant>, the errors of each pair to --record and the
tables to save/loftr_study/table.md; with --doc the tables also go between the markers of that
document. A recorded result is neither trained nor scored again. If the record lacks a variant and
the checkpoint of its base is gone, that base is trained again, with the same seed.
"""

from __future__ import annotations

import argparse
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.documents import markdown_table, write_into
from benchmarks.loftr_cost import WARM_UP_STEPS, compare_costs
from benchmarks.loftr_scores import COLUMNS, LIMIT_PX, cell, real_folders, score
from benchmarks.study_record import Key, StudyRecord, Values
from dataset.real_pairs import load_real_pairs
from dataset.samples import discover_samples
from synthesis.generated_set import DEFAULT_EYES, MANIFEST, write_generated_set
from training.arguments import DEFAULT_DATA
from training.loftr_config import LoFTRConfig
from training.processes import PRECISIONS
from training.run_config import differences
from utils.checkpoint import read_checkpoint
from utils.commands import run
from utils.config import build, read_config, read_yaml
from utils.errors import InputError, run_script
from utils.files import write_text_atomically

DEFAULT_CONFIG = "configs/loftr_v3_lite.yaml"
DEFAULT_RECORD = Path("docs/studies/loftr_study.json")
BASE = "base"
# Arguments of train_loftr_v3.py for each row of the table; the others start from the base.
VARIANTS: dict[str, list[object]] = {
    BASE: [],
    "v3": [],
    "v3, masked gradient": ["--mask_gradient"],
    "full fine-tuning": ["--freeze", "none"],
    "v3, soft mask": ["--mask", "soft"],
    "v3, no mask": ["--mask", "none"],
}


def folder_of(variant: str, seed: int, args: argparse.Namespace) -> Path:
    """Folder of a run: ``save/<mode>/study_<seed>_<variant>``."""
    return args.save / args.mode / f"study_{seed}_{re.sub(r'[^a-z0-9]+', '_', variant)}"


def train(variant: str, seed: int, args: argparse.Namespace) -> Path:
    """Train a run unless it is complete; continue it if it was interrupted.

    Args:
        variant: key of ``VARIANTS``; the base of the seed must be trained before its variants.
        seed: of weights, split and views.
        args: of the study.

    Returns:
        The checkpoint to score, or to start from.

    Raises:
        InputError: a run of that name with other settings.
    """
    folder = folder_of(variant, seed, args)
    is_base = variant == BASE
    epochs = args.base_epoch if is_base else args.epoch
    latest = folder / "latest.pth"
    checkpoint = folder / "best.pth" if is_base else latest
    command: list[object] = ["train_loftr_v3.py", "--name", folder.name, "--mode", args.mode]
    command += ["--save", args.save, "--data", args.data, "--stage", BASE if is_base else "v3"]
    if latest.exists():
        content = read_checkpoint(latest, ["epoch", "config"])
        check_run(folder, content["config"], seed, epochs, args)
        if content["epoch"] >= epochs:
            print(f"\n{folder} is complete.", flush=True)
            return checkpoint
        command += ["--resume"]
    else:
        command += ["--config", args.config, "--precision", args.precision, "--seed", seed]
        command += ["--epoch", epochs, *VARIANTS[variant]]
        command += [] if is_base else ["--pretrained", train(BASE, seed, args)]
    run(*command)
    return checkpoint


def check_run(
    folder: Path, saved: dict[str, Any], seed: int, epochs: int, args: argparse.Namespace
) -> None:
    """Refuse a run that is there already but has other settings.

    Args:
        folder: of the run.
        saved: entry ``config`` of its checkpoint.
        seed, epochs: wanted.
        args: of the study.

    Raises:
        InputError: another seed, number of epochs, precision or data folder.
    """
    settings = saved["settings"]
    was = {
        "seed": settings["seed"],
        "epochs": settings[settings["stage"]]["train"]["epochs"],
        "precision": saved["precision"],
        "data": str(Path(saved["data"]).resolve()),
    }
    wanted = {
        "seed": seed,
        "epochs": epochs,
        "precision": args.precision,
        "data": str(Path(args.data).resolve()),
    }
    changed = differences(was, wanted)
    if changed:
        raise InputError(
            f"{folder}: this run has other settings: {'; '.join(changed)}. Delete it, give another "
            "--save, or --overwrite to train all runs of these seeds again."
        )


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on besides variant and seed, for the record.

    Args:
        args: of the study.
    """
    manifest = Path(args.data) / MANIFEST
    return {
        "config": read_config(args.config),
        "base_epochs": args.base_epoch,
        "epochs": args.epoch,
        "precision": args.precision,
        "mode": args.mode,
        "data": read_yaml(manifest) if manifest.is_file() else {"folder": Path(args.data).name},
        "pairs": len(discover_samples(args.data, [args.mode])[0]),
        "real_pairs": {
            folder.name: len(load_real_pairs(folder, folder.name))
            for folder in real_folders(args.real)
        },
        "columns": [column.title for column in COLUMNS],
        "limit_px": LIMIT_PX,
    }


def study_accuracy(args: argparse.Namespace) -> str:
    """Train and score what the record lacks.

    Args:
        args: of the study.

    Returns:
        The table in Markdown.

    Raises:
        InputError: a record of other settings, without ``--overwrite``.
    """
    record = StudyRecord(args.record, settings_of(args))
    if args.overwrite:
        record.drop(args.seeds)
        for seed, variant in product(args.seeds, VARIANTS):
            if folder_of(variant, seed, args).exists():
                shutil.rmtree(folder_of(variant, seed, args))
    record.check()
    for seed, variant in product(args.seeds, VARIANTS):
        if (variant, seed) in record.results():
            print(f"{variant}, seed {seed}: recorded in {args.record}", flush=True)
            continue
        checkpoint = train(variant, seed, args)
        record.add(variant, seed, score(checkpoint, args.data, args.mode, args.real))
    return table(record.results(), args.seeds)


def table(results: dict[Key, Values], seeds: list[int]) -> str:
    """Markdown table of the recorded errors, one row for each variant.

    Args:
        results: errors of each pair, by variant and seed.
        seeds: of the results that are shown.
    """
    rows = {
        variant: {
            column: cell([results[variant, seed][column] for seed in seeds])
            for column in results[variant, seeds[0]]
        }
        for variant in VARIANTS
    }
    return markdown_table("variant", rows)


def study_cost(config: LoFTRConfig, args: argparse.Namespace) -> str:
    """Measure a training step with and without frozen modules. Returns the table in Markdown."""
    return compare_costs(config, args.data, args.mode, args.steps, args.repeats)


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=DEFAULT_CONFIG, help="settings of all runs")
    add("--data", default=DEFAULT_DATA, help="generated data")
    add("--mode", default="cffa", help="kind of the generated pairs")
    add(
        "--real",
        type=Path,
        default=Path("../shared/data/real_pairs"),
        help="folder that holds folders of real landmark pairs",
    )
    add("--save", type=Path, default=Path("save"), help="folder of all runs")
    add("--out", type=Path, default=Path("save/loftr_study"), help="folder of the tables")
    add("--doc", type=Path, help="document whose tables are replaced")
    add("--precision", default="32", choices=list(PRECISIONS), help="of the training")
    add("--base_epoch", type=int, help="epochs of the base (default: the config's)")
    add("--epoch", type=int, help="epochs of each variant (default: the config's)")
    add("--only", choices=("accuracy", "cost"), help="one part of the study")
    add(
        "--steps",
        type=int,
        default=8,
        help=f"steps of a cost measurement; the first {WARM_UP_STEPS} are not timed",
    )
    add("--repeats", type=int, default=2, help="cost measurements of each variant")
    add_record_arguments(parser)
    return parser


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about the seeds and the record of the results.

    Args:
        parser: is extended.
    """
    add = parser.add_argument
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        help="train and score everything once with each (default: 0)",
    )
    add(
        "--record",
        type=Path,
        default=DEFAULT_RECORD,
        help=f"JSON file of the results so far (default: {DEFAULT_RECORD})",
    )
    add(
        "--overwrite",
        action="store_true",
        help="first delete the runs and the recorded results of these seeds; of all seeds, if the "
        "record has other settings",
    )


def main() -> None:
    """Run the study, print its tables and write them."""
    args = get_args_parser().parse_args()
    if args.steps <= WARM_UP_STEPS:
        raise InputError(f"--steps must be at least {WARM_UP_STEPS + 1}.")
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise InputError("--seeds: give each seed once; none may be negative.")
    config = build(LoFTRConfig, read_config(args.config), args.config)
    args.base_epoch = args.base_epoch or config.base.train.epochs
    args.epoch = args.epoch or config.v3.train.epochs
    if args.data == DEFAULT_DATA and not Path(args.data).exists():
        write_generated_set(Path(args.data), DEFAULT_EYES, processes=2)
    parts = []
    if args.only in (None, "accuracy"):
        parts.append(study_accuracy(args))
    if args.only in (None, "cost"):
        parts.insert(0, study_cost(config, args))
    text = "\n\n".join(parts)
    write_text_atomically(args.out / "table.md", text + "\n")
    if args.doc:
        write_into(args.doc, text)
    print(f"\n{text}\n\nWritten: {args.out / 'table.md'}")


if __name__ == "__main__":
    run_script(main)
