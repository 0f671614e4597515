"""How often the samples of each data set, mode and form are shown in an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import InputError


@dataclass(frozen=True)
class Mixture:
    """Shares of groups of samples in the views of an epoch.

    Within a group all samples are shown equally often, to within one view.

    Attributes:
        groups: indices of the samples of each group, ascending; a sample in no group is not shown.
        shares: of each group, above 0, sum 1.
        n_samples: of the data set.
        n_apart: number of last groups (those of real samples) that together have their share of
            every batch, to within one view; 0 = the order is random over the whole epoch.
    """

    groups: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]
    n_samples: int
    n_apart: int = 0

    @classmethod
    def even(cls, n_samples: int) -> Mixture:
        """All samples in one group."""
        return cls((tuple(range(n_samples)),), (1.0,), n_samples)

    def joined(self, other: Mixture, share: float) -> Mixture:
        """Groups of another mixture of the same data set, which get a share of every batch.

        Args:
            other: of other samples.
            share: of its groups together, in (0, 1); 1 leaves out the groups of this mixture.
        """
        assert self.n_samples == other.n_samples, "of the same data set"
        if share == 1:
            return other
        own = tuple((1 - share) * each for each in self.shares)
        added = tuple(share * each for each in other.shares)
        return Mixture(
            self.groups + other.groups, own + added, self.n_samples, n_apart=len(other.groups)
        )

    def counts(self, n_views: int) -> list[int]:
        """Views of each group in an epoch: its share of them, rounded so that the sum is exact.

        Args:
            n_views: of the epoch.
        """
        exact = np.array(self.shares) * n_views
        counts = np.floor(exact + 1e-9).astype(int)  # a share such as 0.1 + 0.2 is not exact
        largest_rests = np.argsort(counts - exact, kind="stable")
        counts[largest_rests[: n_views - counts.sum()]] += 1
        return [int(count) for count in counts]

    def views_of_epoch(self, n_views: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Indices of the views of an epoch, see :class:`dataset.views.ViewKey`; all different.

        Args:
            n_views: of the epoch.
            rng: chooses the samples that are shown once more than others of their group.

        Returns:
            (N,) int for each group. With even shares they are the numbers 0 ... n_views - 1.
        """
        views = []
        for group, count in zip(self.groups, self.counts(n_views), strict=True):
            rounds, rest = divmod(count, len(group))
            chosen = [np.array(group) + number * self.n_samples for number in range(rounds)]
            if rest:
                chosen.append(rng.choice(group, rest, replace=False) + rounds * self.n_samples)
            views.append(np.concatenate(chosen) if chosen else np.zeros(0, dtype=int))
        return views

    def order_of_epoch(self, n_views: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of the views of an epoch in random order.

        Args:
            n_views: of the epoch.
            batch_size: of the batches of consecutive views that share the last groups evenly.
            rng: of the order.

        Returns:
            (n_views,) int.
        """
        views = self.views_of_epoch(n_views, rng)
        n_first = len(views) - self.n_apart
        parts = [
            np.sort(np.concatenate(part)) for part in (views[:n_first], views[n_first:]) if part
        ]
        shuffled = [rng.permutation(part) for part in parts]
        if len(shuffled) == 1:
            return shuffled[0]
        # View k of N of a part is placed at (k + 1/2) / N of the epoch, which spreads every part
        # evenly over the batches.
        places = np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in shuffled])
        order = np.concatenate(shuffled)[np.argsort(places, kind="stable")]
        # Several processes take every n-th view of a batch; each must get views of all parts.
        whole = len(order) // batch_size * batch_size
        mixed = rng.permuted(order[:whole].reshape(-1, batch_size), axis=1).ravel()
        return np.concatenate([mixed, order[whole:]])


def mix(
    labels: Sequence[tuple[str, str]],
    roots: Sequence[str],
    modes: Sequence[str],
    data_weight: Sequence[float],
    mode_weight: Sequence[float],
) -> Mixture:
    """The mixture of several data sets and modes.

    Weights are shares of the views once they are divided by their sum. Where one of the two lists
    is empty, it leaves the shares of its names as they are when all samples of the other name are
    shown equally often; where both are, all samples are.

    Args:
        labels: data set and mode of each training sample.
        roots, modes: names of the data sets and of the modes, in the order of the weights.
        data_weight, mode_weight: above 0; one for each data set and mode, or none.

    Raises:
        InputError: a wrong number of weights, a weight that is not above 0, or one for samples
            that do not exist.
    """
    if not data_weight and not mode_weight:
        return Mixture.even(len(labels))
    of_root = _shares("--data_weight", roots, data_weight)
    of_mode = _shares("--mode_weight", modes, mode_weight)
    groups, shares = [], []
    for root, mode in ((root, mode) for root in roots for mode in modes):
        group = tuple(i for i, label in enumerate(labels) if label == (root, mode))
        in_root = sum(label[0] == root for label in labels)
        in_mode = sum(label[1] == mode for label in labels)
        if not (group or (of_root and not of_mode and in_root) or (not of_root and in_mode)):
            raise InputError(
                f"{root}: no training sample of mode {mode}, so no view can be drawn by weight; "
                "leave out the data set, the mode, or the weights."
            )
        if group:
            share_of_root = of_root[root] if of_root else len(group) / in_mode
            share_of_mode = of_mode[mode] if of_mode else len(group) / in_root
            groups.append(group)
            shares.append(share_of_root * share_of_mode)
    return Mixture(tuple(groups), tuple(shares), len(labels))


def _shares(option: str, names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Weights by name, divided by their sum; empty where there are none."""
    if not weights:
        return {}
    listed = " ".join(f"{weight:g}" for weight in weights)
    if len(weights) != len(names):
        raise InputError(f"{option} {listed}: give one weight for each of {', '.join(names)}.")
    if not all(0 < weight < float("inf") for weight in weights):
        raise InputError(f"{option} {listed}: weights must be above 0.")
    return {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}
