"""Procedural growth of retinal vessel trees.

Convention: the retina frame has its origin at the centre of the optic disc, x to the right, y down,
in disc diameters (about 1.5 mm or 5 degrees).

Arteries and veins each start as a few trunks (two temporal arcades around the macula, two nasal
trunks, smaller vessels) and fill the retina by space colonisation (Runions et al. 2007): attractors
pull the nearest growing tip. Branches of one tree are spread evenly, do not touch and avoid the
fovea; arteries and veins cross. Widths follow Murray's law from the terminal branches to the disc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from synthesis.vessel_drawing import STEP_DD, Eye, Vessels, main_child

DOMAIN_RADIUS_DD = 7.0  # of the vascularised retina around the middle of disc and fovea
PULL_RADIUS_DD = 2.5  # an attractor has no effect on nodes farther away
MACULA_RADIUS_DD = 1.6  # within it vessels turn towards the fovea
MURRAY_EXPONENT = 2.7  # 3 in Murray (1926); chosen by hand, lower for thicker trunks
MAX_WIDTH_DD = 0.115  # of the trunks at the disc
MAX_STEPS = 120  # of the growth, each STEP_DD long


class TrunkPlan(NamedTuple):
    """How a large vessel of the superior half is drawn; the inferior half is mirrored.

    Attributes:
        control: control points (temporal, superior), disc diameters.
        probability: that the vessel exists.
        mean_branches: mean number of strong branches (Poisson).
    """

    control: tuple[tuple[float, float], ...]
    probability: float
    mean_branches: int


TRUNK_PLANS = (
    TrunkPlan(  # temporal arcade
        ((0.0, 0.0), (0.1, 0.55), (0.75, 1.5), (2.2, 2.1), (4.0, 2.15), (5.6, 1.5)),
        probability=1.0,
        mean_branches=3,
    ),
    TrunkPlan(  # nasal trunk
        ((0.0, 0.0), (-0.1, 0.5), (-0.8, 1.5), (-1.9, 2.7), (-3.4, 4.1)),
        probability=0.95,
        mean_branches=2,
    ),
    TrunkPlan(  # horizontal nasal vessel
        ((0.0, 0.0), (-0.55, 0.15), (-1.5, 0.45), (-2.8, 0.9)), probability=0.6, mean_branches=1
    ),
    TrunkPlan(  # macular vessel
        ((0.0, 0.0), (0.4, 0.2), (0.95, 0.5), (1.5, 0.75)), probability=0.5, mean_branches=0
    ),
)


def grow_eye(rng: np.random.Generator) -> Eye:
    """Draw the anatomy of one eye; equal generators give equal eyes."""
    temporal = int(rng.choice((-1, 1)))  # +1: macula to the right of the disc, a left eye
    fovea = np.array([temporal * rng.normal(2.5, 0.15), rng.normal(0.2, 0.12)])
    avascular = rng.uniform(0.18, 0.34)
    density = rng.uniform(0.85, 1.3)
    warp = _TortuosityWarp(rng)
    trees = []
    for caliber in (rng.uniform(0.8, 1.05), rng.uniform(1.05, 1.35)):
        nodes, parent = _draw_trunks(temporal, fovea, rng)
        attractors, spacing = _draw_attractors(fovea, avascular, density, rng)
        # Only some nodes may branch, so that branches do not leave a trunk at every step.
        fertile = (rng.random(len(nodes)) < 0.4) | (np.bincount(parent, minlength=len(nodes)) == 0)
        fertile &= np.linalg.norm(nodes, axis=1) > 0.5
        nodes, parent = _colonise(
            nodes, parent, fertile, fovea, avascular, attractors, spacing, rng
        )
        nodes = warp(_smoothed(nodes, parent))
        leaf = 0.0105 * caliber
        trees.append(Vessels(nodes, parent, _murray_widths(parent, leaf, rng)))
    axes = 0.5 * np.array([rng.uniform(0.86, 1.0), rng.uniform(0.95, 1.12)])
    return Eye(
        artery=trees[0],
        vein=trees[1],
        fovea=warp(fovea[None])[0],
        avascular_radius=avascular,
        disc_axes=axes,
    )


def grow_twigs(
    lines: np.ndarray, fovea: np.ndarray, avascular: float, rng: np.random.Generator
) -> Vessels:
    """Grow thin vessels between known ones.

    Args:
        lines: (K, 2) retina points on the centre lines of the known vessels, disc diameters.
        fovea: (2,) retina point, disc diameters.
        avascular: radius of the avascular zone, disc diameters.
        rng: draws the growth.

    Returns:
        The thin vessels; nodes of the known vessels come first, with width zero.
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
    """A smooth displacement of the retina plane.

    It bends all vessels together, so vessels that do not cross before do not cross after.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        waves = 24
        length = np.exp(rng.uniform(np.log(0.45), np.log(3.0), waves))
        heading = rng.uniform(0, 2 * np.pi, waves)
        self.frequency = (2 * np.pi / length) * np.stack([np.cos(heading), np.sin(heading)])
        self.phase = rng.uniform(0, 2 * np.pi, waves)
        strength = np.exp(rng.uniform(np.log(0.15), np.log(0.7)))
        self.amplitude = strength * 0.045 * length[:, None] * rng.normal(size=(waves, 2))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Displace points (N, 2) in disc diameters; the disc's centre is a fixed point."""
        shift = np.sin(points @ self.frequency + self.phase) - np.sin(self.phase)
        return points + shift @ self.amplitude


