"""Which examples are most likely mislabelled, by the best evidence that a store's columns give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastprio.inspect import scores
from fastprio.store import ScoreStore

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64

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


EVIDENCE = (
    Evidence(
        "epochs forgotten in the second split",
        {"last_correct": "number", "last_incorrect": "number", "half": "bit"},
        scores.epochs_forgotten,
        scores.why_forgotten_early,
        "Wrong labels are forgotten first when training goes on with other examples; rare examples are not (Maini et "
        "al., NeurIPS 2022). Only the half that was trained on first has a score.",
    ),
    Evidence(
        "forgetting events",
        {"forgotten": "number", "ever_correct": "bit"},
        scores.forgettings,
        scores.why_forgotten,
        "Forgotten most often, or never learnt, which counts one more than the most (Toneva et al., ICLR 2019). "
        + HARD,
    ),
    Evidence(
        "1 - mean p(label)",
        {"n": "number", "mean": "number", "squares": "number"},
        scores.doubt,
        scores.why_doubted,
        "Wrong labels stay improbable over all of training, and steadily so (Swayamdipta et al., EMNLP 2020). " + HARD,
    ),
    Evidence(
        "1 - mean recent p(label)",
        {"ring": "ring", "counts": "number", "deviations": "number", "windows": "number"},
        scores.recent_doubt,
        scores.why_doubted_lately,
        "Wrong labels stay improbable (Swayamdipta et al., EMNLP 2020), until they are memorised. " + HARD,
    ),
    Evidence(
        "epoch in which it was learnt",
        {"first_learned": "number", "removed": "bit"},
        scores.learnt_late,
        scores.why_learnt_late,
        "Wrong labels are learnt last (Yuan et al., ICCV 2023): what is not learnt yet counts one more than the "
        "latest, what an earlier round removed two. Rare examples are late as well.",
    ),
    Evidence(
        "mean of the last losses",
        {"losses": "ring", "count": "number"},
        lambda store: scores.ring_means(store, "losses", "count"),
        scores.by_median("mean loss"),
        "Wrong labels keep a high loss until they are memorised (Song et al., ECCV 2020). " + HARD,
    ),
    Evidence(
        "mean loss of the last epochs",
        {"losses": "ring", "known": "number"},
        scores.known_losses,
        scores.by_median("mean loss"),
        "Wrong labels keep a high loss until they are memorised. " + HARD,
    ),
    Evidence(
        "cumulative loss",
        {"cumulative": "number"},
        scores.column("cumulative"),
        scores.by_median("its losses add up to"),
        "Wrong labels keep a high loss until they are memorised. What was visited more often has a larger sum. " + HARD,
    ),
    Evidence(
        "smoothed loss under a guard",
        {"smoothed": "number"},
        scores.column("smoothed"),
        scores.by_median("smoothed loss"),
        "What is set aside is not memorised, so that wrong labels keep a high loss. " + HARD,
    ),
    Evidence(
        "smoothed loss",
        {"average": "number", "score": "number"},
        scores.column("average"),
        scores.by_median("smoothed loss"),
        "Wrong labels keep a high loss until they are memorised. " + HARD,
    ),
    Evidence(
        "mean distance of prediction and label",
        {"mean": "number", "count": "number"},
        scores.column("mean"),
        scores.by_median("mean distance"),
        "The largest EL2N scores are mostly noise (Paul et al., NeurIPS 2021). " + HARD,
    ),
    Evidence(
        "confidence in another label",
        {"loss": "number", "correct": "bit", "confidence": "number"},
        scores.contradiction,
        scores.why_contradicted,
        "At its last visit the model was sure of another label; below 0, of this one. One visit tells little. " + HARD,
    ),
    Evidence(
        "loss",
        {"loss": "number"},
        scores.column("loss"),
        scores.by_median("loss"),
        "The loss as the policy remembers it, of the last visit as a rule: weak evidence. " + HARD,
    ),
    Evidence(
        "loss under the reference model",
        {"reference": "number", "referenced": "bit"},
        scores.column("reference"),
        scores.by_median("reference loss"),
        "Weak evidence: a model that never saw this label finds it improbable. " + HARD,
    ),
    Evidence(
        "priority",
        {},
        scores.priorities_that_follow_losses,
        scores.by_median("priority"),
        "The store keeps nothing but priorities, which under this policy grow with the loss: weak evidence. " + HARD,
    ),
)
"""From the best to the weakest; the first whose columns are there, and hold something, is taken."""


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
        found = evidence.score(store)
        if not np.isnan(found).all():
            at, tied = largest(found, top)
            return Suspects(evidence, found, at, evidence.why(store, at, found), tied)
    return None


def largest(score: Float32, most: int) -> tuple[Int64, int]:
    """The indices of the ``most`` largest scores, NaN aside, and how many more equal the last of them.

    Largest first, equal ones by index. Some score must not be NaN. Cost: O(size) and a sort of those that it returns.
    """
    known = np.flatnonzero(~np.isnan(score))
    values, count = score[known], min(most, len(known))
    least = np.partition(values, len(known) - count)[len(known) - count]
    above, equal = known[values > least], known[values == least]
    at = np.concatenate([above, equal[: count - len(above)]])
    return at[np.lexsort((at, -score[at]))], len(equal) - (count - len(above))


def _kind(store: ScoreStore, name: str) -> str | None:
    kind = store.types.get(name)
    return None if kind is None else "ring" if isinstance(kind, tuple) else "bit" if kind == "bit" else "number"
