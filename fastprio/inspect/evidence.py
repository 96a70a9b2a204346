"""Which examples are most likely mislabelled, by the best that the store's columns tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastprio.policies.primitives import unpacked
from fastprio.store import ScoreStore
from fastprio.testing import made_up

if TYPE_CHECKING:
    import numpy.typing as npt

    from fastprio._arrays import Float32, Int64

    Mask = npt.NDArray[np.bool_]

ROWS = 1 << 15  # of a ring that are averaged together

HARD = "High is also what is merely hard or rare: look at an example before you drop it."


class Evidence(NamedTuple):
    """One way to tell. It is taken where the store has the columns that it needs, and they hold something.

    name: of the score, for headings and axes. needs: column -> "number", "bit" or "ring" (several numbers an example).
    score: float32 [size], large where the label is likely wrong; NaN where nothing is known. why: a sentence for each
    of some examples, given all scores. words: what it goes by, what it cannot tell, and its source.
    """

    name: str
    needs: Mapping[str, str]
    score: Callable[[ScoreStore], Float32]
    why: Callable[[ScoreStore, Int64, Float32], list[str]]
    words: str


@dataclass(frozen=True)
class Suspects:
    """What was found: by which evidence, every score, and the examples of the largest, from the largest down.

    scores: float32 [size]; NaN where nothing is known. at: int64 [k]; equal scores by index. why: k sentences. tied:
    how many more examples have the score of the last one listed.
    """

    evidence: Evidence
    scores: Float32
    at: Int64
    why: list[str]
    tied: int


def suspects(store: ScoreStore, top: int) -> Suspects | None:
    """The ``top`` examples most likely mislabelled, by the first evidence that has anything to say; None: none has.

    Cost: O(size), with a few float32 an example while it lasts.
    """
    for evidence in EVIDENCE:
        if not all(_kind(store, name) == kind for name, kind in evidence.needs.items()):
            continue
        scores = evidence.score(store)
        if not np.isnan(scores).all():
            at, tied = largest(scores, top)
            return Suspects(evidence, scores, at, evidence.why(store, at, scores), tied)
    return None


def largest(scores: Float32, most: int) -> tuple[Int64, int]:
    """The indices of the ``most`` largest scores, NaN aside, and how many more equal the last of them.

    Largest first, equal ones by index. Some score must not be NaN. Cost: O(size) and a sort of those that it returns.
    """
    known = np.flatnonzero(~np.isnan(scores))
    values, count = scores[known], min(most, len(known))
    least = np.partition(values, len(known) - count)[len(known) - count]
    above, equal = known[values > least], known[values == least]
    at = np.concatenate([above, equal[: count - len(above)]])
    return at[np.lexsort((at, -scores[at]))], len(equal) - (count - len(above))


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


def _kind(store: ScoreStore, name: str) -> str | None:
    kind = store.types.get(name)
    return None if kind is None else "ring" if isinstance(kind, tuple) else "bit" if kind == "bit" else "number"


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


def _ring_means(store: ScoreStore, ring: str, counts: str) -> Float32:
    rows, count = store.column(ring), store.column(counts)
    return _row_means(rows, lambda stretch: np.arange(rows.shape[1]) < count[stretch, None])


def _by_median(what: str) -> Callable[[ScoreStore, Int64, Float32], list[str]]:
    """Sentences that compare each score with the median of all."""

    def why(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
        middle = float(np.nanmedian(scores))
        return [
            f"{what} {scores[i]:.3g}" + (f", {scores[i] / middle:,.3g} times the median" if middle > 0 else "")
            for i in at
        ]

    return why


def _epochs_forgotten(store: ScoreStore) -> Float32:
    last = store.column("last_correct")
    scored = unpacked(store.column("half"), len(store)) & last.any()
    return _where(scored, float(last.max()) - last)


def _why_forgotten_early(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    rights, wrongs = store.column("last_correct")[at].tolist(), store.column("last_incorrect")[at].tolist()
    return [
        (f"last right in epoch {right} of the second split" if right else "never right in the second split")
        + (f", last wrong in epoch {wrong} of the first" if wrong else ", never wrong in the first")
        for right, wrong in zip(rights, wrongs, strict=True)
    ]


def _forgettings(store: ScoreStore) -> Float32:
    counts, seen = store.column("forgotten").astype(np.float32), store.seen()
    counts[~unpacked(store.column("ever_correct"), len(store))] = counts.max() + 1
    return _where(seen, counts)


def _why_forgotten(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    learnt = unpacked(store.column("ever_correct"), len(store))[at]
    times = store.column("forgotten")[at].tolist()
    return [
        f"learnt, then forgotten {k} time{'s' * (k != 1)}" if ever else "never predicted as its label"
        for k, ever in zip(times, learnt, strict=True)
    ]


def _doubt(store: ScoreStore) -> Float32:
    return _where(store.column("n") > 0, 1 - store.column("mean"))


def _why_doubted(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    n, mean = store.column("n")[at], store.column("mean")[at]
    spread = np.sqrt(store.column("squares")[at] / n)
    return [
        f"p(label) {m:.3f} on average over {k} visit{'s' * (k != 1)}, deviation {d:.3f}"
        for k, m, d in zip(n.tolist(), mean, spread, strict=True)
    ]


def _recent_doubt(store: ScoreStore) -> Float32:
    return 1 - _ring_means(store, "ring", "counts")


def _why_doubted_lately(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    count = np.minimum(store.column("counts")[at], store.column("ring").shape[1])
    return [
        f"p(label) {1 - scores[i]:.3f} on average over the last {k} visit{'s' * (k != 1)}"
        for i, k in zip(at, count.tolist(), strict=True)
    ]


def _learnt_late(store: ScoreStore) -> Float32:
    first, seen = store.column("first_learned"), store.seen()
    removed = unpacked(store.column("removed"), len(store))
    latest = float(first.max())
    epochs = np.where(removed, latest + 2, np.where(first > 0, first, latest + 1))
    return _where(seen & (first.any() or removed.any()), epochs)


def _why_learnt_late(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    removed = unpacked(store.column("removed"), len(store))[at]
    return [
        "removed: not learnt by the end of its round" if gone
        else f"learnt in epoch {first} of the round" if first
        else "not learnt yet in this round"
        for gone, first in zip(removed, store.column("first_learned")[at].tolist(), strict=True)
    ]  # fmt: skip


def _contradiction(store: ScoreStore) -> Float32:
    right, confidence = unpacked(store.column("correct"), len(store)), store.column("confidence")
    return _where(store.seen(), np.where(right, -confidence, confidence))


def _why_contradicted(store: ScoreStore, at: Int64, scores: Float32) -> list[str]:
    losses = store.column("loss")[at]
    right = unpacked(store.column("correct"), len(store))[at]
    return [
        f"last predicted as {'its' if same else 'another'} label, confidence {abs(scores[i]):.3f}, loss {loss:.3g}"
        for i, same, loss in zip(at, right, losses, strict=True)
    ]


def _known_losses(store: ScoreStore) -> Float32:
    losses, known = store.column("losses"), store.column("known")
    bits = np.arange(losses.shape[1], dtype=known.dtype)
    return _row_means(losses, lambda stretch: (known[stretch, None] >> bits & 1).astype(bool))


def _column(name: str) -> Callable[[ScoreStore], Float32]:
    return lambda store: _where(filled(store, name), store.column(name))


def _priorities_that_follow_losses(store: ScoreStore) -> Float32:
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


EVIDENCE = (
    Evidence(
        "epochs forgotten in the second split",
        {"last_correct": "number", "last_incorrect": "number", "half": "bit"},
        _epochs_forgotten,
        _why_forgotten_early,
        "Wrong labels are forgotten first when training goes on with other examples; rare examples are not (Maini et "
        "al., NeurIPS 2022). Only the half that was trained on first has a score.",
    ),
    Evidence(
        "forgetting events",
        {"forgotten": "number", "ever_correct": "bit"},
        _forgettings,
        _why_forgotten,
        "Forgotten most often, or never learnt, which counts one more than the most (Toneva et al., ICLR 2019). "
        + HARD,
    ),
    Evidence(
        "1 - mean p(label)",
        {"n": "number", "mean": "number", "squares": "number"},
        _doubt,
        _why_doubted,
        "Wrong labels stay improbable over all of training, and steadily so (Swayamdipta et al., EMNLP 2020). " + HARD,
    ),
    Evidence(
        "1 - mean recent p(label)",
        {"ring": "ring", "counts": "number", "deviations": "number", "windows": "number"},
        _recent_doubt,
        _why_doubted_lately,
        "Wrong labels stay improbable (Swayamdipta et al., EMNLP 2020), until they are memorised. " + HARD,
    ),
    Evidence(
        "epoch in which it was learnt",
        {"first_learned": "number", "removed": "bit"},
        _learnt_late,
        _why_learnt_late,
        "Wrong labels are learnt last (Yuan et al., ICCV 2023): what is not learnt yet counts one more than the "
        "latest, what an earlier round removed two. Rare examples are late as well.",
    ),
    Evidence(
        "mean of the last losses",
        {"losses": "ring", "count": "number"},
        lambda store: _ring_means(store, "losses", "count"),
        _by_median("mean loss"),
        "Wrong labels keep a high loss until they are memorised (Song et al., ECCV 2020). " + HARD,
    ),
    Evidence(
        "mean loss of the last epochs",
        {"losses": "ring", "known": "number"},
        _known_losses,
        _by_median("mean loss"),
        "Wrong labels keep a high loss until they are memorised. " + HARD,
    ),
    Evidence(
        "cumulative loss",
        {"cumulative": "number"},
        _column("cumulative"),
        _by_median("its losses add up to"),
        "Wrong labels keep a high loss until they are memorised. What was visited more often has a larger sum. " + HARD,
    ),
    Evidence(
        "smoothed loss",
        {"average": "number", "score": "number"},
        _column("average"),
        _by_median("smoothed loss"),
        "Wrong labels keep a high loss until they are memorised. " + HARD,
    ),
    Evidence(
        "mean distance of prediction and label",
        {"mean": "number", "count": "number"},
        _column("mean"),
        _by_median("mean distance"),
        "The largest EL2N scores are mostly noise (Paul et al., NeurIPS 2021). " + HARD,
    ),
    Evidence(
        "confidence in another label",
        {"loss": "number", "correct": "bit", "confidence": "number"},
        _contradiction,
        _why_contradicted,
        "At its last visit the model was sure of another label; below 0, of this one. One visit tells little. " + HARD,
    ),
    Evidence(
        "loss",
        {"loss": "number"},
        _column("loss"),
        _by_median("loss"),
        "The loss as the policy remembers it, of the last visit as a rule: weak evidence. " + HARD,
    ),
    Evidence(
        "loss under the reference model",
        {"reference": "number", "referenced": "bit"},
        _column("reference"),
        _by_median("reference loss"),
        "Weak evidence: a model that never saw this label finds it improbable. " + HARD,
    ),
    Evidence(
        "priority",
        {},
        _priorities_that_follow_losses,
        _by_median("priority"),
        "The store keeps nothing but priorities, which under this policy grow with the loss: weak evidence. " + HARD,
    ),
)
"""From the best to the weakest; the first whose columns are there, and hold something, is taken."""
