"""The images of a training run: generated views to train and validate on, real validation pairs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataset.aligned_pairs import AlignedPairs, DataSettings
from dataset.real_pair_files import ALL_PARTS
from dataset.real_pairs import RealPair, describe_pairs, load_real_pairs
from dataset.samples import Sample, discover_samples, ignored_folders
from dataset.split import MAX_NAMED_EYES, Split, fold_by_eye, split_as_in, split_by_eye
from dataset.teaching_samples import TeachingSample
from dataset.view_sources import FORMS
from training.arguments import DEFAULT_DATA, RECORDED_ARGUMENTS
from training.mixture import Mixture, mix
from training.real_data import RealData, prepare_real
from training.run_config import RunConfig, with_split_seed
from training.run_folder import Run
from utils.config import to_plain
from utils.errors import InputError
from utils.names import is_plain_name

MAX_LISTED = 5  # folders without all files of a mode that are named in the log


@dataclass(frozen=True)
class TrainingData:
    """The images of a run.

    Attributes:
        train: views of the training eyes.
        val: whole-image views of the validation eyes.
        real: the real images that teach.
        real_val: landmark pairs of ``--val_data`` and of the validation eyes of ``--real``.
        mixture: how often the samples of each data set and mode are shown.
        roots: folders of the generated data.
        split: eyes of "train", "val" and "test".
        record: everything that a resumed run must agree with; a checkpoint holds it as ``config``.
    """

    train: AlignedPairs
    val: AlignedPairs
    real: RealData
    real_val: list[RealPair]
    mixture: Mixture
    roots: list[str]
    split: Split
    record: dict[str, Any]

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms of the training samples, in the order of ``FORMS``."""
        there = {sample.form for sample in self.train.samples}
        return tuple(form for form in FORMS if form in there)


@dataclass(frozen=True)
class ViewDraw:
    """What training views are drawn with, besides their geometry.

    Attributes:
        data: cache size and ranges of the photometric randomisation.
        seed: of the views.
        junction_sigma_px: standard deviation of a junction in the label heatmaps, pixels.
    """

    data: DataSettings
    seed: int
    junction_sigma_px: float


def find_roots(args: argparse.Namespace, run: Run) -> list[str]:
    """Folders of the generated data: ``--data``, those of the resumed run, or the default.

    Args:
        args: parsed arguments.
        run: new or resumed.
    """
    if args.data:
        return [str(root) for root in args.data]
    return _roots_of(run.saved) if run.saved else [DEFAULT_DATA]


def prepare_data(
    run: Run,
    roots: list[str],
    args: argparse.Namespace,
    config: RunConfig,
    draw: ViewDraw,
    log: Callable[[str], None],
) -> TrainingData:
    """Find the samples, split them by eye, and read the real validation pairs.

    Args:
        run: new, or resumed: then the data must be those that it began with.
        roots: folders of the generated data, see :func:`find_roots`.
        args: after :func:`training.arguments.resolve_arguments`.
        config: of the run.
        draw: appearance and seed of the training views.
        log: prints a line.

    Raises:
        InputError: unusable data; the message names the file.
    """
    by_root = find_samples(roots, args.mode, log)
    samples = [sample for found in by_root.values() for sample in found]
    split = find_split(run, by_root, roots, args, config, log)
    record = {
        "settings": to_plain(config),
        "data": roots[0] if len(roots) == 1 else roots,
        "mode": list(args.mode),
        "split": split,
        "files": {sample.key: sample.n_bytes for sample in samples},
    }
    real = prepare_real(run, args, config, log)
    record |= {name: getattr(args, name) for name in RECORDED_ARGUMENTS} | real.record
    if run.saved is not None:
        check_same_data(run.saved, record, run.checkpoint)
    train, val = make_views(samples, split, config, draw, real.samples)
    log(f"decoded samples are kept {train.cache} (data.cache_gb)")
    root_of = {sample.key: root for root, found in by_root.items() for sample in found}
    labels = [
        (root_of[sample.key], sample.mode) for sample in train.samples if sample.key in root_of
    ]
    mixture = mix(labels, list(by_root), args.mode, args.data_weight, args.mode_weight)
    mixture = replace(mixture, n_samples=len(train))
    validated = find_real_pairs(args.val_data, args.fixed_role, log, args.part) + real.val
    return TrainingData(train, val, real, validated, mixture, roots, split, record)


