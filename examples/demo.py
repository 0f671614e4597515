"""The demo behind ``make demo``: runs the commands for data, training, registration and evaluation.

    python -m examples.demo --data data/generated --run save/cffa/demo

Writes the run to --run, and the registered example and the evaluations to its folder results/. A
finished training is not repeated. Every set of pairs is evaluated twice: in the whole pipeline, and
in the bare view (results/*_bare), which shows beside an untrained network what the training taught.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dataset.split import read_manifest
from evaluation.method import BARE_SUFFIX
from evaluation.stress import Stress
from evaluation.summary import stress_of
from geometry.matrices import affine_about, image_centre
from geometry.rasters import register_onto_fixed
from synthesis.generated_set import DEFAULT_EYES
from utils.checkpoint import read_checkpoint
from utils.commands import run
from utils.image_files import read_gray, write_image

EPOCHS = 5
# Rotations of the moving image in the last table, degrees. The first three show what was learned:
# at 0 an untrained network finds some pairs too.
ROTATIONS = (15, 30, 45, 0)
# In the whole pipeline an untrained network takes several seconds for a pair that fails, because
# all copies are tried. There it runs on the few real pairs only, at these rotations, degrees.
UNTRAINED_ROTATIONS = (0, 30)
GENERATED = "generated_test"  # folder of the evaluation on generated pairs


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/generated"), help="where the data is written"
    )
    parser.add_argument(
        "--run", type=Path, default=Path("save/cffa/demo"), help="save/<mode>/<name>"
    )
    parser.add_argument(
        "--real",
        type=Path,
        default=Path("../shared/data/real_pairs"),
        help="folder that holds folders of real landmark pairs; evaluated where it exists",
    )
    return parser


def train(run_folder: Path, data: Path) -> float:
    """Train for ``EPOCHS`` epochs; continue an interrupted run and leave a finished one as it is.

    Returns:
        The seconds of the training, 0 when the run was finished.
    """
    latest = run_folder / "latest.pth"
    if latest.exists() and read_checkpoint(latest, ["epoch"])["epoch"] >= EPOCHS:
        print(f"\n{run_folder} is trained already; delete it to train again.")
        return 0.0
    mode, save = run_folder.parent.name, run_folder.parent.parent
    command: list[object] = ["train_multimodal_e2e.py", "--epoch", EPOCHS, "--mode", mode]
    command += ["--name", run_folder.name, "--save", save, "--data", data]
    command += ["--resume"] if latest.exists() else []
    return run(*command)


def find_real_folders(root: Path) -> list[Path]:
    """The folders of real pairs below ``root``, which need not exist."""
    return sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []


def real_example(folders: list[Path]) -> tuple[Path, Path] | None:
    """Fixed and moving image of the first real pair; None where there is none."""
    for folder in folders:
        for fixed in sorted(folder.glob("*/*_01.png")):
            return fixed, fixed.with_name(fixed.name.replace("_01", "_02"))
    return None


def generated_example(data: Path, manifest: Path, out: Path) -> tuple[Path, Path]:
    """A generated pair of a held-out eye, its FA image rotated by 20 degrees and shifted.

    Args:
        data: folder of generated data.
        manifest: ``split.yaml`` of the run, which names the test eyes.
        out: folder to which the moving image is written.

    Returns:
        The files of the fixed and of the moving image.
    """
    eye = read_manifest(manifest)["test"][0]
    folder = data / f"{eye}_A"
    fixed = folder / f"{folder.name}_cf_512.png"
    moving = read_gray(folder / f"{folder.name}_fa_gen.png")
    centre = image_centre(moving.shape)
    H_turned_to_moving = affine_about(-20.0, 1.0, 0.0, centre, centre + [30.0, -20.0])
    write_image(out / "moving.png", register_onto_fixed(moving, H_turned_to_moving, moving.shape))
    return fixed, out / "moving.png"


def evaluate(run_folder: Path, data: Path, real: list[Path], results: Path) -> None:
    """Evaluate the best checkpoint on generated pairs of held-out eyes and on each real set.

    Results of an earlier training of the demo are overwritten.
    """
    weights = ["--weights", run_folder / "best.pth"]
    references = ["identity", "oracle"]
    generated: list[object] = ["--generated", data, "--generated_mode", run_folder.parent.name]
    # Drawn pairs are shifted and scaled but not rotated, so that --rotations is the whole rotation.
    # One pair per eye, which keeps the demo short.
    generated += ["--split", run_folder / "split.yaml", "--draw_rotation", 0, "--draws", 1]
    generated += ["--rotations", *ROTATIONS]
    compared = ["--compare", "superretina", *references]
    run("evaluate.py", *generated, *weights, *compared, "--out", results / GENERATED, "--overwrite")
    real_sets = {folder.name: ["--real", folder, "--mode", folder.name] for folder in real}
    for name, pairs in real_sets.items():
        out = ["--out", results / name]
        untrained = ["--compare", "untrained", "--rotations", *UNTRAINED_ROTATIONS]
        run("evaluate.py", *pairs, *weights, *untrained, *out, "--overwrite")
        # Adds to the results of the untrained network.
        run("evaluate.py", *pairs, *weights, *compared, *out)
    compared = ["--bare", "--compare", "superretina", "untrained", *references]
    for name, pairs in {GENERATED: generated, **real_sets}.items():
        out = ["--out", results / f"{name}_bare", "--no_pictures", "--overwrite"]
        run("evaluate.py", *pairs, *weights, *compared, *out)


def learning_table(results: Path, sets: list[str]) -> str:
    """Success of the trained and the untrained network in both views, by rotation.

    Args:
        results: folder of the evaluations, with ``<set>/metrics.json`` and
            ``<set>_bare/metrics.json`` for each set.
        sets: names of the sets.
    """
    titles = "".join(f"{angle:>6}°" for angle in ROTATIONS)
    lines = [f"{'set':<16}{'view':<16}{'network':<12}{titles}"]
    for name in sets:
        for view, suffix in (("bare", BARE_SUFFIX), ("whole pipeline", "")):
            path = results / (f"{name}_bare" if suffix else name) / "metrics.json"
            rates = {
                (record["method"], stress_of(record)): record["success_median5"]
                for record in json.loads(path.read_text(encoding="utf-8"))["results"]
            }
            for network, method in (("trained", "superretina"), ("untrained", "untrained")):
                found = [rates.get((method + suffix, Stress(rotation=a))) for a in ROTATIONS]
                cells = ["–" if rate is None else f"{100 * rate:.0f} %" for rate in found]
                lines.append(
                    f"{name:<16}{view:<16}{network:<12}{''.join(f'{c:>7}' for c in cells)}"
                )
    return "\n".join(lines)


def print_overview(run_folder: Path, results: Path, seconds: float) -> None:
    """List the files that the demo wrote.

    Args:
        run_folder: of the training.
        results: folder of the registered example and the evaluations.
        seconds: of the training; 0 leaves it out.
    """
    training = f"; the training took {seconds / 60:.1f} minutes" if seconds else ""
    print(f"\nDone{training}. Results:")
    for path, what in (
        (run_folder / "report.html", "the training: curves, and the same pairs in every epoch"),
        (run_folder / f"epoch{EPOCHS}", "pictures of the last epoch"),
        (run_folder / "validation_log.txt", "every validation pair"),
        (results / "registered", "a registered pair, with transform.json"),
        (results, "the evaluations: */report.html, */metrics.json, */pairs.csv; bare view: *_bare"),
    ):
        print(f"  {path}: {what}")
    print(
        "\nTo look at the registered pair, judge it and place landmarks, in the browser:\n"
        f"  {sys.executable} review.py {results / 'registered'}"
    )


def main() -> None:
    """Write the data, train, register one pair, evaluate, and list the results."""
    args = get_args_parser().parse_args()
    results = args.run / "results"

    run("-m", "synthesis", "--out", args.data, "--eyes", DEFAULT_EYES, "--processes", 2)
    seconds = train(args.run, args.data)

    real = find_real_folders(args.real)
    fixed, moving = real_example(real) or generated_example(
        args.data, args.run / "split.yaml", results / "example"
    )
    weights = args.run / "best.pth"
    run(
        "register.py",
        fixed,
        moving,
        "--weights",
        weights,
        "--out",
        results / "registered",
        "--overwrite",
    )

    evaluate(args.run, args.data, real, results)
    if not real:
        print(f"\n{args.real}: no such folder, so no real pairs were evaluated (docs/data.md).")
    print(
        "\nPairs with a median error below 5 px at 512, by rotation of the moving image; failed "
        "pairs count.\nThe bare view shows what the network alone gives (docs/evaluation.md).\n"
    )
    print(learning_table(results, [GENERATED, *(folder.name for folder in real)]))
    print_overview(args.run, results, seconds)


if __name__ == "__main__":
    main()
