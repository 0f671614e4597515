"""Whether the matches of a teaching pair keep disagreeing with its transform: a statistical test.

Of each view of a pair its matches are counted: all (M), those that agree with the transform (R),
and those that would agree by chance (E). From the samples that are known to be right (generated
ones; without them the views of a single image) comes the share of right matches that the network
reaches at the same time, ``reference``; with it, R of a right pair would be about
``E + reference * M``. All three are summed over the views of the pair in a decaying window, so that
evidence from a weaker network fades. Views from a time when the network is not above chance on the
known samples are not counted, so an untrained network judges nothing.

A pair is *doubtful* when both hold, with X of a Poisson distribution:

- not above chance: ``P(X >= R) > 0.01`` for the mean ``chance_factor * E``;
- too few even for a faint right pair: ``P(X <= R) < 0.001`` for the mean ``E + A``, where A is the
  sum of ``min(far_below * reference, least_share) * M``.

It leaves when it is doubtful in two judgements in a row, with new views between them. The second
test has no power while the evidence is little, so a pair stays until it was shown often enough.

Simulated by ``simulate`` in tests/test_teaching_evidence.py: matches per view Poisson with a mean
of 30 to 130 per pair; right share varying between views by a gamma factor of shape 2; 0.05 to 0.5
right matches per view by chance; reference 30 %; a judgement every 4 views; 2000 pairs each.

- Right pairs that leave within 160 views: 0.05 % of those with a share of 1 %; none of those with
  2, 5, 20 or 40 %, or with a log-uniform share of 1 to 40 %.
- Wrong pairs leave after 20 views in the median, 95 % of them after 76. Those that left after 16,
  24, 40, 80, 160 views: 40, 64, 85, 96, 99.6 %; with a true chance of 1.5 times the expected one
  25, 46, 66, 82, 88 %, of twice 15, 29, 46, 62, 73 %, of three times 7, 14, 21, 27, 31 %. So wrong
  pairs are found only if the chance is not much underestimated.
- The same figures with a reference of 5 or 10 %, because ``least_share`` is then still the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import gammainc, gammaincc

from loss.agreement import Agreement
from utils.errors import InputError

ABOVE_CHANCE = 0.01  # probability below which R is above chance; chosen by hand
TOO_FEW = 0.001  # probability below which R is too low for a faint right pair; chosen by hand
SURE = 1e-6  # the same for the network being above chance on the known samples; chosen by hand
JUDGEMENTS = 2  # in a row, in which a pair must be doubtful before it leaves


@dataclass(frozen=True)
class EvidenceSettings:
    """Limits of the test; the module describes it.

    Attributes:
        min_views: least number of views that count, for a judgement.
        window: views after which evidence has faded to 1/e.
        far_below: a share of right matches below this part of the reference is far below it.
        least_share: share of right matches of the faintest right pair that is to stay, whatever
            the reference. Lower: wrong pairs are found later.
        chance_factor: by how much the true chance may exceed the expected one, because detections
            lie on vessels and not uniformly.
        min_reference: least share of right matches on the known samples at which views count.
    """

    min_views: int = 12
    window: float = 64.0
    far_below: float = 0.25
    least_share: float = 0.01
    chance_factor: float = 1.5
    min_reference: float = 0.02

    def __post_init__(self) -> None:
        if self.min_views < 1 or not self.window > self.min_views:
            raise InputError(
                f"min_views {self.min_views} must be at least 1 and below window {self.window:g}."
            )
        for name in ("far_below", "least_share", "min_reference"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: must lie between 0 and 1.")
        if not self.chance_factor >= 1:
            raise InputError(f"chance_factor {self.chance_factor}: must be at least 1.")


@dataclass
class Evidence:
    """Sums over the views of one pair, or of the known samples, in a decaying window.

    Attributes:
        views: number of views, without decay.
        matches, right, by_chance: M, R and E.
        known: sum of ``reference * M``: right matches of a known sample with as many matches.
        least: A, right matches of the faintest right pair beyond chance.
        new_views: since the last judgement.
        doubtful: number of judgements in a row with doubt.
    """

    views: int = 0
    matches: float = 0.0
    right: float = 0.0
    by_chance: float = 0.0
    known: float = 0.0
    least: float = 0.0
    new_views: int = 0
    doubtful: int = 0

    def add(self, view: Agreement, settings: EvidenceSettings, reference: float = 0.0) -> None:
        """Count a view.

        Args:
            view: its matches.
            settings: of the window.
            reference: share of right matches of the known samples at this time, [0, 1].
        """
        keep = 1.0 - 1.0 / settings.window
        least = min(settings.far_below * reference, settings.least_share)
        self.views += 1
        self.matches = self.matches * keep + view.n_matches
        self.right = self.right * keep + view.n_right
        self.by_chance = self.by_chance * keep + view.expected_right
        self.known = self.known * keep + reference * view.n_matches
        self.least = self.least * keep + least * view.n_matches
        self.new_views += 1

    @property
    def share(self) -> float:
        """Share of right matches beyond chance, [0, 1]; 0 without matches."""
        possible = self.matches - self.by_chance
        return max(0.0, self.right - self.by_chance) / possible if possible > 0 else 0.0

    def is_above_chance(self, settings: EvidenceSettings, probability: float) -> bool:
        """Whether so many right matches have less than a probability by chance."""
        return p_at_least(self.right, settings.chance_factor * self.by_chance) < probability

    def judge(self, settings: EvidenceSettings) -> bool:
        """Judge the evidence, if there are new views.

        Args:
            settings: limits.

        Returns:
            Whether the pair is to leave.
        """
        if self.new_views and self.views >= settings.min_views:
            few = p_at_most(self.right, self.by_chance + self.least) < TOO_FEW
            doubt = few and not self.is_above_chance(settings, ABOVE_CHANCE)
            self.doubtful = self.doubtful + 1 if doubt else 0
            self.new_views = 0
        return self.doubtful >= JUDGEMENTS

    def describe(self) -> str:
        """The sums, in words."""
        return (
            f"{self.right:.1f} of {self.matches:.0f} matches right, {self.by_chance:.1f} expected "
            f"by chance, {self.known:.0f} of a known sample"
        )


def reference_share(known: Evidence, settings: EvidenceSettings) -> float:
    """Share of right matches on the known samples; 0 while the network is not above chance.

    Args:
        known: over the views of these samples.
        settings: limits.
    """
    able = (
        known.views >= settings.min_views
        and known.share >= settings.min_reference
        and known.is_above_chance(settings, SURE)
    )
    return known.share if able else 0.0


def p_at_most(count: float, mean: float) -> float:
    """Probability of at most ``count`` events of a Poisson distribution.

    Sums in a decaying window are not whole numbers; the incomplete gamma function interpolates.
    """
    return float(gammaincc(count + 1.0, mean))


def p_at_least(count: float, mean: float) -> float:
    """Probability of at least ``count`` events of a Poisson distribution, see `p_at_most`."""
    return float(gammainc(count, mean)) if count > 0 else 1.0
