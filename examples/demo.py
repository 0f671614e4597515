"""The demo behind ``make demo``: data, training, registration and evaluation, by the same commands that a user types.

python -m examples.demo --data data/generated --run save/cffa/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dataset.split import read_manifest
from geometry.matrices import affine_about, image_centre
from geometry.rasters import register_onto_fixed
from synthesis.generated_set import DEFAULT_EYES
from utils.checkpoint import read_checkpoint
from utils.commands import run
from utils.image_files import read_gray, write_image

EPOCHS = 5


def real_example(folders: list[Path]) -> tuple[Path, Path] | None:
    """Images of the first real pair, where there is one."""
    for folder in folders:
        for fixed in sorted(folder.glob("*/*_01.png")):
            return fixed, fixed.with_name(fixed.name.replace("_01", "_02"))
    return None


def turned_example(data: Path, manifest: Path, out: Path) -> tuple[Path, Path]:
    """A generated pair of an unseen eye, its angiogram turned by 20 degrees and shifted."""
    eye = read_manifest(manifest)["test"][0]
    folder = data / f"{eye}_A"
    fixed, moving = (
        folder / f"{folder.name}_cf_512.png",
        read_gray(folder / f"{folder.name}_fa_gen.png"),
    )
    centre = image_centre(moving.shape)
    H_turned_to_moving = affine_about(-20.0, 1.0, 0.0, centre, centre + [30.0, -20.0])
    write_image(out / "moving.png", register_onto_fixed(moving, H_turned_to_moving, moving.shape))
    return fixed, out / "moving.png"


def main() -> None:
    """Make the data, train, register, evaluate, and say where everything is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/generated"))
    parser.add_argument(
        "--run", type=Path, default=Path("save/cffa/demo"), help="save/<mode>/<name>"
    )
    parser.add_argument(
        "--real",
        type=Path,
        default=Path("../shared/data/real_pairs"),
        help="folders of real landmark pairs, evaluated when there",
    )
    args = parser.parse_args()
    save, mode, name = args.run.parent.parent, args.run.parent.name, args.run.name
    weights, results = args.run / "best.pth", args.run / "results"

    run("-m", "synthesis", "--out", args.data, "--eyes", DEFAULT_EYES, "--processes", 2)
    seconds = 0.0
    latest = args.run / "latest.pth"
    if latest.exists() and read_checkpoint(latest, ["epoch"])["epoch"] >= EPOCHS:
        print(f"\n{args.run} is trained already; delete it to train again.")
    else:
        seconds = run(
            "train_multimodal_e2e.py",
            "--epoch",
            EPOCHS,
            "--mode",
            mode,
            "--name",
            name,
            "--save",
            save,
            "--data",
            args.data,
            *(["--resume"] if latest.exists() else []),
        )

    real = (
        sorted(folder for folder in args.real.iterdir() if folder.is_dir())
        if args.real.is_dir()
        else []
    )
    fixed, moving = real_example(real) or turned_example(
        args.data, args.run / "split.yaml", results / "example"
    )
    run("register.py", fixed, moving, "--weights", weights, "--out", results / "registered")
    # Overwritten, because a demo that was trained again must not stop at the results of the training before.
    run(
        "evaluate.py",
        "--generated",
        args.data,
        "--generated_mode",
        mode,
        "--split",
        args.run / "split.yaml",
        "--weights",
        weights,
        "--rotations",
        0,
        "--out",
        results / "generated_test",
        "--overwrite",
    )
    for folder in real:
        run(
            "evaluate.py",
            "--real",
            folder,
            "--mode",
            folder.name,
            "--weights",
            weights,
            "--out",
            results / folder.name,
            "--overwrite",
        )
    if not real:
        print(
            f"\n{args.real}: not here, so no real pairs were evaluated (see README, 'Your own data')."
        )

    print(f"\nDone{f'; the training took {seconds / 60:.1f} minutes' if seconds else ''}. Look at:")
    for path, what in (
        (args.run / "report.html", "the training: curves, and the same pairs epoch by epoch"),
        (args.run / f"epoch{EPOCHS}", "pictures of the last epoch"),
        (args.run / "validation_log.txt", "every validation pair"),
        (results / "registered", "a registered pair, with transform.json"),
        (results, "the evaluations: */report.html, */metrics.json, */pairs.csv"),
    ):
        print(f"  {path}: {what}")


if __name__ == "__main__":
    main()
