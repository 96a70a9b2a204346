"""Scores of how likely a label is wrong, each by some columns of a store, and sentences that say why.

A score is float32 [size], large where the label is likely wrong, NaN where nothing is known. The sentences are of the
examples ``at``, given all scores. Cost: O(size), some float32 an example while it lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio.policies.primitives import unpacked
from fastprio.store import ScoreStore
from fastprio.testing import made_up

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastprio._arrays import Float32, Int64

    Mask = npt.NDArray[np.bool_]

ROWS = 1 << 15
"""Rows of a ring that are averaged at a time."""


def filled(store: ScoreStore, name: str) -> Mask:
    """bool [size]: which examples have a value in a column: those counted there, or those that have been seen."""
    for counter in COUNTERS.get(name, ()):
        if counter in store.types:
            bits = store.types[counter] == "bit"
            return unpacked(store.column(counter), len(store)) if bits else store.column(counter) > 0
    seen: Mask = store.seen()
    return seen


COUNTERS = {
    "mean": ("n", "count"),
    "squares": ("n",),
    "deviations": ("windows",),
    "certainty": ("counts",),
    "reference": ("referenced",),
}
"""Column -> columns that say whether an example has a value in it, the first that the store has; else: if seen."""


def _where(known: Any, values: Any) -> Float32:
    with np.errstate(over="ignore"):  # a sum may be above what float32 holds, and is the largest all the same
        return np.where(known, values, np.nan).astype(np.float32)


def _row_means(rows: Any, among: Callable[[slice], Any]) -> Float32:
    """The mean of each row over the values that ``among`` masks, for a stretch of rows at a time; NaN without any."""
    means = np.empty(len(rows), np.float32)
    for begin in range(0, len(rows), ROWS):
        stretch = slice(begin, begin + ROWS)
        mask = among(stretch)
        count = mask.sum(1)
        total = np.where(mask, rows[stretch], 0).sum(1, dtype=np.float64)
        means[stretch] = _where(count > 0, total / np.maximum(count, 1))
    return means


def ring_means(store: ScoreStore, ring: str, counts: str) -> Float32:
    """The mean of the values in each ring, of which ``counts`` says how many there are."""
    rows, count = store.column(ring), store.column(counts)
    return _row_means(rows, lambda stretch: np.arange(rows.shape[1]) < count[stretch, None])


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def by_median(what: str) -> Callable[[ScoreStore, Int64, Float32], list[str]]:
    """Sentences that compare each score with the median of all."""

    def why(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
        middle = float(np.nanmedian(scores))
        return [
            f"{what} {scores[i]:.3g}" + (f", {_times(scores[i] / middle)} the median" if middle > 0 else "") for i in at
        ]

    return why


def epochs_forgotten(store: ScoreStore) -> Float32:
    """Epochs since the label was last predicted in the second split, of the half that was trained on first."""
    last = store.column("last_correct")
    scored = unpacked(store.column("half"), len(store)) & last.any()
    return _where(scored, float(last.max()) - last)


def why_forgotten_early(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    """When it was last right, and last wrong."""
    rights, wrongs = store.column("last_correct")[at].tolist(), store.column("last_incorrect")[at].tolist()
    return [
        (f"last right in epoch {right} of the second split" if right else "never right in the second split")
        + (f", last wrong in epoch {wrong} of the first" if wrong else ", never wrong in the first")
        for right, wrong in zip(rights, wrongs, strict=True)
    ]


def forgettings(store: ScoreStore) -> Float32:
    """How often the label was unlearnt; never learnt counts one more than the most."""
    counts, seen = store.column("forgotten").astype(np.float32), store.seen()
    counts[~unpacked(store.column("ever_correct"), len(store))] = counts.max() + 1
    return _where(seen, counts)


def why_forgotten(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    """How often it was forgotten."""
    learnt = unpacked(store.column("ever_correct"), len(store))[at]
    times = store.column("forgotten")[at].tolist()
    return [
        f"learnt, then forgotten {k} time{'s' * (k != 1)}" if ever else "never predicted as its label"
        for k, ever in zip(times, learnt, strict=True)
    ]


def doubt(store: ScoreStore) -> Float32:
    """1 - the mean probability of the label."""
    return _where(store.column("n") > 0, 1 - store.column("mean"))


def why_doubted(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    """The mean probability of the label, over how many visits, and its standard deviation."""
    n, mean = store.column("n")[at], store.column("mean")[at]
    spread = np.sqrt(store.column("squares")[at] / n)
    return [
        f"p(label) {m:.3f} on average over {k} visit{'s' * (k != 1)}, deviation {d:.3f}"
        for k, m, d in zip(n.tolist(), mean, spread, strict=True)
    ]


def recent_doubt(store: ScoreStore) -> Float32:
    """1 - the mean probability of the label at the last visits."""
    return 1 - ring_means(store, "ring", "counts")


def why_doubted_lately(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    """The mean probability of the label, over how many visits."""
    count = np.minimum(store.column("counts")[at], store.column("ring").shape[1])
    return [
        f"p(label) {1 - scores[i]:.3f} on average over the last {k} visit{'s' * (k != 1)}"
        for i, k in zip(at, count.tolist(), strict=True)
    ]


def learnt_late(store: ScoreStore) -> Float32:
    """The epoch in which it was learnt; not learnt yet counts one more than the latest, removed two."""
    first, seen = store.column("first_learned"), store.seen()
    removed = unpacked(store.column("removed"), len(store))
    latest = float(first.max())
    epochs = np.where(removed, latest + 2, np.where(first > 0, first, latest + 1))
    return _where(seen & (first.any() or removed.any()), epochs)


def why_learnt_late(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    """When it was learnt, or that it was removed."""
    removed = unpacked(store.column("removed"), len(store))[at]
    return [
        "removed: not learnt by the end of its round" if gone
        else f"learnt in epoch {first} of the round" if first
        else "not learnt yet in this round"
        for gone, first in zip(removed, store.column("first_learned")[at].tolist(), strict=True)
    ]  # fmt: skip


def contradiction(store: ScoreStore) -> Float32:
    """The confidence in another label; in the given one with a minus."""
    right, confidence = unpacked(store.column("correct"), len(store)), store.column("confidence")
    return _where(store.seen(), np.where(right, -confidence, confidence))


def why_contradicted(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    """What was predicted, how surely, and the loss."""
    losses = store.column("loss")[at]
    right = unpacked(store.column("correct"), len(store))[at]
    return [
        f"last predicted as {'its' if same else 'another'} label, confidence {abs(scores[i]):.3f}, loss {loss:.3g}"
        for i, same, loss in zip(at, right, losses, strict=True)
    ]


def known_losses(store: ScoreStore) -> Float32:
    """The mean of the losses that are known, of which a bit mask says which they are."""
    losses, known = store.column("losses"), store.column("known")
    bits = np.arange(losses.shape[1], dtype=known.dtype)
    return _row_means(losses, lambda stretch: (known[stretch, None] >> bits & 1).astype(bool))


def column(name: str) -> Callable[[ScoreStore], Float32]:
    """A column as it is."""
    return lambda store: _where(filled(store, name), store.column(name))


def priorities_that_follow_losses(store: ScoreStore) -> Float32:
    """The priorities, if they grow with the loss."""
    return _where(store.seen() & grows_with_loss(store), store.priorities)


def grows_with_loss(store: ScoreStore) -> bool:
    """Whether a new policy of the same arguments gives larger priorities to larger losses: of a few, by trial."""
    losses = np.linspace(0.5, 4, 8, dtype=np.float32)
    if not store.policy.observes:
        return False
    try:
        trial = ScoreStore(len(losses), type(store.policy)(**store.policy.config()), epochs=store.epochs)
        same = {name: v.repeat(len(losses)) for name, v in made_up(trial.policy, 1, np.random.default_rng(0)).items()}
        trial.update(np.arange(len(losses)), losses, **same)
    except Exception:  # one's own may refuse what was made up, and raise anything at all
        return False
    return bool((np.diff(trial.priorities) > 0).all())
