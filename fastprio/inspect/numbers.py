"""What a store tells in numbers: distributions, the law of its draws, ages, and whose label may be wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio.inspect.evidence import Suspects, suspects
from fastprio.inspect.scores import filled
from fastprio.policies.noise_guard import NoiseGuard

if TYPE_CHECKING:
    from fastprio._arrays import Float64, Int64
    from fastprio.store import ScoreStore

PERCENTILES = (5, 25, 50, 75, 95, 100)
BINS = 60
DECADES = 1.5
"""Values whose middle 99 % span more are shown on a logarithmic axis."""


@dataclass(frozen=True)
class Distribution:
    """How some values are distributed, and a histogram of them.

    examples: how many have a value; not_finite: those left out. zeros: how many are 0. percentiles: p -> the smallest
    value that at least p % are at or below (100: the maximum). edges: float64 [bins + 1], of half-open bins, the last
    one closed; counts: int64 [bins]. log: the bins grow by equal factors, and zeros are in none.
    """

    name: str
    examples: int
    not_finite: int
    zeros: int
    percentiles: dict[int, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    log: bool


@dataclass(frozen=True)
class Guarded:
    """What a NoiseGuard has decided, by which tau (0: by none yet) and border; how many examples are set aside, of
    which the share ``back`` is trained on all the same."""

    verdict: str
    tau: float
    border: float
    chance: float
    aside: int
    back: float


@dataclass(frozen=True)
class Inspection:
    """A store in numbers.

    policy: its call. nbytes: of the store in memory. kept_bytes: of what was saved with the store, such as a sampler's
    state; None: nothing was. seen: how many examples were ever scored. by_tree: whether the priorities alone say what
    is drawn. priorities: of all examples. columns: those of numbers with a fraction, of examples that have one. stats:
    see ``ScoreStore.stats``. guard: None unless the policy is a NoiseGuard. ages: in updates, see
    ``ScoreStore.ages``; None where nothing was scored. score: of the suspects' evidence; both None where there is none.
    """

    size: int
    policy: str
    epochs: int | None
    epoch: int
    step: int
    nbytes: int
    kept_bytes: int | None
    seen: int
    by_tree: bool
    priorities: Distribution
    columns: tuple[Distribution, ...]
    stats: dict[str, float]
    guard: Guarded | None
    ages: Distribution | None
    suspects: Suspects | None
    score: Distribution | None


def inspect(store: ScoreStore, top: int) -> Inspection:
    """All of it; ``top`` suspects at most.

    Cost: O(size log size), a sort for the priorities, for each such column and for the score, of which one is in memory
    at a time: up to some 30 bytes an example beside the store.
    """
    policy, found = store.policy, suspects(store, top)
    columns = [name for name, kind in store.types.items() if not isinstance(kind, tuple) and kind.startswith("float")]
    ages = store.ages()[1]
    return Inspection(
        size=len(store),
        policy=repr(policy),
        epochs=store.epochs,
        epoch=store.clock.epoch,
        step=store.clock.step,
        nbytes=store.nbytes,
        kept_bytes=None if store.kept is None else sum(array.nbytes for array in store.kept[0].values()),
        seen=int(np.count_nonzero(store.seen())),
        by_tree=not policy.own_draws and "epoch" not in policy.acts,
        priorities=distribution("priority", store.priorities),
        columns=tuple(distribution(name, store.column(name)[filled(store, name)]) for name in columns),
        stats=store.stats(),
        guard=_guarded(policy, store) if isinstance(policy, NoiseGuard) else None,
        ages=distribution("age", ages) if len(ages) else None,
        suspects=found,
        score=None if found is None else distribution(found.evidence.name, found.scores[~np.isnan(found.scores)]),
    )


def _guarded(policy: NoiseGuard, store: ScoreStore) -> Guarded:
    aside = int(np.count_nonzero(policy.aside(store)))
    return Guarded(policy.verdict, policy.probed_tau, policy.tau, policy.chance, aside, policy.back)


def distribution(name: str, values: Any) -> Distribution:
    """Of real values [n], n >= 0. Cost: a sorted copy."""
    finite = np.isfinite(values)
    ordered = np.sort(values if finite.all() else values[finite])
    n, begin, end = len(ordered), *(int(np.searchsorted(ordered, 0, side)) for side in ("left", "right"))
    at = {p: float(ordered[max(0, math.ceil(p * n / 100) - 1)]) for p in PERCENTILES} if n else {}
    whole = _whole(ordered)
    log = begin == 0 and not whole and _spans_decades(ordered[end:])
    shown = ordered[end:] if log else ordered
    edges = _edges(float(shown[0]), float(shown[-1]), whole, log) if n else np.zeros(0)
    counts = np.diff([*np.searchsorted(shown, edges[:-1]), len(shown)]) if n else edges
    return Distribution(name, n, len(values) - n, end - begin, at, tuple(edges.tolist()), tuple(counts.tolist()), log)


def _whole(ordered: Any) -> bool:
    """Whether the sorted values are whole numbers, few enough for a bin each where they have another dtype."""
    if np.issubdtype(ordered.dtype, np.integer) or not len(ordered):
        return True
    least, most = float(ordered[0]), float(ordered[-1])
    # Above 2^53 there is nothing between two whole numbers.
    return bool(max(-least, most) < 2**53 and most - least < BINS and (ordered == np.floor(ordered)).all())


def _spans_decades(positive: Any) -> bool:
    """Of sorted values above zero."""
    if not len(positive):
        return False
    low, high = (float(positive[int(share * (len(positive) - 1))]) for share in (0.005, 0.995))
    return math.log10(high) - math.log10(low) > DECADES


def _edges(least: float, most: float, whole: bool, log: bool) -> Float64:
    if whole:
        width = math.ceil((most - least + 1) / BINS)
        return np.arange(least, most + width + 0.5, width) - 0.5
    if least == most:
        around = max(0.5, abs(least) / BINS)
        return np.array([least - around, least + around])
    edges: Float64 = np.geomspace(least, most, BINS + 1) if log else np.linspace(least, most, BINS + 1)
    edges[0], edges[-1] = least, most  # not a rounding above or below them
    return edges


def of_classes(labels: Int64, at: Int64) -> list[tuple[int, int, int]]:
    """(label, examples listed, all examples) of each label that is among those at ``at``, the most listed first."""
    every, counts = np.unique(labels, return_counts=True)
    found, listed = np.unique(labels[at], return_counts=True)
    rows = zip(found.tolist(), listed.tolist(), counts[np.searchsorted(every, found)].tolist(), strict=True)
    return sorted(rows, key=lambda row: (-row[1], row[0]))
