"""The real pairs of a training run: which of them teach, by which transform, and why.

A pair with landmarks teaches from the start. A pair without them waits until the network registers
it consistently (:mod:`registration.consistency`); one that is refused is tried again some epochs
later. A pair whose matches keep disagreeing with its transform leaves
(:mod:`training.teaching_evidence`): with landmarks for good; without, it counts as refused, and the
same transform is not accepted for it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from dataset.view_sources import GENERATED, LANDMARKS, REGISTERED, SELF
from geometry.transform_dicts import transform_from_dict
from geometry.transforms import Transform
from loss.agreement import Agreement
from registration.consistency import ConsistentRegistration
from training.teaching_evidence import Evidence, EvidenceSettings, reference_share
from utils.errors import InputError

WAITING, ACCEPTED, REFUSED, LEFT = "waiting", "accepted", "refused", "left"
STATUSES = (ACCEPTED, REFUSED, LEFT, WAITING)  # in the order of tables


@dataclass(frozen=True)
class TeachingSettings:
    """Settings of the teaching set.

    Attributes:
        retry_every: epochs after which a refused pair is tried again.
        same_transform_px: a transform that is closer than this (median, moving px at 512) to one
            with which the pair left is the same; ``max_disagreement_px`` of the consistency.
        evidence: when a pair leaves.
    """

    retry_every: int = 5
    same_transform_px: float = 6.0
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings)

    def __post_init__(self) -> None:
        if self.retry_every < 1:
            raise InputError(f"retry_every {self.retry_every}: must be at least 1.")
        if not self.same_transform_px > 0:
            raise InputError(f"same_transform_px {self.same_transform_px}: must be above 0.")


@dataclass
class TeachingRecord:
    """What is known about one pair.

    Attributes:
        key: of the pair.
        form: "landmarks" or "registered".
        status: "waiting", "accepted", "refused" or "left".
        reason: why it is not accepted; "" if it is or waits.
        transform: description of the transform (``Transform.to_dict``), also of the one with which
            it left; None without one.
        tolerance_file_px: radius within which the transform is known, pixels of the fixed file; NaN
            without a transform.
        confidence: of the last registration, [0, 1]; NaN for landmarks and before the first.
        disagreement_px: of the last registration, moving px at 512; NaN if not measured.
        epoch: of the last decision; 0 before the first epoch.
        tries: number of registrations.
        views: since the pair was accepted.
        evidence: of these views.
        rejected: transforms with which it left, like ``transform``.
        has_left: whether the last decision was to leave.
    """

    key: str
    form: str
    status: str = WAITING
    reason: str = ""
    transform: dict[str, Any] | None = None
    tolerance_file_px: float = float("nan")
    confidence: float = float("nan")
    disagreement_px: float = float("nan")
    epoch: int = 0
    tries: int = 0
    views: int = 0
    evidence: Evidence = field(default_factory=Evidence)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    has_left: bool = False

    @property
    def group(self) -> str:
        """The status for tables: "left" also for a registered pair that waits to be tried again."""
        return LEFT if self.has_left else self.status


class TeachingSet:
    """The records of all real pairs of a run; a ``training.task.Stateful``.

    It is deterministic: every process that makes the same calls has the same state.

    Args:
        landmarks: transform and tolerance (pixels of the fixed file) of each pair with landmarks.
        unregistered: keys of the pairs without landmarks.
        settings: of the set.

    Raises:
        InputError: a key that occurs twice.
    """

    def __init__(
        self,
        landmarks: Mapping[str, tuple[Transform, float]],
        unregistered: Iterable[str],
        settings: TeachingSettings | None = None,
    ) -> None:
        self.settings = settings or TeachingSettings()
        self.records: dict[str, TeachingRecord] = {}
        self.known = {GENERATED: Evidence(), SELF: Evidence()}
        for key, (transform, tolerance) in landmarks.items():
            self.records[key] = TeachingRecord(
                key,
                LANDMARKS,
                status=ACCEPTED,
                transform=transform.to_dict(),
                tolerance_file_px=float(tolerance),
            )
        for key in unregistered:
            if key in self.records:
                raise InputError(f"{key}: the pair occurs twice among the real pairs.")
            self.records[key] = TeachingRecord(key, REGISTERED)

    def due(self, epoch: int) -> list[str]:
        """Keys of the pairs to register before an epoch.

        Args:
            epoch: its number; refused pairs are due ``retry_every`` epochs after the last decision.
        """
        return [
            record.key
            for record in self.records.values()
            if record.form == REGISTERED
            and (
                record.status == WAITING
                or (record.status == REFUSED and epoch >= record.epoch + self.settings.retry_every)
            )
        ]

    def take(self, key: str, result: ConsistentRegistration, epoch: int) -> None:
        """Decide about a pair that was registered.

        Args:
            key: of a pair without landmarks.
            result: of its registration.
            epoch: number of the epoch.
        """
        record = self.records[key]
        if record.form != REGISTERED:
            raise ValueError(f"{key}: a pair with landmarks is not registered")
        reason = result.reason
        if result.accepted and self._left_with(record, result):
            reason = "the same transform as the one with which the pair left"
        taken = result.transform if not reason else None
        self.records[key] = replace(
            record,
            status=REFUSED if taken is None else ACCEPTED,
            reason=reason,
            transform=None if taken is None else taken.to_dict(),
            tolerance_file_px=float("nan" if taken is None else result.tolerance_file_px),
            confidence=float(result.confidence),
            disagreement_px=float(result.disagreement_px),
            epoch=int(epoch),
            tries=record.tries + 1,
            views=0,
            evidence=Evidence(),
            has_left=False,
        )

    def refuse(self, key: str, reason: str, epoch: int) -> None:
        """Refuse a pair that could not be registered at all, such as an unreadable image.

        Args:
            key: of a pair without landmarks.
            reason: for the table.
            epoch: number of the epoch.
        """
        nothing = np.zeros((0, 2))
        nan = float("nan")
        self.take(
            key,
            ConsistentRegistration(False, reason, None, "", nan, nan, nan, nothing, (1, 1)),
            epoch,
        )

    def _left_with(self, record: TeachingRecord, result: ConsistentRegistration) -> bool:
        """Whether the pair left before with the transform of a result."""
        return any(
            result.distance_px(transform_from_dict(content)) <= self.settings.same_transform_px
            for content in record.rejected
        )

    @property
    def reference(self) -> float:
        """Share of right matches on samples known to be right, [0, 1]; 0 while not above chance.

        Of the generated ones; without enough of them, of the views of single images, which are
        easier.
        """
        enough = self.settings.evidence.min_views
        form = GENERATED if self.known[GENERATED].views >= enough else SELF
        return reference_share(self.known[form], self.settings.evidence)

    def observe(self, agreements: Iterable[Agreement]) -> None:
        """Count the views of an optimizer step.

        Args:
            agreements: of all processes, in the same order on each of them. Pairs that teach no
                longer, and have views in flight, are ignored.
        """
        agreements, limits = list(agreements), self.settings.evidence
        for view in agreements:
            if view.form in self.known:
                self.known[view.form].add(view, limits)
        reference = self.reference
        for view in agreements:
            record = self.records.get(view.key)
            if view.form in self.known or record is None or record.status != ACCEPTED:
                continue
            record.views += 1
            if reference > 0:
                record.evidence.add(view, limits, reference)

    def judge(self, epoch: int) -> list[str]:
        """Take out the pairs whose matches keep disagreeing.

        Args:
            epoch: number of the finished epoch.

        Returns:
            One line for the log for each pair that leaves.
        """
        # Without ability now, older evidence could still condemn a pair after a collapse.
        if self.reference <= 0:
            return []
        lines = []
        for record in self.records.values():
            if record.status != ACCEPTED or not record.evidence.judge(self.settings.evidence):
                continue
            record.reason = f"its matches disagree: {record.evidence.describe()}"
            record.epoch, record.has_left = int(epoch), True
            record.status = LEFT if record.form == LANDMARKS else REFUSED
            if record.form == REGISTERED and record.transform is not None:
                record.rejected = [*record.rejected, record.transform]
            lines.append(f"{record.key} ({record.form}) leaves the real pairs: {record.reason}")
        return lines

    def accepted(self) -> dict[str, tuple[Transform, float]]:
        """Transform and tolerance (pixels of the fixed file) of every pair that teaches."""
        return {
            record.key: (transform_from_dict(record.transform), record.tolerance_file_px)
            for record in self.records.values()
            if record.status == ACCEPTED and record.transform is not None
        }

    def statistics(self) -> dict[str, float]:
        """Figures for the log: numbers of pairs by group, and shares of right matches.

        ``share_<form>`` is the mean over the accepted pairs of a form that have been shown,
        ``share_known`` that of the samples known to be right (0 while not above chance).
        """
        records = list(self.records.values())
        figures = {
            group: float(sum(record.group == group for record in records)) for group in STATUSES
        }
        figures["share_known"] = self.reference
        for form in (LANDMARKS, REGISTERED):
            shares = [
                record.evidence.share
                for record in records
                if record.form == form and record.status == ACCEPTED and record.evidence.views
            ]
            if shares:
                figures[f"share_{form}"] = sum(shares) / len(shares)
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, for a checkpoint; a snapshot."""
        return {
            "records": {
                # Not asdict: it would copy the transforms, which never change.
                key: vars(record) | {"evidence": asdict(record.evidence)}
                for key, record in self.records.items()
            },
            "known": {form: asdict(evidence) for form, evidence in self.known.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the records from :meth:`state_dict`; the settings stay those of this run.

        Args:
            state: of a set with the same pairs.

        Raises:
            InputError: other pairs.
        """
        saved = {key: content["form"] for key, content in state["records"].items()}
        own = {key: record.form for key, record in self.records.items()}
        if saved != own:
            differing = sorted({key for key, _ in saved.items() ^ own.items()})
            raise InputError(
                f"the real pairs are not those of the checkpoint ({len(differing)} differ, such as "
                f"{differing[0]}): restore the files, or start a new run with --pretrained."
            )
        self.records = {
            key: TeachingRecord(**content | {"evidence": Evidence(**content["evidence"])})
            for key, content in state["records"].items()
        }
        self.known = {form: Evidence(**content) for form, content in state["known"].items()}
