"""What is saved with a store so that the epoch under way goes on exactly: the journal, and what stands around it.

A sampler's own state is a draw number. Which draws are in flight, which losses wait, how far covering and the plan
have come, is as large as the journal, and is saved with the store, at the same moment as the store.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastprio import _core
from fastprio._arrays import integer
from fastprio.feedback import Update
from fastprio.journal import Draws, Share
from fastprio.order import Cover, Walk
from fastprio.policies.base import Plan
from fastprio.snapshot import check_format

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastprio._arrays import Float32, Float64, Int64
    from fastprio.epoch import Epoch
    from fastprio.feedback import Feedback
    from fastprio.journal import Journal

FORMAT = 1
"""The newest format of a sampler's state, and of what it saves with the store, that this version writes and reads."""
ENTRY = ("number", "first", "length", "consumed", "weighted", "covering", "position", "passes")
POSITION = {
    "seed": (1 << 64) - 1, "iteration": (1 << 62), "epoch": (1 << 32) - 1, "position": 1 << 62,
}  # fmt: skip
COUNTS = ("iteration", "epoch", "total", "drawn", "batches", "consumed_batches")
Record = tuple[dict[str, Any], dict[str, Any]]


class Entry(NamedTuple):
    """Draws of the journal; ``consumed`` counts those of all ranks."""

    number: int
    first: int
    consumed: int
    indices: Int64
    probabilities: Float64
    weights: Float32 | None
    cover: tuple[Walk | None, int, int] | None

    @property
    def end(self) -> int:
        """Number of the draw after the last."""
        return self.first + len(self.indices)


class Saved(NamedTuple):
    """An epoch under way, as it was saved."""

    settings: dict[str, Any]
    was_idle: bool
    entries: list[Entry]
    updates: list[Update]
    cover: Any
    plan: Plan | None
    plan_at: tuple[int, int]
    iteration: int
    epoch: int
    total: int
    drawn: int
    batches: int
    consumed_batches: int


def check_state(state: Any) -> dict[str, Any]:
    """A sampler's state as it should be. ValueError for anything else, or of a newer version."""
    if not isinstance(state, Mapping) or "format" not in state:
        raise ValueError(f"not a state of a PrioritySampler: {state!r}"[:300])
    check_format(state, FORMAT)
    try:
        numbers = {name: integer(name, state[name], 0, most) for name, most in POSITION.items()}
        said = None if state["said"] is None else integer("said", state["said"], 0, POSITION["epoch"])
        return {**numbers, "said": said, "over": bool(state["over"]), "replay": bool(state["replay"])}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a state of a PrioritySampler: {error!r}") from error


def check_kept(store: Any, shard: str, rank: int, ranks: int) -> None:
    """ValueError if what is saved with a store is of a newer version, or of another shard than this rank's."""
    kept = store.get("kept") if isinstance(store, Mapping) else None
    if not isinstance(kept, Mapping) or not isinstance(kept.get("settings"), Mapping):
        return  # ``unpack`` says what is wrong
    if "format" in kept:
        check_format(kept, FORMAT)
    was = kept["settings"]
    of = was.get("shard"), was.get("rank"), was.get("num_replicas")
    if shard != of[0] or (shard == "sharded" and (rank, ranks) != of[1:]):
        saved = of[0] if of[1] is None else f"sharded, rank {of[1]} of {of[2]}"
        here = shard if shard != "sharded" else f"sharded, rank {rank} of {ranks}"
        raise ValueError(
            f"the state is {saved}, this sampler is {here}: with shards every rank saves and loads a state of its own, "
            "on as many ranks"
        )


def pack(
    epoch: Epoch,
    journal: Journal,
    feedback: Feedback,
    cover: Cover,
    settings: Mapping[str, Any],
    counts: Mapping[str, Any],
) -> Record:
    """Arrays by name, and plain values. Waits for losses that other ranks are sending."""
    epoch.priorities_changed()  # single draws not taken yet are made anew, after a resume as without one
    entries = [draws for draws in [*journal.kept(), *epoch.again] if len(draws)]
    begin = kept_from([(draws.first, draws.first + len(draws)) for draws in entries], epoch.drawn)
    if (snapshot := journal.gone_back_to) is not None and snapshot < begin:
        warnings.warn(
            f"the loader's last snapshot is of draw {snapshot}, and the journal keeps those from {begin} on: a state "
            f"that is saved now cannot be loaded by such a loader. Pass more than depth={journal.depth} to the "
            "sampler, or let the loader take snapshots more often (snapshot_every_n_steps)",
            stacklevel=2,
        )
    walk = cover.walk or next((draws.cover[0] for draws in entries if draws.cover is not None), None)
    rows = [
        (
            draws.number,
            draws.first,
            len(draws),
            min(draws.consumed * draws.share.ranks, len(draws)),
            draws.everyones[2] is not None,
            draws.cover is not None,
            *(draws.cover[1:] if draws.cover is not None else (0, 0)),
        )
        for draws in entries
    ]
    arrays: dict[str, Any] = {
        "entries": np.array(rows, np.int64).reshape(-1, len(ENTRY)),
        "indices": _joined([draws.everyones[0] for draws in entries], np.int64),
        "probabilities": _joined([draws.everyones[1] for draws in entries], np.float64),
        "weights": _joined([w for draws in entries if (w := draws.everyones[2]) is not None], np.float32),
    }
    waiting = []
    for k, update in enumerate(feedback.waiting):
        indices, losses, observations = update.result()
        waiting.append([update.number, sorted(observations)])
        named = {"indices": indices, "losses": losses, **{f"of.{name}": o for name, o in observations.items()}}
        arrays.update({f"waiting.{k}.{name}": np.ascontiguousarray(array) for name, array in named.items()})
    plain: dict[str, Any] = {
        "format": FORMAT,
        "settings": dict(settings),
        **counts,
        "epoch": epoch.number,
        "total": epoch.total,
        "drawn": epoch.drawn,
        "batches": epoch.batches,
        "consumed_batches": journal.consumed_batches,
        "waiting": waiting,
        "cover": cover.pack(),
        "walk": None,
        "plan": None,
    }
    if walk is not None:
        plain["walk"] = [walk.all, walk.seed, walk.number]
        if walk.among is not None:
            arrays["among"] = walk.among
    if epoch.planned is not None:
        plan = epoch.planned.plan
        plain["plan"] = {
            "weights": [float(weight) for weight in plan.weights],
            "score": [int(code) for code in plan.score],
            "info": dict(plan.info),
            "at": list(epoch.planned.at),
        }
        if plan.codes is not None:
            arrays["plan"] = plan.codes
    return arrays, plain


