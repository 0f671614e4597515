"""Study of learning from real images: is the gap between generated and real pairs closed, and how?

    python -m benchmarks.real_training --doc docs/real_training.md
    python -m benchmarks.real_training --networks shipped --seeds 0     # two processes can share

The real pairs of --real (folders of folders of landmark pairs) are divided by eye into --folds
folds. For each seed, fold, network and way of learning, a network is trained on the real pairs of
the other folds beside generated ones, for the same number of steps, and scored on the eyes of its
fold: bare view and whole pipeline, at 0, 30 and 45 degrees; and on generated pairs of test eyes.

Networks: the five-epoch network of the demo, the same with the raw stem, and the shipped weights.
Ways: zero-shot (no training), "generated" (the same training without real images, so that a gain is
not due to more steps), and with real images as single images ("self"), as registered pairs, as
both, as landmark pairs, and in all three forms.

Every result is added to --record as it is measured, and not measured again. Writes runs to
save/<mode>/real_*, tables to save/real_training; with --doc the tables also go into that document.
The data of --real may be without a licence for weights: delete the runs, do not publish them.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.documents import write_into
from benchmarks.loftr_scores import find_error, real_folders, score_generated
from benchmarks.real_training_table import table
from benchmarks.study_record import Key, StudyRecord, Values
from dataset.aligned_pairs import DataSettings
from dataset.real_pair_files import RealPairFiles
from dataset.real_pairs import find_pairs, load_pair
from dataset.samples import discover_samples
from dataset.split import Split, split_by_eye, write_manifest
from evaluation.sets import EvaluationPair
from evaluation.stress import Stress, apply_stress
from registration.registrar import DEFAULT_WEIGHTS
from registration.trained_matchers import load_matcher
from training.arguments import DEFAULT_DATA
from utils.commands import run
from utils.config import read_config
from utils.errors import run_script
from utils.files import write_text_atomically

MODES = ("cffa", "cfoct")
CONFIG = "configs/superretina_real.yaml"
BASE_CONFIG = "configs/superretina_lite.yaml"
SHIPPED = "shipped"
# Settings of the network, on top of BASE_CONFIG; the shipped weights are not trained here.
NETWORKS: dict[str, list[str]] = {
    "demo": ["model.stem=ridge"],
    "raw stem": ["model.stem=raw"],
    SHIPPED: [],
}
ZERO_SHOT, GENERATED = "zero-shot", "generated"
WAYS: dict[str, list[str]] = {
    ZERO_SHOT: [],
    GENERATED: [],
    "self": ["self"],
    "registered": ["registered"],
    "self + registered": ["self", "registered"],
    "landmarks": ["landmarks"],
    "all": ["landmarks", "registered", "self"],
}
VIEWS = ("bare", "whole")
ROTATIONS = (0, 30, 45)  # of the moving image, degrees
IMG_SIZE = 128  # side of the training views, pixels
BATCH_SIZE = 4
STEPS = 300  # of each way
BASE_EPOCHS = 5
MIN_TOLERANCE_PX = 3.0  # of transforms through landmarks, fixed px at 512
PAIRS = "pairs"  # name of the table of pairs, and so of the data set


def find_real(roots: list[Path]) -> dict[str, RealPairFiles]:
    """The landmark pairs of all sets, by a unique name, with unique eyes.

    Within a root an eye that occurs in several sets is one eye.

    Args:
        roots: folders of folders of real pairs.
    """
    found: dict[str, RealPairFiles] = {}
    folders = [(root.name, folder) for root in roots for folder in real_folders(root)]
    for root_name, folder in folders:
        for files in find_pairs(folder)[0]:
            name = f"{root_name}_{folder.name}_{files.name}"
            found[name] = files._replace(name=name, eye=f"{root_name}_{files.eye}")
    return found


def write_table(path: Path, found: dict[str, RealPairFiles]) -> Path:
    """Write the table of pairs that the training reads. Returns its path."""
    buffer = io.StringIO()
    columns = ("id", "eye", "fixed", "moving", "fixed_landmarks", "moving_landmarks")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for name, files in found.items():
        paths = (files.fixed_path, files.moving_path, *files.landmark_files)
        writer.writerow([name, files.eye, *(path.resolve() for path in paths)])
    write_text_atomically(path, buffer.getvalue())
    return path


def fold_of_eyes(eyes: set[str], fold: int, n_folds: int, seed: int) -> Split:
    """Train on the other folds, test on one; the last step is scored, so none validates.

    Args:
        eyes: of the real pairs.
        fold: from 0.
        n_folds: number of folds.
        seed: of the shuffle.
    """
    shuffled = np.random.default_rng(seed).permutation(sorted(eyes)).tolist()
    test = sorted(shuffled[fold::n_folds])
    return {"train": sorted(set(eyes) - set(test)), "val": [], "test": test}


def run_name(*parts: object) -> str:
    """Name of a run from its parts."""
    return "_".join(["real", *(re.sub(r"[^a-z0-9]+", "_", str(part).lower()) for part in parts)])


def train(name: str, arguments: list[object], args: argparse.Namespace) -> Path:
    """Train a run unless it is finished; continue it if it was interrupted.

    Returns:
        Its last checkpoint.
    """
    folder = Path(args.save) / "_".join(MODES) / name
    latest = folder / "latest.pth"
    if not (folder / "finished").is_file():
        command: list[object] = ["train_multimodal_e2e.py", "--data", args.data, "--mode", *MODES]
        command += ["--name", name, "--save", args.save]
        run(*command, *(["--resume"] if latest.is_file() else arguments))
        write_text_atomically(folder / "finished", "")
    return latest


def common(seed: int, args: argparse.Namespace) -> list[object]:
    """Arguments of every new run."""
    return [
        *("--seed", seed, "--precision", args.precision, "--img_size", IMG_SIZE),
        *("--batch_size", BATCH_SIZE, "--workers", 0, "--val_every", 1000),
    ]


def start_of(network: str, seed: int, args: argparse.Namespace) -> Path:
    """The weights that all ways of a network start from."""
    if network == SHIPPED:
        return DEFAULT_WEIGHTS
    arguments: list[object] = [
        "--config",
        BASE_CONFIG,
        "--set",
        *NETWORKS[network],
        "validation.pairs=2",
    ]
    arguments += ["--epoch", BASE_EPOCHS, *common(seed, args)]
    return train(run_name("base", network, seed), arguments, args)


def write_split(
    fold: int, seed: int, found: dict[str, RealPairFiles], args: argparse.Namespace
) -> tuple[Path, Split]:
    """Write the split of a fold. Returns the manifest and the generated eyes of each part."""
    real = fold_of_eyes({files.eye for files in found.values()}, fold, args.folds, seed)
    eyes = [sample.eye for sample in discover_samples(args.data, MODES)[0]]
    generated = split_by_eye(eyes, DataSettings().val_test_share, 0)
    named = {part: [f"{PAIRS}/{eye}" for eye in own] for part, own in real.items()}
    manifest = Path(args.save) / "real_training" / f"split_{seed}_{fold}.yaml"
    write_manifest(manifest, [args.data], None, generated, named)
    return manifest, generated


def teach(
    network: str,
    way: str,
    fold: int,
    seed: int,
    found: dict[str, RealPairFiles],
    args: argparse.Namespace,
) -> tuple[Path, Path]:
    """Train a network in one way on the real pairs outside of a fold.

    Returns:
        Its checkpoint, and the manifest of the fold.
    """
    start = start_of(network, seed, args)
    manifest, generated = write_split(fold, seed, found, args)
    if way == ZERO_SHOT:
        return start, manifest
    n_train = len(found) - len(eyes_of_fold(found, fold, seed, args))
    # A pair gives one sample in each form of pairs, and two single images.
    n_real = sum(2 * n_train if form == "self" else n_train for form in WAYS[way])
    n_samples = len(MODES) * len(generated["train"]) + n_real
    arguments: list[object] = ["--config", CONFIG, "--pretrained", start, "--split", manifest]
    arguments += ["--epoch", max(1, round(STEPS * BATCH_SIZE / n_samples)), *common(seed, args)]
    arguments += ["--set", *settings_of(network)]
    if WAYS[way]:
        pairs = write_table(Path(args.save) / "real_training" / f"{PAIRS}.csv", found)
        arguments += ["--real", pairs, "--real_forms", *WAYS[way]]
    return train(run_name(network, way, fold, seed), arguments, args), manifest


def settings_of(network: str) -> list[str]:
    """Settings of a fine-tuning on top of ``CONFIG``: the network of its base."""
    chosen = ["validation.pairs=2", "validation.select=generated"]
    # The points of real_practice follow a fitted homography; its error is unknown.
    chosen += [f"real.min_tolerance_px={MIN_TOLERANCE_PX}"]
    if network == SHIPPED:
        return chosen
    model = read_config(BASE_CONFIG)["model"]
    return [f"model.{name}={value}" for name, value in model.items()] + NETWORKS[network] + chosen


def score(weights: Path, pairs: list[RealPairFiles], manifest: Path, data: str) -> Values:
    """Errors of each held-out real pair and of generated pairs, px at 512, in both views.

    Args:
        weights: checkpoint.
        pairs: of the fold.
        manifest: names the generated test eyes.
        data: folder of generated data.
    """
    matcher, limits = load_matcher(weights)
    pipeline = matcher.settings
    loaded = [load_pair(files, PAIRS) for files in pairs]
    values: Values = {}
    for view, settings in zip(VIEWS, (pipeline.bare(), pipeline), strict=True):
        matcher.settings = settings
        for rotation in ROTATIONS:
            errors = []
            for pair in loaded:
                points = pair.fixed_landmarks, pair.moving_landmarks
                given = EvaluationPair(pair.key, pair.eye, *pair.images(), *points)
                turned = apply_stress(given, Stress(rotation=rotation))
                points = turned.fixed_landmarks, turned.moving_landmarks
                images = turned.fixed, turned.moving
                errors.append(find_error(matcher, limits, *images, *points).median)
            values[f"{view} {rotation}"] = errors
        for mode in MODES:
            values[f"{view} {mode}"] = score_generated(matcher, limits, data, mode, manifest)
    return values


def settings_of_study(found: dict[str, RealPairFiles], args: argparse.Namespace) -> dict[str, Any]:
    """All that the results depend on, besides network, way, fold and seed, for the record."""
    return {
        "config": read_config(CONFIG),
        "base": read_config(BASE_CONFIG),
        "networks": NETWORKS,
        "ways": WAYS,
        "steps": STEPS,
        "img_size": IMG_SIZE,
        "base_epochs": BASE_EPOCHS,
        "folds": args.folds,
        "precision": args.precision,
        "pairs": sorted(found),
    }


def eyes_of_fold(
    found: dict[str, RealPairFiles], fold: int, seed: int, args: argparse.Namespace
) -> list[str]:
    """Eye of each test pair of a fold, in the order in which they are scored."""
    split = fold_of_eyes({files.eye for files in found.values()}, fold, args.folds, seed)
    return [files.eye for files in found.values() if files.eye in split["test"]]


def tables(
    results: dict[Key, Values], found: dict[str, RealPairFiles], args: argparse.Namespace
) -> str:
    """One table for each network, in Markdown."""
    columns = {
        f"real {rotation}°, {view}": [f"{view} {rotation}"]
        for view, rotation in product(VIEWS, ROTATIONS)
    } | {f"generated, {view}": [f"{view} {mode}" for mode in MODES] for view in VIEWS}
    sections = []
    for network in NETWORKS:

        def runs_of(way: str, network: str = network) -> list[tuple[Key, list[str]]]:
            return [
                ((variant_of(network, way, fold), seed), eyes_of_fold(found, fold, seed, args))
                for seed, fold in product(args.seeds, range(args.folds))
            ]

        sections.append(f"**{network}**\n\n{table(results, list(WAYS), runs_of, columns)}")
    return "\n\n".join(sections)


def variant_of(network: str, way: str, fold: int) -> str:
    """Name of a result in the record."""
    return f"{network} | {way} | {fold}"


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default=DEFAULT_DATA, help="generated data")
    add(
        "--real",
        nargs="+",
        type=Path,
        default=[Path("../shared/data/real_pairs"), Path("../shared/data/real_practice")],
        help="folders that hold folders of real landmark pairs",
    )
    add("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    add("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="everything is done for each")
    add("--folds", type=int, default=3, help="of the real eyes")
    add("--precision", default="bf16", help="of the training")
    add("--save", default="save", help="folder of all runs")
    add(
        "--record",
        type=Path,
        default=Path("docs/studies/real_training.json"),
        help="of the results",
    )
    add("--doc", type=Path, help="document whose table is replaced")
    return parser


def main() -> None:
    """Train and measure what the record lacks; write the table after each result."""
    args = get_args_parser().parse_args()
    found = find_real(args.real)
    record = StudyRecord(args.record, settings_of_study(found, args))
    record.check()
    out = Path(args.save) / "real_training"
    wanted = product(args.seeds, args.networks, range(args.folds), args.ways)
    for seed, network, fold, way in wanted:
        variant = variant_of(network, way, fold)
        if (variant, seed) in record.results():
            continue
        weights, manifest = teach(network, way, fold, seed, found, args)
        test = set(eyes_of_fold(found, fold, seed, args))
        pairs = [files for files in found.values() if files.eye in test]
        record.add(variant, seed, score(weights, pairs, manifest, args.data))
        write_text_atomically(out / "table.md", tables(record.results(), found, args) + "\n")
    if args.doc:
        write_into(args.doc, tables(record.results(), found, args))
    print(tables(record.results(), found, args))


if __name__ == "__main__":
    run_script(main)