def _draw_trunks(
    temporal: int, fovea: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the large vessels.

    Args:
        temporal: 1 where the macula lies to the right of the disc, else -1.
        fovea: (2,) retina point, disc diameters.
        rng: of the draws.

    Returns:
        Nodes (N, 2), ``STEP_DD`` apart, the disc's centre first; and their parents (N,).
    """
    nodes, parent = np.zeros((1, 2)), np.zeros(1, int)
    for vertical in (-1, 1):
        for plan in TRUNK_PLANS:
            if rng.random() > plan.probability:
                continue
            points = np.array(plan.control)
            scatter = np.linspace(0.08, 0.4, len(points))[:, None]
            points = points * rng.uniform(0.8, 1.2, 2) + rng.normal(size=points.shape) * scatter
            points[:, 0] = points[:, 0] * temporal * abs(fovea[0]) / 2.5
            # Superior is up, so negative y; the trunks tilt with the line from disc to fovea.
            points[:, 1] = vertical * points[:, 1] + points[:, 0] * fovea[1] / fovea[0] * 0.5
            curve = _resample(points, STEP_DD)[1:]
            first = len(nodes)
            nodes, parent = _append(nodes, parent, curve, 0)
            for _ in range(rng.poisson(plan.mean_branches)):
                at = int(rng.integers(4, max(5, int(0.6 * len(curve)))))
                nodes, parent = _append(nodes, parent, _fork(curve, at, fovea, rng), first + at)
    return nodes, parent


def _append(
    nodes: np.ndarray, parent: np.ndarray, curve: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add a curve (K, 2) as a branch of the node ``start``."""
    first = len(nodes)
    links = np.concatenate([[start], np.arange(first, first + len(curve) - 1)])[: len(curve)]
    return np.concatenate([nodes, curve]), np.concatenate([parent, links])


def _fork(curve: np.ndarray, at: int, fovea: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A strong branch (K, 2) of a trunk, at an acute angle, mostly away from the fovea.

    Space colonisation alone gives trunks with thin branches only.
    """
    along = _unit(curve[at] - curve[at - 2])
    outwards = curve[at] - fovea
    side = np.sign(along[0] * outwards[1] - along[1] * outwards[0]) * (
        1 if rng.random() < 0.75 else -1
    )
    count = int(rng.uniform(1.0, 4.5) / STEP_DD)
    # The angle to the trunk decreases along the branch.
    turn = side * rng.uniform(0.45, 1.0) + np.cumsum(rng.normal(-0.008 * side, 0.02, count))
    heading = np.arctan2(along[1], along[0]) + turn
    curve = curve[at] + STEP_DD * np.cumsum(
        np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0
    )
    too_near = np.linalg.norm(curve - fovea, axis=1) < 0.6
    return curve[: int(too_near.argmax()) if too_near.any() else count]


def _resample(points: np.ndarray, step: float) -> np.ndarray:
    """A smooth curve near control points (K, 2), sampled every ``step`` disc diameters: (N, 2)."""
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
    """Draw the places that vessels must reach.

    They are denser in the macula; there are none in the avascular zone and on the disc.

    Returns:
        (M, 2) retina points, and (M,) their distance from each other there, disc diameters.
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


@dataclass
class _Tree:
    """A growing tree; arrays over its N nodes.

    Attributes:
        nodes: (N, 2) retina points, disc diameters.
        parent: (N,) int, index of the parent.
        heading: (N, 2) unit direction from the parent.
        children: (N,) int, number of children.
        fertile: (N,) bool, whether the node may get another child.
    """

    nodes: np.ndarray
    parent: np.ndarray
    heading: np.ndarray
    children: np.ndarray
    fertile: np.ndarray

    def extend(
        self,
        nearest: np.ndarray,
        pull: np.ndarray,
        fovea: np.ndarray,
        avascular: float,
        rng: np.random.Generator,
    ) -> None:
        """Add one step of length ``STEP_DD`` to every node that attractors pull.

        Args:
            nearest: (M,) int, the node that each attractor pulls.
            pull: (M, 2) unit directions from those nodes to their attractors.
            fovea: (2,) retina point, disc diameters.
            avascular: radius of the avascular zone, disc diameters.
            rng: perturbs the directions and decides whether a node stays fertile.
        """
        sources, inverse = np.unique(nearest, return_inverse=True)
        total = np.stack([np.bincount(inverse, pull[:, k], len(sources)) for k in (0, 1)], axis=1)
        inwards = fovea - self.nodes[sources]
        # Macular vessels run radially towards the fovea.
        inwards *= np.linalg.norm(inwards, axis=1, keepdims=True) < MACULA_RADIUS_DD
        direction = _unit(
            _unit(total)
            + 0.9 * self.heading[sources]
            + _bounded(inwards)
            + rng.normal(0, 0.08, total.shape)
        )
        self.children[sources] += 1
        self.fertile[sources] &= (self.children[sources] < 2) & (rng.random(len(sources)) < 0.65)
        grown = self.nodes[sources] + STEP_DD * direction
        # Vessels of one kind do not touch: a tip that meets another vessel ends.
        free = cKDTree(self.nodes).query(grown)[0] > 0.75 * STEP_DD
        free &= np.linalg.norm(grown - fovea, axis=1) > avascular
        self.fertile[sources[~free]] = False
        grown, direction, sources = grown[free], direction[free], sources[free]
        self.nodes = np.concatenate([self.nodes, grown])
        self.parent = np.concatenate([self.parent, sources])
        self.heading = np.concatenate([self.heading, direction])
        self.children = np.concatenate([self.children, np.zeros(len(sources), int)])
        self.fertile = np.concatenate([self.fertile, np.ones(len(sources), bool)])


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
    """Grow a tree towards attractors by space colonisation.

    Args:
        nodes, parent: (N, 2) and (N,), the tree to start from.
        fertile: (N,) bool, the nodes that may get another child.
        fovea, avascular: see :meth:`_Tree.extend`.
        attractors, spacing: (M, 2) and (M,), from :func:`_draw_attractors`.
        rng: of the draws.

    Returns:
        The larger nodes and parents, the given ones first.
    """
    tree = _Tree(
        nodes=nodes,
        parent=parent,
        heading=_unit(nodes - nodes[parent]),
        children=np.bincount(parent[1:], minlength=len(nodes)),
        fertile=fertile.copy(),
    )
    for _ in range(MAX_STEPS):
        candidates = np.flatnonzero(tree.fertile)
        if len(candidates) == 0:
            break
        distance, index = cKDTree(tree.nodes[candidates]).query(
            attractors, distance_upper_bound=PULL_RADIUS_DD
        )
        # An attractor is reached at about one step: a tip turns slowly and could circle around it.
        keep = distance > np.maximum(0.55 * spacing, 1.2 * STEP_DD)
        attractors, spacing = attractors[keep], spacing[keep]
        reach = np.isfinite(distance[keep])
        nearest = candidates[index[keep][reach]]
        pull = _unit(attractors[reach] - tree.nodes[nearest])
        # Tips grow forwards only, which prevents loops; side branches may leave at right angles.
        least_cosine = np.where(tree.children[nearest] == 0, 0.35, -0.1)
        ahead = (pull * tree.heading[nearest]).sum(axis=1) > least_cosine
        if not ahead.any():
            break
        tree.extend(nearest[ahead], pull[ahead], fovea, avascular, rng)
    return tree.nodes, tree.parent


def _bounded(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, 2) cut to a length of at most 0.8."""
    return vectors * np.minimum(
        1, 0.8 / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _smoothed(nodes: np.ndarray, parent: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Smooth the nodes (N, 2) along their vessels; ends and the root are not moved."""
    child = main_child(parent)
    inner = child != np.arange(len(parent))
    inner[0] = False
    for _ in range(rounds):
        mean = 0.5 * nodes + 0.25 * (nodes[parent] + nodes[child])
        nodes = np.where(inner[:, None], mean, nodes)
    return nodes


def _murray_widths(parent: np.ndarray, leaf: float, rng: np.random.Generator) -> np.ndarray:
    """Widths (N,) by Murray's law: w_parent^2.7 = sum of w_child^2.7.

    Ends are about ``leaf`` wide, ``MAX_WIDTH_DD`` is the largest width, disc diameters.
    """
    exponent = MURRAY_EXPONENT
    flow = np.zeros(len(parent))
    ends = np.setdiff1d(np.arange(len(parent)), parent)
    flow[ends] = np.exp(rng.normal(0, 0.35, len(ends)) * exponent)
    for node in range(len(parent) - 1, 0, -1):
        flow[parent[node]] += flow[node]
    flow[0] = flow[1:].max()
    return np.minimum(leaf * flow ** (1 / exponent), MAX_WIDTH_DD)