def unpack(record: Record, size: int) -> Saved:
    """What was packed. ValueError for anything else, or of a newer version."""
    arrays, plain = record
    try:
        check_format(plain, FORMAT)
        walk = None
        if plain["walk"] is not None:
            of, seed, number = plain["walk"]
            walk = Walk(of, seed, number, _core.Purpose.cover, arrays.get("among"))
        plan, at = None, (0, 0)
        if plain["plan"] is not None:
            saved = plain["plan"]
            plan = Plan(arrays.get("plan"), tuple(saved["weights"]), tuple(saved["score"]), dict(saved["info"]))
            at = (int(saved["at"][0]), int(saved["at"][1]))
            if plan.codes is not None and (plan.codes.shape != (size,) or plan.codes.max() >= len(plan.weights)):
                raise ValueError("plan")
        updates = []
        for k, (number, names) in enumerate(plain["waiting"]):
            named = {name: arrays[f"waiting.{k}.of.{name}"] for name in names}
            updates.append(Update(number, arrays[f"waiting.{k}.indices"], arrays[f"waiting.{k}.losses"], named))
        counts = {name: integer(name, plain[name], 0) for name in COUNTS}
        entries = _unpacked_entries(arrays, walk)
        cover = walk, [int(value) for value in plain["cover"]]
        return Saved(dict(plain["settings"]), bool(plain["was_idle"]), entries, updates, cover, plan, at, **counts)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        if str(error).startswith("format"):
            raise
        raise ValueError(f"the store's state has no journal that can be read: {error!r}") from error


def to_issue_again(saved: Saved, position: int, replay: bool, share: Share, depth: int) -> list[Draws]:
    """The draws from number ``position`` on, as they were.

    Args:
        replay: whether the loader passes again over those that were consumed. depth: what the journal keeps.

    Raises: ValueError if the journal does not go back so far, or does not reach ``position``.
    """
    if position > saved.drawn:
        raise ValueError(
            f"the loader's state is of draw {position} of epoch {saved.epoch}, the store's journal ends at "
            f"{saved.drawn}: they were not saved at the same moment"
        )
    begin = kept_from([(entry.first, entry.end) for entry in saved.entries], saved.drawn)
    if not replay:  # what is not there was consumed, in whatever order
        begin = min(position, begin)
    if position < begin:
        batch = (saved.settings["batch_size"] or 1) // saved.settings.get("num_replicas", 1)  # that of a shard
        consumed = max(saved.drawn - sum(len(e.indices) - e.consumed for e in saved.entries), begin)
        raise ValueError(
            f"the loader's state is of draw {position} of epoch {saved.epoch}, but the journal keeps those from "
            f"{begin} on: going back so far needs depth={-(-(consumed - position) // batch)}, and this sampler's is "
            f"{depth}. Pass more, or let the loader take snapshots more often (snapshot_every_n_steps)"
        )
    again = []
    for entry in saved.entries:
        if entry.end <= position or entry.first < begin or (entry.consumed == len(entry.indices) and not replay):
            continue
        draws = Draws(entry.number, entry.first, *entry[3:6], share, entry.cover)
        handed, consumed = max(position - entry.first, 0), entry.consumed
        if not share.dealt:
            if len(entry.indices) % share.ranks or handed % share.ranks or consumed % share.ranks:
                raise ValueError(
                    f"batch {entry.number} of epoch {saved.epoch}, {len(entry.indices)} draws of which {handed} were "
                    f"issued, does not divide by {share.ranks} ranks"
                )
            handed //= share.ranks
        draws.handed = handed
        draws.consumed = consumed // share.ranks
        again.append(draws)
    return again


def kept_from(spans: Sequence[tuple[int, int]], drawn: int) -> int:
    """Number of the draw from which on all are known, of those in these spans, in order, up to number ``drawn``."""
    begin = drawn
    for first, end in reversed(spans):
        if end != begin:
            break
        begin = first
    return begin


def _unpacked_entries(arrays: Mapping[str, Any], walk: Walk | None) -> list[Entry]:
    entries, begin, of_weights = [], 0, 0
    for number, first, length, consumed, weighted, covering, position, passes in arrays["entries"].tolist():
        end = begin + length
        weights = None
        if weighted:
            weights = arrays["weights"][of_weights : of_weights + length]
            of_weights += length
        cover = (walk, position, passes) if covering else None
        indices, probabilities = arrays["indices"][begin:end], arrays["probabilities"][begin:end]
        if len(indices) != length or not 0 <= consumed <= length:
            raise ValueError(f"batch {number}")
        entries.append(Entry(number, first, consumed, indices, probabilities, weights, cover))
        begin = end
    return entries


def _joined(parts: Iterable[Any], dtype: Any) -> Any:
    return np.concatenate([np.empty(0, dtype), *parts])
