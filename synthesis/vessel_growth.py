"""Procedural retinal vessel trees, in disc diameters, and their rasterisation.

Anatomy is kept in a retina frame: origin at the centre of the optic disc, x to the right, y down, one unit = one disc
diameter (about 1.5 mm or 5 degrees). Arteries and veins each start as a few trunks (two temporal arcades bending round
the macula, two nasal trunks, smaller radii) and fill the retina by space colonisation: free places pull the nearest
growing tip, so branches of one kind spread evenly, never touch and avoid the fovea, while arteries and veins cross.
Widths follow Murray's law from the terminal branches back to the disc.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from synthesis.vessel_drawing import STEP_DD, Eye, Vessels, _main_child

DOMAIN_RADIUS_DD = 7.0
# Control points of the trunks in (temporal, superior) disc diameters; mirrored below for the inferior half.
TEMPORAL_ARCADE = ((0.0, 0.0), (0.1, 0.55), (0.75, 1.5), (2.2, 2.1), (4.0, 2.15), (5.6, 1.5))
NASAL_TRUNK = ((0.0, 0.0), (-0.1, 0.5), (-0.8, 1.5), (-1.9, 2.7), (-3.4, 4.1))
NASAL_RADIUS = ((0.0, 0.0), (-0.55, 0.15), (-1.5, 0.45), (-2.8, 0.9))
MACULAR_TWIG = ((0.0, 0.0), (0.4, 0.2), (0.95, 0.5), (1.5, 0.75))


def grow_eye(rng: np.random.Generator) -> Eye:
    """Draw the anatomy of one eye; equal generators give equal eyes."""
    temporal = int(rng.choice((-1, 1)))  # +1: the macula lies to the right of the disc, a left eye
    fovea = np.array([temporal * rng.normal(2.5, 0.15), rng.normal(0.2, 0.12)])
    avascular = rng.uniform(0.18, 0.34)
    density = rng.uniform(0.85, 1.3)
    warp = _TortuosityWarp(rng)
    trees = []
    for caliber in (rng.uniform(0.8, 1.05), rng.uniform(1.05, 1.35)):
        nodes, parent = _draw_trunks(temporal, fovea, rng)
        attractors, spacing = _draw_attractors(fovea, avascular, density, rng)
        # Only some places may sprout, or every node of a trunk would, like the teeth of a comb.
        fertile = (rng.random(len(nodes)) < 0.4) | (np.bincount(parent, minlength=len(nodes)) == 0)
        fertile &= np.linalg.norm(nodes, axis=1) > 0.5
        nodes, parent = _colonise(
            nodes, parent, fertile, fovea, avascular, attractors, spacing, rng
        )
        nodes = warp(_smoothed(nodes, parent))
        leaf = 0.0105 * caliber
        trees.append(Vessels(nodes, parent, _murray_widths(parent, leaf, rng)))
    axes = 0.5 * np.array([rng.uniform(0.86, 1.0), rng.uniform(0.95, 1.12)])
    return Eye(trees[0], trees[1], warp(fovea[None])[0], avascular, axes)


def grow_twigs(
    lines: np.ndarray, fovea: np.ndarray, avascular: float, rng: np.random.Generator
) -> Vessels:
    """Invent the thin vessels between the known ones.

    Args:
        lines: (K, 2) points on the centrelines of the known vessels, disc diameters from the disc's centre.
        fovea: (2,) its position in the same frame.
        avascular: radius of the avascular zone in disc diameters.
        rng: draws the growth.

    Returns:
        The twigs; the known vessels are in it with width zero.
    """
    nodes = np.concatenate([np.zeros((1, 2)), lines])
    parent = np.zeros(len(nodes), int)
    attractors, spacing = _draw_attractors(fovea, avascular, rng.uniform(0.9, 1.2), rng)
    near = cKDTree(nodes).query(attractors)[0] < 1.5
    fertile = rng.random(len(nodes)) < 0.2
    fertile[0] = False
    nodes, parent = _colonise(
        nodes, parent, fertile, fovea, avascular, attractors[near], spacing[near], rng
    )
    width = _murray_widths(parent, 0.009, rng)
    width[: len(lines) + 1] = 0.0
    return Vessels(nodes, parent, width)


class _TortuosityWarp:
    """A smooth displacement of the retina plane: bends all vessels alike, so it creates no false crossings."""

    def __init__(self, rng: np.random.Generator) -> None:
        waves = 24
        length = np.exp(rng.uniform(np.log(0.45), np.log(3.0), waves))
        heading = rng.uniform(0, 2 * np.pi, waves)
        self.frequency = (2 * np.pi / length) * np.stack([np.cos(heading), np.sin(heading)])
        self.phase = rng.uniform(0, 2 * np.pi, waves)
        strength = np.exp(rng.uniform(np.log(0.15), np.log(0.7)))
        self.amplitude = strength * 0.045 * length[:, None] * rng.normal(size=(waves, 2))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Displace points (N, 2) in disc diameters; the disc's centre stays where it is."""
        shift = np.sin(points @ self.frequency + self.phase) - np.sin(self.phase)
        return points + shift @ self.amplitude


