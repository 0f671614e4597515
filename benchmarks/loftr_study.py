"""Study of LoFTR v3: base, v3, full fine-tuning, soft mask, no mask, and the cost of a step.

    python -m benchmarks.loftr_study --data data/generated --real ../shared/data/real_pairs \
        --doc docs/loftr_v3.md
    python -m benchmarks.loftr_study --only cost           # seconds and memory per step only

Measures the accuracy of every variant on (i) generated pairs of held-out eyes, (ii) real landmark
pairs, unchanged and rotated by 30 degrees, and (iii) photographs outside of the training domain
under known homographies; and the time and memory of a training step with and without frozen
modules. All variants start from the same base, take the same number of steps and are scored at
their last epoch; the base is scored at the epoch that its validation chose.

Writes the runs to save/<mode>/study_* and the tables to save/loftr_study/table.md; with --doc the
tables also go between the markers of that document. Complete runs are not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.documents import markdown_table, write_into
from benchmarks.loftr_cost import WARM_UP_STEPS, compare_costs
from benchmarks.loftr_scores import score
from synthesis.generated_set import DEFAULT_EYES, write_generated_set
from training.arguments import DEFAULT_DATA
from training.loftr_config import LoFTRConfig
from training.processes import PRECISIONS
from utils.checkpoint import read_checkpoint
from utils.commands import run
from utils.config import build, read_config
from utils.errors import InputError, run_script
from utils.files import write_text_atomically

DEFAULT_CONFIG = "configs/loftr_v3_lite.yaml"
# Arguments of train_loftr_v3.py for each variant of the stage v3.
VARIANTS: dict[str, list[object]] = {
    "v3": [],
    "full fine-tuning": ["--freeze", "none"],
    "v3, soft mask": ["--mask", "soft"],
    "v3, no mask": ["--mask", "none"],
}


def train(name: str, arguments: list[object], args: argparse.Namespace, epochs: int | None) -> Path:
    """Train a run unless it is complete; continue it if it was interrupted.

    Args:
        name: name of the run.
        arguments: of train_loftr_v3.py, besides those of all runs.
        args: of the study.
        epochs: number of epochs; the config's when None.

    Returns:
        The folder of the run.
    """
    run_folder = args.save / args.mode / name
    latest = run_folder / "latest.pth"
    command: list[object] = ["train_loftr_v3.py", "--name", name, "--mode", args.mode]
    command += ["--save", args.save, "--data", args.data]
    if latest.exists():
        content = read_checkpoint(latest, ["epoch", "config"])
        settings = content["config"]["settings"]
        if content["epoch"] >= settings[settings["stage"]]["train"]["epochs"]:
            print(f"\n{run_folder} is complete; delete it to train it again.")
            return run_folder
        command += ["--resume"]
    else:
        command += ["--config", args.config, "--precision", args.precision, *arguments]
        command += ["--epoch", epochs] if epochs else []
    run(*command)
    return run_folder


def study_accuracy(args: argparse.Namespace) -> str:
    """Train and score the base and every variant. Returns the table in Markdown."""
    base = train("study_base", ["--stage", "base"], args, args.base_epoch) / "best.pth"
    rows = {"base": score(base, args.data, args.mode, args.real)}
    for index, (title, arguments) in enumerate(VARIANTS.items()):
        folder = train(f"study_{index}", ["--pretrained", base, *arguments], args, args.epoch)
        rows[title] = score(folder / "latest.pth", args.data, args.mode, args.real)
    return markdown_table("variant", rows)


def study_cost(args: argparse.Namespace) -> str:
    """Measure a training step with and without frozen modules. Returns the table in Markdown."""
    config = build(LoFTRConfig, read_config(args.config), args.config)
    return compare_costs(config, args.data, args.mode, args.steps, args.repeats)


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="settings of all runs")
    parser.add_argument("--data", default=DEFAULT_DATA, help="generated data")
    parser.add_argument("--mode", default="cffa", help="kind of the generated pairs")
    parser.add_argument(
        "--real",
        type=Path,
        default=Path("../shared/data/real_pairs"),
        help="folder that holds folders of real landmark pairs",
    )
    parser.add_argument("--save", type=Path, default=Path("save"), help="folder of all runs")
    parser.add_argument(
        "--out", type=Path, default=Path("save/loftr_study"), help="folder of the tables"
    )
    parser.add_argument("--doc", type=Path, help="document whose tables are replaced")
    parser.add_argument(
        "--precision", default="32", choices=list(PRECISIONS), help="of the training"
    )
    parser.add_argument("--base_epoch", type=int, help="epochs of the base")
    parser.add_argument("--epoch", type=int, help="epochs of every variant")
    parser.add_argument("--only", choices=("accuracy", "cost"), help="one part of the study")
    parser.add_argument(
        "--steps",
        type=int,
        default=8,
        help=f"steps of a cost measurement; the first {WARM_UP_STEPS} are not timed",
    )
    parser.add_argument("--repeats", type=int, default=2, help="cost measurements of each variant")
    return parser


def main() -> None:
    """Run the study, print its tables and write them."""
    args = get_args_parser().parse_args()
    if args.steps <= WARM_UP_STEPS:
        raise InputError(f"--steps must be at least {WARM_UP_STEPS + 1}.")
    if args.data == DEFAULT_DATA and not Path(args.data).exists():
        write_generated_set(Path(args.data), DEFAULT_EYES, processes=2)
    parts = []
    if args.only in (None, "cost"):
        parts.append(study_cost(args))
    if args.only in (None, "accuracy"):
        parts.append(study_accuracy(args))
    text = "\n\n".join(parts)
    write_text_atomically(args.out / "table.md", text + "\n")
    if args.doc:
        write_into(args.doc, text)
    print(f"\n{text}\n\nWritten: {args.out / 'table.md'}")


if __name__ == "__main__":
    run_script(main)
