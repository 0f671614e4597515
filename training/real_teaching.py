"""The real samples of a run: which of them teach in each epoch, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_fabric import Fabric
from tqdm import tqdm

from dataset.aligned_pairs import AlignedPairs
from dataset.teaching_samples import TeachingSample
from dataset.view_sources import LANDMARKS, REGISTERED
from loss.agreement import Agreement
from registration.consistency import ConsistentRegistration, register_consistently
from registration.matcher import Matcher
from training.data import TrainingData
from training.mixture import Mixture
from training.processes import on_every_process, on_first_process
from training.real_settings import RealSettings
from training.run_config import RunConfig
from training.sharing_guard import SharingGuard
from training.task import Stateful, ValidationReport
from training.teaching_page import write_teaching_page
from training.teaching_set import TeachingSet
from utils.errors import InputError

Register = Callable[[TeachingSample], ConsistentRegistration]


def mix_real(
    samples: Mapping[int, TeachingSample],
    settings: RealSettings,
    root_weight: Mapping[str, float],
    n_samples: int,
) -> Mixture | None:
    """Shares of the real samples among each other.

    Args:
        samples: those that teach, by their index in the data set; the mode is their root.
        settings: weights of the forms.
        root_weight: of each root; empty to show all samples of a form equally often.
        n_samples: of the whole data set.

    Returns:
        One group for each form and root that has samples; None without samples.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, sample in sorted(samples.items()):
        groups.setdefault((sample.form, sample.mode), []).append(index)
    if not groups:
        return None
    total = sum(settings.form_weight[form] for form in {form for form, _ in groups})
    shares = []
    for form, root in groups:
        peers = {name: len(each) for (other, name), each in groups.items() if other == form}
        weights = {name: root_weight.get(name, count) for name, count in peers.items()}
        of_form = settings.form_weight[form] / total
        shares.append(of_form * weights[root] / sum(weights.values()))
    return Mixture(tuple(map(tuple, groups.values())), tuple(shares), n_samples)


def make_teaching(
    data: TrainingData, config: RunConfig, matcher: Matcher, fabric: Fabric, folder: Path
) -> RealTeaching | None:
    """The teaching of a run on real images; None without.

    Args:
        data: of the run.
        config: of the run.
        matcher: uses the network that is trained; with all stages it registers the pairs.
        fabric: connects the processes.
        folder: of the run.
    """
    if not data.real.samples:
        return None

    registering = copy.copy(matcher)
    # Mirrored copies only serve the reason of a failure.
    registering.settings = replace(matcher.settings, try_mirrored=False)

    def register(sample: TeachingSample) -> ConsistentRegistration:
        fixed, moving = sample.images()
        return register_consistently(
            registering, fixed, moving, config.real.consistency, config.plausibility
        )

    return RealTeaching(
        data.train,
        data.mixture,
        config.real,
        data.real.root_weight,
        register,
        fabric,
        folder,
        config.validation.figure,
    )