def _draw_trunks(
    temporal: int, fovea: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The large vessels: nodes (N, 2) ``STEP_DD`` apart in the retina frame, the disc's centre first; parents (N,)."""
    nodes, parent = np.zeros((1, 2)), np.zeros(1, int)
    plans = [
        (TEMPORAL_ARCADE, 1.0, 3),
        (NASAL_TRUNK, 0.95, 2),
        (NASAL_RADIUS, 0.6, 1),
        (MACULAR_TWIG, 0.5, 0),
    ]
    for vertical in (-1, 1):
        for control, probability, forks in plans:
            if rng.random() > probability:
                continue
            points = np.array(control)
            scatter = np.linspace(0.08, 0.4, len(points))[:, None]
            points = points * rng.uniform(0.8, 1.2, 2) + rng.normal(size=points.shape) * scatter
            points[:, 0] = points[:, 0] * temporal * abs(fovea[0]) / 2.5
            # Superior is up, i.e. negative y; the whole plan tilts with the fovea.
            points[:, 1] = vertical * points[:, 1] + points[:, 0] * fovea[1] / fovea[0] * 0.5
            curve = _resample(points, STEP_DD)[1:]
            first = len(nodes)
            nodes, parent = _append(nodes, parent, curve, 0)
            for _ in range(rng.poisson(forks)):
                at = int(rng.integers(4, max(5, int(0.6 * len(curve)))))
                nodes, parent = _append(nodes, parent, _fork(curve, at, fovea, rng), first + at)
    return nodes, parent


def _append(
    nodes: np.ndarray, parent: np.ndarray, curve: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hang a curve (K, 2) on the node ``start``."""
    first = len(nodes)
    links = np.concatenate([[start], np.arange(first, first + len(curve) - 1)])[: len(curve)]
    return np.concatenate([nodes, curve]), np.concatenate([parent, links])


def _fork(curve: np.ndarray, at: int, fovea: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A strong branch (K, 2) leaving ``curve`` at index ``at`` at an acute angle, mostly away from the fovea.

    The arcades owe their wide fans of stout branches to these; colonisation alone gives one trunk with twigs.
    """
    along = _unit(curve[at] - curve[at - 2])
    outwards = curve[at] - fovea
    side = np.sign(along[0] * outwards[1] - along[1] * outwards[0]) * (
        1 if rng.random() < 0.75 else -1
    )
    count = int(rng.uniform(1.0, 4.5) / STEP_DD)
    # Leave steeply, then run less and less aslant.
    turn = side * rng.uniform(0.45, 1.0) + np.cumsum(rng.normal(-0.008 * side, 0.02, count))
    heading = np.arctan2(along[1], along[0]) + turn
    curve = curve[at] + STEP_DD * np.cumsum(
        np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0
    )
    too_near = np.linalg.norm(curve - fovea, axis=1) < 0.6
    return curve[: int(too_near.argmax()) if too_near.any() else count]


def _resample(points: np.ndarray, step: float) -> np.ndarray:
    """A smooth curve through control points (K, 2), sampled every ``step``."""
    t = np.arange(len(points))
    dense = np.stack(
        [np.interp(np.linspace(0, t[-1], 200), t, points[:, k]) for k in (0, 1)], axis=1
    )
    kernel = np.hanning(43)[1:-1]
    padded = np.pad(dense, ((20, 20), (0, 0)), mode="reflect", reflect_type="odd")
    dense = np.stack(
        [np.convolve(padded[:, k], kernel / kernel.sum(), mode="valid") for k in (0, 1)], axis=1
    )
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(dense, axis=0), axis=1))])
    at = np.arange(0.0, length[-1], step)
    return np.stack([np.interp(at, length, dense[:, k]) for k in (0, 1)], axis=1)


