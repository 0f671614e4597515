"""Fit the confidence of a matcher on validation eyes and check it on test eyes.

    python -m benchmarks.confidence --data data/release --split save/<mode>/<name>/split.yaml
    python -m benchmarks.confidence --data data/release --split save/<mode>/<name>/split.yaml \
        --weights save/pretrained/loftr_v3_lite.pth --modes cffa --draws 6 8 --wrong 230 120

Registers pairs of one eye, a third of them as drawn and the others degraded (contrast, noise, blur,
overlap), and pairs of different eyes. The eyes of "val" in the split are the fitting eyes, those of
"test" the checking eyes. A matrix is right if its mean landmark error is at most 10 px at 512; a
matrix between different eyes is wrong. A logistic model of the significance of the matches and the
agreement of the ridge maps is fitted by maximum likelihood to the results for the fitting eyes.
With it and with the model in use the command prints for either group of eyes

- false ok: the share of wrong pairs that are reported as ok; wrong are all pairs without a right
  matrix, whether one of one eye was missed or the eyes differ;
- right lost: the share of pairs that are registered correctly without a least confidence, but are
  reported as failed with it;
- the Brier score, the expected calibration error and the numbers of the reliability diagram.

Writes to --out: the evidence (val.jsonl, test.jsonl), which a second run reads instead of
registering again, confidence.json with all figures, and reliability.png.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.confidence_evidence import (
    EvidenceFile,
    PairEvidence,
    degraded_pairs,
    evidence_source,
)
from benchmarks.confidence_fit import TARGETS, check, draw_reliability, fit_model, good_thresholds
from dataset.samples import MODE_FILES
from pictures.drawing import encoded_figure
from registration.registrar import Registrar
from utils.errors import run_script
from utils.files import check_writable, write_bytes_atomically, write_text_atomically

# Part of the split to its name in the output.
EYES = {"val": "fitting eyes", "test": "checking eyes"}


def gather(args: argparse.Namespace, registrar: Registrar) -> dict[str, list[PairEvidence]]:
    """Evidence of all pairs of the command, by part of the split."""
    matcher, limits = registrar.matcher, registrar.plausibility
    source = evidence_source(registrar.weights, args.split, matcher, limits)
    evidence = {}
    for subset, draws, n_wrong in zip(EYES, args.draws, args.wrong, strict=True):
        loaders = [
            loader
            for mode in args.modes
            for loader in degraded_pairs(args.data, args.split, subset, mode, draws, n_wrong)
        ]
        kept = EvidenceFile(Path(args.out) / f"{subset}.jsonl", source)
        kept.gather(loaders, matcher, limits)
        evidence[subset] = kept.of(loaders)
    return evidence


def describe_checked(name: str, eyes: str, checked: dict[str, Any]) -> str:
    """One line of the output, and one for each bin of the reliability diagram.

    Args:
        name: of the model.
        eyes: value of ``EYES``.
        checked: from :func:`benchmarks.confidence_fit.check`.
    """
    rates = []
    for label, key in (("false ok", "false_ok"), ("right lost", "right_lost")):
        low, high = checked[f"{key}_interval"]
        rates.append(
            f"{label} {checked[key]} of {checked[f'{key}_of']} "
            f"({100 * low:.1f} to {100 * high:.1f} %)"
        )
    lines = [
        f"{name}, {eyes}: {', '.join(rates)}; Brier {checked['brier']:.4f}, "
        f"calibration error {checked['calibration_error']:.4f}"
    ]
    for item in checked["bins"]:
        lines.append(
            f"    confidence {item['low']:.2f} to {item['high']:.2f}: {item['right']} of "
            f"{item['n']} right, mean confidence {item['mean_confidence']:.3f}"
        )
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="generated data")
    parser.add_argument("--split", required=True, help="split.yaml of the training run")
    parser.add_argument(
        "--weights", help="checkpoint (default: the weights shipped in save/pretrained)"
    )
    parser.add_argument("--modes", nargs="+", default=list(MODE_FILES), help="kinds of pairs")
    for option, default, what in (
        ("--draws", (2, 2), "pairs of one eye per sample"),
        ("--wrong", (20, 40), "pairs of different eyes per mode"),
    ):
        parser.add_argument(
            option,
            type=int,
            nargs=2,
            default=default,
            metavar=("FITTING", "CHECKING"),
            help=f"{what} (default {default[0]} {default[1]})",
        )
    parser.add_argument("--out", help="folder (default: save/confidence/<method>)")
    return parser


def main() -> None:
    """Gather the evidence, fit the model, and check it."""
    args = get_args_parser().parse_args()
    registrar = Registrar(args.weights)
    matcher = registrar.matcher
    args.out = args.out or f"save/confidence/{matcher.name}"
    check_writable(args.out, "--out")
    evidence = gather(args, registrar)
    settings = matcher.settings
    fitted = fit_model(evidence["val"], settings.confidence, settings.sure_confidence)
    good = good_thresholds(evidence["val"], fitted, settings.sure_confidence)
    range_ = "no least confidence" if good is None else "a least confidence of {:.3f} to {:.3f}"
    print(f"fitted: {fitted}")
    print(f"{TARGETS} on the fitting eyes with {range_.format(*good or ())}")
    checked = {
        name: {
            subset: check(pairs, model, settings.min_confidence, settings.sure_confidence)
            for subset, pairs in evidence.items()
        }
        for name, model in (("fitted", fitted), ("in use", settings.confidence))
    }
    for name, by_subset in checked.items():
        for subset, record in by_subset.items():
            print(describe_checked(name, EYES[subset], record))
    out, record = Path(args.out), {"fitted": asdict(fitted), "thresholds": good}
    content = json.dumps(record | {"checked": checked}, indent=1)
    write_text_atomically(out / "confidence.json", content + "\n")
    figure = draw_reliability({EYES[key]: checked["fitted"][key] for key in EYES})
    write_bytes_atomically(out / "reliability.png", encoded_figure(figure, "png"))
    print(f"{out}/reliability.png")


if __name__ == "__main__":
    run_script(main)