class RealTeaching:
    """Implements :class:`training.task.Teaching`.

    Pairs without landmarks are registered by the network itself before an epoch; those that are
    consistent teach. A pair that the matches keep disagreeing with leaves.

    Args:
        dataset: of the training; its real samples get the transforms of their pairs.
        generated: mixture of its generated samples; None if real images alone teach.
        settings: of the real images.
        root_weight: of each root, by name; empty for even shares.
        register: registers the pair of a sample with the network as it is.
        fabric: connects the processes.
        folder: of the run; gets ``teaching/``.
        figure: of the generated validation pairs that must not fall.

    Attributes:
        records: what is known of each pair.
        guard: the share of the real samples.
    """

    def __init__(
        self,
        dataset: AlignedPairs,
        generated: Mixture,
        settings: RealSettings,
        root_weight: Mapping[str, float],
        register: Register,
        fabric: Fabric,
        folder: Path,
        figure: str,
    ) -> None:
        self.dataset, self.generated = dataset, generated
        self.settings, self.root_weight, self.register = settings, root_weight, register
        self.fabric, self.folder, self.figure = fabric, folder, figure
        self.samples = {
            index: sample
            for index, sample in enumerate(dataset.samples)
            if isinstance(sample, TeachingSample)
        }
        landmarks = {
            each.key: (each.transform, each.tolerance_file_px)
            for each in self.samples.values()
            if each.form == LANDMARKS and each.transform is not None
        }
        waiting = [each.key for each in self.samples.values() if each.form == REGISTERED]
        self.records = TeachingSet(landmarks, waiting, settings.teaching)
        self.guard = SharingGuard.of(settings)

    def observe(self, agreements: Sequence[Agreement]) -> None:
        """Evidence of the views of a step, of all processes, in order.

        Args:
            agreements: one for each view.
        """
        self.records.observe(agreements)

    def begin_epoch(self, epoch: int) -> Mixture:
        """See :meth:`training.task.Teaching.begin_epoch`."""
        self._register_due(epoch)
        teaching = {}
        accepted = self.records.accepted()
        for index, sample in self.samples.items():
            if sample.form in (LANDMARKS, REGISTERED) and sample.key not in accepted:
                continue
            if sample.form == REGISTERED:
                transform, tolerance = accepted[sample.key]
                known = replace(sample, transform=transform, tolerance_file_px=tolerance)
                self.dataset.samples[index] = known
            teaching[index] = sample
        real = mix_real(teaching, self.settings, self.root_weight, len(self.dataset))
        if real is None:
            self.fabric.print(f"epoch {epoch}: no real sample teaches yet; generated ones alone")
            return self.generated
        return self.generated.joined(real, self.guard.share)

    def _register_due(self, epoch: int) -> None:
        """Register the pairs that are due, each on one process."""
        due = self.records.due(epoch)
        if not due:
            return
        by_key = {sample.key: sample for sample in self.samples.values()}
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        bar = tqdm(due[rank::world_size], "register", unit="pair", leave=False, disable=rank > 0)

        def register() -> dict[str, ConsistentRegistration | str]:
            return {key: self._register(by_key[key]) for key in bar}

        found = {
            key: result
            for part in on_every_process(self.fabric, register)
            for key, result in part.items()
        }
        for key in due:
            result = found[key]
            if isinstance(result, str):
                self.records.refuse(key, result, epoch)
            else:
                self.records.take(key, result, epoch)
        n_accepted = len(self.records.accepted().keys() & set(due))
        self.fabric.print(
            f"epoch {epoch}: registered {len(due)} pairs without landmarks, {n_accepted} can teach"
        )
        self._write_page()

    def _register(self, sample: TeachingSample) -> ConsistentRegistration | str:
        """The registration of a pair, or why its files cannot be read."""
        try:
            return self.register(sample)
        except InputError as error:
            return str(error)

    def end_epoch(self, epoch: int, report: ValidationReport | None) -> str:
        """See :meth:`training.task.Teaching.end_epoch`."""
        for line in self.records.judge(epoch):
            self.fabric.print(line)
        self._write_page()
        if report is None:
            return ""
        line, why_stop = self.guard.judge(report.summary[self.figure])
        if line:
            self.fabric.print(line)
        return why_stop

    def statistics(self) -> dict[str, float]:
        """Figures for the log of each epoch."""
        figures = self.records.statistics() | {"share": self.guard.share}
        return {f"real_{name}": value for name, value in figures.items()}

    def _write_page(self) -> None:
        images = {each.key: (each.fixed, each.moving) for each in self.samples.values()}
        on_first_process(
            self.fabric,
            lambda: write_teaching_page(self.folder, self.records.records.values(), images),
        )


def state_of(teaching: RealTeaching | None) -> dict[str, Stateful]:
    """What a checkpoint holds of the teaching.

    Args:
        teaching: of the run; None without real images.
    """
    if teaching is None:
        return {}
    return {"teaching": teaching.records, "sharing_guard": teaching.guard}


def statistics_of(teaching: RealTeaching | None) -> dict[str, float]:
    """Figures of the teaching for the log of each epoch.

    Args:
        teaching: of the run; None without real images.
    """
    return {} if teaching is None else teaching.statistics()