def _draw_attractors(
    fovea: np.ndarray, avascular: float, density: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Places to be reached by vessels: (M, 2), and how far apart they lie there (M,), in disc diameters.

    The macula is supplied more densely, the avascular zone and the disc not at all.
    """
    finest = 0.19 / density
    grid = np.arange(-DOMAIN_RADIUS_DD, DOMAIN_RADIUS_DD, finest)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    points = points + rng.uniform(-0.5, 0.5, points.shape) * finest + fovea / 2
    to_fovea = np.linalg.norm(points - fovea, axis=1)
    spacing = finest * np.clip(0.7 + 0.45 * to_fovea, 1.0, 2.2)
    keep = rng.random(len(points)) < (finest / spacing) ** 2
    keep &= (np.linalg.norm(points - fovea / 2, axis=1) < DOMAIN_RADIUS_DD) & (to_fovea > avascular)
    keep &= np.linalg.norm(points, axis=1) > 0.75
    return points[keep], spacing[keep]


def _colonise(
    nodes: np.ndarray,
    parent: np.ndarray,
    fertile: np.ndarray,
    fovea: np.ndarray,
    avascular: float,
    attractors: np.ndarray,
    spacing: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Grow a tree, nodes (N, 2) and parents (N,), towards the attractors from the nodes that are fertile (N,).

    Returns:
        The larger nodes and parents, the given ones first.
    """
    heading = _unit(nodes - nodes[parent])
    children = np.bincount(parent[1:], minlength=len(nodes))
    fertile = fertile.copy()
    for _ in range(120):
        candidates = np.flatnonzero(fertile)
        if len(candidates) == 0:
            break
        distance, index = cKDTree(nodes[candidates]).query(attractors, distance_upper_bound=2.5)
        # A tip turns slowly; what it has come this near to it might circle for ever.
        keep = distance > np.maximum(0.55 * spacing, 1.2 * STEP_DD)
        attractors, spacing = attractors[keep], spacing[keep]
        reach = np.isfinite(distance[keep])
        nearest = candidates[index[keep][reach]]
        pull = _unit(attractors[reach] - nodes[nearest])
        # Tips grow forwards only (or they curl up), sprouts to the sides as well.
        ahead = (pull * heading[nearest]).sum(axis=1) > np.where(children[nearest] == 0, 0.35, -0.1)
        if not ahead.any():
            break
        nearest, pull = nearest[ahead], pull[ahead]
        sources, inverse = np.unique(nearest, return_inverse=True)
        total = np.stack([np.bincount(inverse, pull[:, k], len(sources)) for k in (0, 1)], axis=1)
        inwards = fovea - nodes[sources]
        # The twigs of the macula run towards the fovea like spokes.
        inwards *= np.linalg.norm(inwards, axis=1, keepdims=True) < 1.6
        direction = _unit(
            _unit(total)
            + 0.9 * heading[sources]
            + _bounded(inwards)
            + rng.normal(0, 0.08, total.shape)
        )
        children[sources] += 1
        fertile[sources] &= (children[sources] < 2) & (rng.random(len(sources)) < 0.65)
        grown = nodes[sources] + STEP_DD * direction
        # Vessels of one kind do not touch: a tip that runs into another one ends.
        free = cKDTree(nodes).query(grown)[0] > 0.75 * STEP_DD
        free &= np.linalg.norm(grown - fovea, axis=1) > avascular
        fertile[sources[~free]] = False
        grown, direction, sources = grown[free], direction[free], sources[free]
        nodes = np.concatenate([nodes, grown])
        parent, heading = np.concatenate([parent, sources]), np.concatenate([heading, direction])
        children = np.concatenate([children, np.zeros(len(sources), int)])
        fertile = np.concatenate([fertile, np.ones(len(sources), bool)])
    return nodes, parent


def _bounded(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, 2) cut to a length of at most 0.8."""
    return vectors * np.minimum(
        1, 0.8 / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _smoothed(nodes: np.ndarray, parent: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Take the corners out of the growth steps; ends and the root stay."""
    child = _main_child(parent)
    inner = child != np.arange(len(parent))
    inner[0] = False
    for _ in range(rounds):
        mean = 0.5 * nodes + 0.25 * (nodes[parent] + nodes[child])
        nodes = np.where(inner[:, None], mean, nodes)
    return nodes


def _murray_widths(parent: np.ndarray, leaf: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) widths: the power 2.7 of a parent's width is the sum over its children's; ends are ``leaf`` wide."""
    exponent = 2.7
    flow = np.zeros(len(parent))
    ends = np.setdiff1d(np.arange(len(parent)), parent)
    flow[ends] = np.exp(rng.normal(0, 0.35, len(ends)) * exponent)
    for node in range(len(parent) - 1, 0, -1):
        flow[parent[node]] += flow[node]
    flow[0] = flow[1:].max()
    return np.minimum(leaf * flow ** (1 / exponent), 0.115)