def find_samples(
    roots: Sequence[str], modes: list[str], log: Callable[[str], None]
) -> dict[str, list[Sample]]:
    """All samples, by the name of the folder of their data set.

    Of several data sets, the name becomes part of the keys and eyes: equal numbers in two data sets
    are different eyes.

    Args:
        roots: folders of the generated data.
        modes: kinds of pairs, keys of ``dataset.samples.MODE_FILES``.
        log: prints a line.

    Raises:
        InputError: no usable sample, or names that cannot be told apart.
    """
    by_root: dict[str, list[Sample]] = {}
    for root in roots:
        name = Path(root).resolve().name
        if name in by_root or (len(roots) > 1 and not is_plain_name(name)):
            raise InputError(
                f"--data {root}: {name!r} names the samples of this data set, so the folders of "
                "several data sets need different names; rename one."
            )
        samples, lacking = discover_samples(root, modes)
        for line in lacking[:MAX_LISTED]:
            log(f"left out: {line}")
        if len(lacking) > MAX_LISTED:
            log(f"left out: {len(lacking) - MAX_LISTED} more samples that lack a file")
        ignored = ignored_folders(root)
        for line in ignored[:MAX_LISTED]:
            log(f"left out: {line}")
        if len(ignored) > MAX_LISTED:
            log(f"left out: {len(ignored) - MAX_LISTED} more folders of other names")
        if len(roots) > 1:
            samples = [
                replace(sample, key=f"{name}_{sample.key}", eye=f"{name}/{sample.eye}")
                for sample in samples
            ]
        by_root[name] = samples
    counts = Counter(sample.key for samples in by_root.values() for sample in samples)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"--data {' '.join(roots)}: two samples are {twice[0]}; rename a folder.")
    return by_root


def find_split(
    run: Run,
    by_root: dict[str, list[Sample]],
    roots: Sequence[str],
    args: argparse.Namespace,
    config: RunConfig,
    log: Callable[[str], None],
) -> Split:
    """The eyes of "train", "val" and "test": those of the resumed run, of ``--split``, or drawn.

    Every data set is divided on its own, so its part of the split does not depend on the others.

    Args:
        run: new or resumed.
        by_root: samples of each data set.
        roots: folders of the data sets.
        args: after :func:`training.arguments.resolve_arguments`.
        config: holds the shares or the fold of the split, and its seed.
        log: prints a line.

    Raises:
        InputError: too few eyes, or a split of other data.
    """
    if run.saved is not None:
        # Not drawn again: the split of an old checkpoint may come from an earlier rule.
        return {part: list(eyes) for part, eyes in run.saved["split"].items()}
    if args.split_file:
        if config.data.fold is not None or args.split_seed is not None:
            raise InputError(
                f"--split {args.split_file}: already says which eyes are in which part; leave out "
                "--split, or --fold (data.fold) and --split_seed."
            )
        eyes = {sample.eye for samples in by_root.values() for sample in samples}
        split, absent = split_as_in(args.split_file, eyes, roots)
        if absent:
            few = ", ".join(absent[:MAX_NAMED_EYES])
            log(f"{args.split_file}: {len(absent)} of its eyes are not in the data ({few})")
        return split
    data = config.data
    split = {"train": [], "val": [], "test": []}
    for samples in by_root.values():
        eyes_of_root = [sample.eye for sample in samples]
        if data.fold is None:
            own = split_by_eye(eyes_of_root, data.val_test_share, data.split_seed)
        else:
            own = fold_by_eye(eyes_of_root, data.fold, data.split_seed)
        for part, eyes_of_part in own.items():
            split[part] += eyes_of_part
    return split


def make_views(
    samples: list[Sample],
    split: Split,
    config: RunConfig,
    draw: ViewDraw,
    real: Sequence[TeachingSample] = (),
) -> tuple[AlignedPairs, AlignedPairs]:
    """Training views (crops) and validation views (whole images).

    Args:
        samples: of all eyes.
        split: eyes of "train" and "val".
        config: geometry of the views, settings of the validation.
        draw: appearance and seed of the training views.
        real: training samples from real images; they come after the generated ones.
    """

    def part(name: str) -> list[Sample]:
        eyes = set(split[name])
        return [sample for sample in samples if sample.eye in eyes]

    sigma, cache = draw.junction_sigma_px, config.data.make_cache()
    ranges = draw.data.used_ranges()
    train = AlignedPairs(
        [*part("train"), *real],
        config.view,
        ranges,
        draw.seed,
        sigma,
        cache,
        self_ranges=config.real.self_ranges,
        packed=config.data.augment_on == "device",
        with_aligned=False,
    )
    checks = config.validation
    whole = checks.view_geometry(config.match.long_side)
    # Sorted by eye, not by mode or data set, so that the first views of a validation contain every
    # mode and data set.
    turns = number_in_its_set(split["val"])
    val = sorted(part("val"), key=lambda sample: turns[sample.eye])
    return train, AlignedPairs(val, whole, None, checks.seed, sigma, cache)


