"""The score store: what is remembered of every example, and the priorities that follow from it."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastprio import _file, snapshot
from fastprio._arrays import as_float32, as_indices, integer, to_numpy
from fastprio._kernels import any_bad, note
from fastprio._locks import fork_safe_lock
from fastprio._random import Rng
from fastprio.policies.base import Clock, Observation, Policy, is_infallible, make
from fastprio.tree import SumTree

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64

Record = tuple[dict[str, Any], dict[str, Any]]
MOST_EPOCH = (1 << 32) - 1
AGES = 13
"""The ages of scores are known of at most 2^AGES examples, evenly spread: enough for their mean."""
PIECE = 1 << 20  # examples looked at together where all are; divides by 8
ORIGINS = ("train", "score", "reference")


class ScoreStore:
    """One row an example: the columns that the policy asks for, two bits, and a priority in a SumTree.

    Args:
        size: number of examples, in [1, 2^32].
        policy: a registered name (``fastprio.policies.registered()``) or a Policy.
        epochs: how many epochs training will have; policies whose parameters change over training need it.
        on_nonfinite: "raise" refuses a batch with NaN or infinite losses whole; "skip" leaves those rows out and
            counts them in ``stats()["skipped_nonfinite"]``. It keeps them out of the scores and the mean, not out of
            the gradient: what made the loss NaN usually makes its gradient NaN too, also with weight zero.
        columns: further columns to keep, name -> dtype as in ``Policy.columns``.

    Raises:
        ValueError: an unknown policy, a size out of range, or ``epochs`` missing for a policy that needs it.

    Cost: 4.53 bytes an example for the tree, the policy's columns, and 2 bits; memory is touched when first written.
    Thread safety: methods take the store's ``lock``, which a caller may hold over several of them.
    """

    def __init__(
        self,
        size: int,
        policy: str | Policy = "loss",
        *,
        epochs: int | None = None,
        on_nonfinite: str = "raise",
        columns: Mapping[str, str | tuple[str, int]] | None = None,
    ) -> None:
        if on_nonfinite not in ("raise", "skip"):
            raise ValueError(f"on_nonfinite = {on_nonfinite!r}: expected 'raise' or 'skip'")
        epochs = None if epochs is None else integer("epochs", epochs, 1)
        self.policy = make(policy)
        self._infallible = is_infallible(self.policy)
        if self.policy.needs_epochs and epochs is None:
            raise ValueError(f"policy {self.policy.name!r} changes over training: pass epochs=")
        self.epochs, self.on_nonfinite = epochs, on_nonfinite
        self.tree = SumTree(size)
        self.clock = Clock()
        self.seed = 0
        self.skipped_nonfinite = 0
        self.was_scored = False  # since the epoch began, without training
        taken = sorted({"seen", *self.policy.columns} & set(columns or {}))
        if taken:
            raise ValueError(f"columns: {taken[0]!r} is the store's or the policy's own")
        self.types = {**self.policy.columns, **(columns or {})}
        for name, kind in self.types.items():
            dtype = kind if isinstance(kind, str) else kind[0]
            if dtype != "bit" and dtype not in _file.DTYPES:
                raise ValueError(f"columns: {name!r} is {dtype!r}; expected 'bit' or one of {', '.join(_file.DTYPES)}")
        self._columns = {name: _allocate(kind, size) for name, kind in self.types.items()}
        self._columns["seen"] = np.zeros((size + 7) // 8, np.uint8)
        self.fresh = np.zeros((size + 7) // 8, np.uint8)  # a bit an example: scored since the epoch began
        self._shift = _shift(size)
        self.learnt = _ages(size)  # of some examples, after how many updates their scores were learnt; -1: not yet
        self.lock = fork_safe_lock(self, "lock")
        self._listeners: list[weakref.WeakMethod[Callable[[], None]]] = []
        self.kept: Record | None = None  # what was saved with the state that was loaded, until somebody takes it up
        self._keeper: weakref.WeakMethod[Callable[[], Record | None]] | None = None
        self._mark = object()
        if self.policy._owner is not None:
            self.own_policy()
        self.policy.start(self)
        self._warm_up()

    def __len__(self) -> int:
        return len(self.tree)

    def __repr__(self) -> str:
        return f"ScoreStore(size={len(self)}, policy={self.policy.name!r}, nbytes={self.nbytes})"

    @property
    def nbytes(self) -> int:
        """Bytes of the tree, the columns and the bits."""
        return self.tree.nbytes + int(
            self.fresh.nbytes + self.learnt.nbytes + sum(c.nbytes for c in self._columns.values())
        )

    @property
    def priorities(self) -> Float32:
        """float32 [size]: a read-only view of the priorities as they are now."""
        return self.tree.priorities

    def column(self, name: str) -> Any:
        """The array of a column, [size] or [size, width]: a view that may be written. KeyError names the columns."""
        if name not in self.types:
            raise KeyError(f"{name!r}: this store has {', '.join(self.types) or 'no columns'}")
        return self._columns[name]

    @property
    def columns(self) -> dict[str, Any]:
        """All columns by name, and "seen", the packed bits of the examples that have been scored."""
        return self._columns

    def seen(self) -> Any:
        """bool [size]: which examples have ever been scored. Cost: O(size), a byte an example."""
        return np.unpackbits(self._columns["seen"], count=len(self), bitorder="little").astype(bool)

    def all_seen(self) -> bool:
        """Whether every example has been scored. Cost: O(size / 8)."""
        bits, rest = self._columns["seen"], len(self) % 8
        return bool(bits[: len(self) // 8].min(initial=255) == 255 and (not rest or bits[-1] == (1 << rest) - 1))

    def few_unseen(self, most: int) -> Int64 | None:
        """int64 [m]: the examples never scored, in order; None if they are more than ``most``. Cost: O(size)."""
        found: list[Int64] = []
        for begin in range(0, len(self), PIECE):
            found.append(self._unseen_from(begin))
            most -= len(found[-1])
            if most < 0:
                return None
        return np.concatenate(found)

    def _unseen_from(self, begin: int) -> Int64:
        """Those of [begin, begin + PIECE); begin divides by 8."""
        bits = self._columns["seen"][begin // 8 : (begin + PIECE) // 8]
        seen = np.unpackbits(bits, count=min(PIECE, len(self) - begin), bitorder="little")
        unseen: Int64 = np.flatnonzero(seen == 0) + begin
        return unseen

    def update(self, indices: Any, losses: Any, *, origin: str = "train", **observations: Any) -> None:
        """Tells the policy what was seen of some examples, and sets the priorities it returns. All or nothing.

        Args:
            indices: integers [n], each in [0, size). Duplicates are rows of their own; the last priority counts.
            losses: real [n], finite; a tensor on any device or an array.
            origin: "train", "score" (a forward pass without training) or "reference" (another model's losses).
            observations: what else the policy uses, by name (``Policy.requires``), each [n, ...].

        Raises:
            IndexError: an index out of range. ValueError: lengths that differ, a loss that is not finite (see
                ``on_nonfinite``), or what the policy refuses. TypeError: a dtype, or a required observation missing.
                Nothing has changed then.

        Cost: O(n log size).
        """
        loss = as_float32(losses, "losses", tiny_is_zero=True)
        self.update_rows(as_indices(indices), loss, origin, observations)

    def update_rows(self, at: Int64, loss: Float32, origin: str, observations: Mapping[str, Any]) -> None:
        """``update`` for a caller that has arrays already, such as a sampler in every step."""
        with self.lock:  # also while checking: compiled loops rely on it, and another thread may resize
            at, obs, skipped = self._checked(at, loss, origin, observations)
            if self.policy._owner is not self._mark:
                self.own_policy()
            if self._infallible:
                priorities = self._let_policy_observe(at, obs)
                if priorities is not None:
                    self.tree.update_checked(at, priorities)
            else:
                self._observe_or_undo(at, obs)
            if origin != "reference":
                note(self._columns["seen"], self.fresh, self.learnt, self._shift, self.clock.step, at)
            self.clock.step += 1
            self.skipped_nonfinite += skipped
            self.was_scored |= origin == "score"
        if self._listeners:
            self._changed()

    def check(self, indices: Any, losses: Any, *, origin: str = "train", **observations: Any) -> None:
        """Raises what ``update`` would raise, and does nothing else."""
        with self.lock:
            self._checked(as_indices(indices), as_float32(losses, "losses", tiny_is_zero=True), origin, observations)

    def _checked(
        self, at: Int64, loss: Float32, origin: str, observations: Mapping[str, Any]
    ) -> tuple[Int64, Observation, int]:
        """The rows without those that are skipped, and how many those were."""
        size = len(self.tree)
        others = self._others(observations, at.size) if observations or self.policy.requires else {}
        if origin not in ORIGINS:
            raise ValueError(f"origin = {origin!r}: expected one of {', '.join(ORIGINS)}")
        if loss.size != at.size:
            raise ValueError(f"losses: expected {at.size} of them, one for each index, got {loss.size}")
        least = self.policy.least_loss if origin != "reference" else -np.inf
        skipped = 0
        if any_bad(at, loss, size, least):
            good = self._refuse_or_skip(at, loss, least)
            skipped = int((~good).sum())
            at, loss, others = at[good], loss[good], {name: value[good] for name, value in others.items()}
        obs = Observation(loss, origin, others)
        self.policy.check(obs)
        return at, obs, skipped

    def _refuse_or_skip(self, at: Int64, loss: Float32, least: float) -> Any:
        """Which rows to keep, bool [n]. Raises where a row is bad in another way than one that is to be skipped."""
        self.check_indices(at)
        finite = np.isfinite(loss)
        if self.on_nonfinite == "raise" and not finite.all():
            row = int(finite.argmin())
            raise ValueError(
                f"losses[{row}] = {loss[row]}: expected finite losses; skip() passes over the batch, and "
                "on_nonfinite='skip' leaves such rows out and counts them"
            )
        small = finite & (loss < least)
        if small.any():
            row = int(small.argmax())
            raise ValueError(f"losses[{row}] = {loss[row]}: policy {self.policy.name!r} expects losses >= {least:g}")
        return finite

    def check_indices(self, at: Int64) -> None:
        """IndexError for the first that is no example's."""
        inside = (at >= 0) & (at < len(self))
        if not inside.all():
            row = int(inside.argmin())
            raise IndexError(f"indices[{row}] = {at[row]}: expected 0 <= index < {len(self)}")

    def own_policy(self) -> None:
        """From now on the policy learns for this store. ValueError if it has learnt for another, whose its state is."""
        if self.policy._owner not in (None, self._mark):
            raise ValueError(f"policy = {self.policy!r}: it has learnt for another store; make a new one")
        self.policy._owner = self._mark

    def _let_policy_observe(self, at: Any, obs: Observation) -> Any:
        rng = Rng(self.seed, self.clock.epoch, self.clock.step, "observe")
        return self.policy.observe(self._columns, at, obs, self.clock, rng)

    def _observe_or_undo(self, at: Any, obs: Observation) -> None:
        # Bits need no row of their own to go back to: they are put back by the bytes they stand in.
        rows = {name: (at >> 3 if kind == "bit" else at) for name, kind in self.types.items()}
        rows["seen"] = at >> 3
        before = {name: self._columns[name][row] for name, row in rows.items()}
        state = {name: copy.deepcopy(value) for name, value in self.policy.state.items() if _small(value)}
        try:
            priorities = self._let_policy_observe(at, obs)
            if priorities is not None:
                self._set_observed(at, priorities)
        except BaseException:
            for name, row in rows.items():
                self._columns[name][row] = before[name]
            for name in [name for name, value in self.policy.state.items() if name not in state and _small(value)]:
                del self.policy.state[name]
            self.policy.state.update(state)
            raise

    def _set_observed(self, at: Int64, priorities: Any) -> None:
        try:
            self.tree.update(at, priorities)
        except (ValueError, TypeError) as error:
            what = f"policy {self.policy.name or type(self.policy).__name__!r}: observe() returned"
            raise type(error)(f"{what} what cannot be the priorities of {len(at)} rows: {error}") from error

    def check_observations(self, observations: Mapping[str, Any], n: int) -> None:
        """Raises what ``update`` would raise about names and numbers of rows; waits for no device."""
        missing = [name for name in self.policy.requires if name not in observations]
        if missing:
            raise TypeError(f"policy {self.policy.name!r} also needs {', '.join(missing)}, [n] each, by name")
        for name, value in observations.items():
            shape = tuple(np.shape(value))
            if not shape or shape[0] != n:
                raise ValueError(f"{name}: expected {n} rows, one for each index, got shape {shape}")

    def _others(self, observations: Mapping[str, Any], n: int) -> dict[str, Any]:
        self.check_observations(observations, n)
        return {name: to_numpy(value) for name, value in observations.items()}

    def set_priorities(self, indices: Any, priorities: Any) -> None:
        """Sets priorities directly, past the policy; see ``SumTree.update``."""
        with self.lock:
            self.tree.update(indices, priorities)
        self._changed()

    def admit_unseen(self) -> None:
        """Gives every example that was never scored, and has no priority yet, the policy's one for the unseen.

        Cost: O(size), a few MB while it lasts.
        """
        with self.lock:
            priority = np.float32(self.policy.unseen())
            if not self._columns["seen"].any() and not self.tree.priorities.any():
                self.tree.fill(priority)
            elif not self.all_seen():
                for begin in range(0, len(self), PIECE):
                    unseen = self._unseen_from(begin)
                    waiting = unseen[self.tree.priorities[unseen] == 0]
                    self.tree.update(waiting, np.full(waiting.size, priority))
        self._changed()

    def begin_epoch(self, epoch: int) -> None:
        """Sets the clock to an epoch's start; ``stats()["staleness"]`` counts from here."""
        with self.lock:
            self.own_policy()
            self.clock.epoch = integer("epoch", epoch, 0, MOST_EPOCH)
            self.set_progress(0.0)
            self.fresh[:] = 0
            self.was_scored = False

    def set_progress(self, share: float) -> None:
        """Sets the clock's progress: ``share`` of the current epoch is over."""
        self.clock.progress = min(1.0, (self.clock.epoch + share) / self.epochs) if self.epochs else 0.0

    def resize(self, size: int) -> None:
        """Grows or shrinks the store to ``size`` examples, keeping the rows below the smaller size.

        New examples are unseen; they come first at the next epoch's start if the sampler covers, and have the
        policy's priority for the unseen (zero for a policy that does not observe). Cost: O(size).
        """
        size = integer("size", size, 1, 1 << 32)
        with self.lock:
            kept = min(size, len(self))
            tree = SumTree(size)
            fresh = self.policy.unseen() if self.policy.observes else 0.0
            tree.fill(np.concatenate([self.tree.priorities[:kept], np.full(size - kept, fresh, np.float32)]))
            for name, kind in {**self.types, "seen": "bit"}.items():
                self._columns[name] = _resized(self._columns[name], kind, kept, size)
            self.fresh = _resized(self.fresh, "bit", kept, size)
            self._resize_ages(size)
            before, self.tree = len(self), tree
            try:
                self.policy.resized(self, before)
            finally:
                self._changed()

    def _resize_ages(self, size: int) -> None:
        learnt, shift = _ages(size), _shift(size)
        known = self.learnt[:: 1 << max(0, shift - self._shift)]
        places = learnt[:: 1 << max(0, self._shift - shift)]
        both = min(len(places), len(known))
        places[:both] = known[:both]
        self.learnt, self._shift = learnt, shift

    def stats(self) -> dict[str, float]:
        """A flat dict of floats about the scores: the priorities, or the losses where a policy keeps no priorities.

        * ``coverage``: share of the examples ever scored, in [0, 1].
        * ``staleness``: share of those not scored since the current epoch began, in [0, 1].
        * ``score_age``: how many updates ago, on average, the scores were learnt, of up to 8,192 scored examples that
          stand evenly in the store. An update is a batch, of all ranks together.
        * ``effective_sample_size``: (sum p)^2 / sum p^2, in [0, size]: as many equal examples draw as evenly.
        * ``tau``: sqrt(1 + CV^2) = sqrt(size / effective_sample_size), >= 1: how much selection could speed up
          (Katharopoulos and Fleuret, arXiv 1803.00942). Near 1, priorities hardly differ.
        * ``top_1pct_share``: share of the mass held by the largest 1 % of the scores.
        * ``updates``, ``skipped_nonfinite``: counts of calls and of rows.

        Cost: O(size), a few bytes an example while it lasts.
        """
        with self.lock:
            scores = self.tree.priorities
            if self.tree.total == 0 and "loss" in self._columns:
                scores = self._columns["loss"]
            ages = self.ages()[1]
            seen, fresh = (int(np.unpackbits(bits).sum(dtype=np.int64)) for bits in (self._columns["seen"], self.fresh))
            first = float(scores.sum(dtype=np.float64))
            second = float(np.einsum("i,i->", scores, scores, dtype=np.float64))
            top = max(1, len(self) // 100)
            largest = float(np.partition(scores, len(self) - top)[len(self) - top :].sum(dtype=np.float64))
            effective = first * first / second if second > 0 else 0.0
            return {
                "size": float(len(self)),
                "coverage": seen / len(self),
                "staleness": 1 - fresh / seen if seen else 0.0,
                "score_age": float(ages.mean()) if len(ages) else 0.0,
                "effective_sample_size": effective,
                "tau": float(np.sqrt(len(self) / effective)) if effective > 0 else 1.0,
                "top_1pct_share": largest / first if first > 0 else 0.0,
                "updates": float(self.clock.step),
                "skipped_nonfinite": float(self.skipped_nonfinite),
            }

    def ages(self) -> tuple[Int64, Int64]:
        """Of up to 8,192 scored examples that stand evenly in the store: which, and how old their scores are.

        int64 [m], ascending indices; int64 [m], updates since then: 0 is the last one. Cost: O(8,192).
        """
        with self.lock:
            known = np.flatnonzero(self.learnt >= 0)
            return known << self._shift, self.clock.step - 1 - self.learnt[known]

    def state_dict(self) -> dict[str, Any]:
        """Everything, as tensors (copies) and plain values; loads under ``torch.load(weights_only=True)``."""
        with self.lock:
            arrays, plain = snapshot.pack(self)
            return {**plain, "arrays": {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` gave, of a store of the same size, policy and columns. All or nothing.

        Raises: ValueError that says what differs.
        """
        try:
            snapshot.check_format(state)
            snapshot.unpack(self, {name: np.array(tensor.numpy()) for name, tensor in state["arrays"].items()}, state)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a state of a ScoreStore: {error!r}") from error
        self._changed()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything to a file that ``load`` reads: the safetensors layout, with a checksum over every byte.

        The file appears whole or not at all: it is written beside, synced, and renamed. Peak memory: a few MB.
        """
        with self.lock:
            _file.write(path, *snapshot.pack(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str], policy: str | Policy | None = None) -> ScoreStore:
        """The store that was saved. ``policy`` is needed where its class is not registered.

        A name, also "package.module:Class", is of a class, which gets the arguments that were saved.

        Raises: ValueError if the file is damaged, of a newer version, or of another policy.
        Cost: O(size). Peak memory: the store, and a few MB; the file is read straight into it.
        """
        return snapshot.load(path, cls, policy)

    def keep(self, record: Callable[[], Record | None]) -> None:
        """From now on saves (arrays by name, plain values) as this bound method, held weakly, gives them, if any."""
        self._keeper, self.kept = weakref.WeakMethod(record), None

    def record(self) -> Record | None:
        """What is saved along with the store: of who draws from it now, or what was loaded and not taken up yet."""
        keeper = None if self._keeper is None else self._keeper()
        return keeper() if keeper is not None else self.kept

    def forget_keeper(self, kept: Record | None) -> None:
        """A state was loaded, and this with it: nobody draws from the store as it is now."""
        self._keeper, self.kept = None, kept

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls a bound method, held weakly, after every change of priorities."""
        self._listeners.append(weakref.WeakMethod(callback, self._listeners.remove))

    def _changed(self) -> None:
        for reference in tuple(self._listeners):
            callback = reference()
            if callback is not None:
                callback()

    def _warm_up(self) -> None:
        # Compiles the policy's loops now, on no rows, and not in the first step of training.
        none = Observation(np.empty(0, np.float32), "train", {name: np.empty(0) for name in self.policy.requires})
        any_bad(np.empty(0, np.int64), none.loss, len(self), -np.inf)
        note(self._columns["seen"], self.fresh, self.learnt, 0, 0, np.empty(0, np.int64))
        self.policy.check(none)
        self.policy.observe(self._columns, np.empty(0, np.int64), none, self.clock, Rng(0, 0, 0, "observe"))
        self.policy.weights(self._columns, np.empty(0, np.int64), np.empty(0, np.float64), self.clock)
        self.policy.unseen()


def _shift(size: int) -> int:
    """Ages are known of every 2^shift-th example."""
    return max(0, (size - 1).bit_length() - AGES)


def _ages(size: int) -> Int64:
    return np.full(((size - 1) >> _shift(size)) + 1, -1, np.int64)


def _small(value: Any) -> bool:
    return not isinstance(value, np.ndarray) or value.nbytes <= 1 << 16


def _allocate(kind: str | tuple[str, int], size: int) -> Any:
    if kind == "bit":
        return np.zeros((size + 7) // 8, np.uint8)
    return np.zeros(size, kind) if isinstance(kind, str) else np.zeros((size, kind[1]), kind[0])


def _resized(column: Any, kind: str | tuple[str, int], kept: int, size: int) -> Any:
    resized = _allocate(kind, size)
    if kind != "bit":
        resized[:kept] = column[:kept]
        return resized
    whole = (kept + 7) // 8
    resized[:whole] = column[:whole]
    if kept % 8:
        resized[whole - 1] &= (1 << kept % 8) - 1  # rows that are gone leave no bits behind
    return resized