def number_in_its_set(eyes: Sequence[str]) -> dict[str, int]:
    """The number of each eye among those of its data set, from 0.

    Args:
        eyes: as a split names them.
    """
    numbers: dict[str, int] = {}
    n_eyes: Counter[str] = Counter()
    for eye in eyes:
        data_set = eye.rpartition("/")[0]
        numbers[eye] = n_eyes[data_set]
        n_eyes[data_set] += 1
    return numbers


def find_real_pairs(
    folders: list[str], fixed_role: str, log: Callable[[str], None], part: str = ALL_PARTS
) -> list[RealPair]:
    """Landmark pairs of all folders; each folder's name becomes part of its pairs' keys.

    Args:
        folders: of real pairs, in a layout of ``dataset.real_pairs``.
        fixed_role: "01" or "02", the fixed image of the numbered layout.
        log: prints a line.
        part: of the sets that are divided into parts.

    Raises:
        InputError: an unusable pair, or two folders of the same name.
    """
    real: list[RealPair] = []
    for folder in folders:
        name = Path(folder).resolve().name
        pairs = load_real_pairs(folder, name, fixed_role=fixed_role, part=part)
        log(describe_pairs(folder, pairs))
        if {pair.key for pair in pairs} & {pair.key for pair in real}:
            raise InputError(
                f"--val_data {folder}: another folder of the same name is given too; rename one."
            )
        real += pairs
    return real


def check_same_data(saved: dict[str, Any], record: dict[str, Any], checkpoint: Path | None) -> None:
    """Refuse to resume on other data than the run began with.

    Args:
        saved: ``record`` of the resumed run; ``files`` holds the size in bytes of each sample.
        record: of the data found now.
        checkpoint: named in the message.

    Raises:
        InputError: other samples, another order of them, or other modes.
    """
    before, now = saved.get("files", record["files"]), record["files"]
    changed = sorted(key for key in set(before) | set(now) if before.get(key) != now.get(key))
    if list(before) != list(now) or changed or saved["mode"] != record["mode"]:
        named = f" (for example {', '.join(changed[:3])})" if changed else ""
        raise InputError(
            f"{record['data']}: eyes, files{named}, their order or --mode are not those of the run "
            f"in {checkpoint}; resume with the same data, or start a new run from its weights with "
            "--pretrained."
        )


def refuse_other_data(base: Run, args: argparse.Namespace, config: RunConfig) -> None:
    """Refuse a base that may have seen the validation or test eyes of the run that starts from it.

    Args:
        base: run of the base, begun before.
        args: of the run that starts from it.
        config: of that run.

    Raises:
        InputError: the base has other data or another split.
    """
    assert base.saved is not None, "a run that was begun"
    roots = find_roots(args, Run(base.folder))
    was, now = with_split_seed(base.saved["settings"])["data"], to_plain(config.data)
    names = ("val_test_share", "split_seed", "fold")
    same = [was.get(name) == now[name] for name in names]
    same += [base.saved.get("split_file") == args.split_file]
    same += [_resolved(_roots_of(base.saved)) == _resolved(roots)]
    if not all(same):
        raise InputError(
            f"{base.folder}: the base was trained on other data ({base.saved['data']}) than --data "
            f"{' '.join(roots)}, or with another split, so it may have seen your test eyes. Give "
            "another --name, or a base of this data and split as --pretrained."
        )


def _roots_of(saved: dict[str, Any]) -> list[str]:
    """Folders of the data of a run, from the ``config`` entry of its checkpoint."""
    data = saved["data"]
    return [data] if isinstance(data, str) else list(data)


def _resolved(roots: Sequence[str]) -> list[Path]:
    return [Path(root).resolve() for root in roots]
