"""The exact sum tree in Python: numpy arrays and CPU tensors in, numpy arrays out, one lock a tree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio import _core
from fastprio._arrays import INT64, as_float32, as_indices, integer, one_dimensional, to_numpy
from fastprio._locks import fork_safe_lock

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64

SCHEMES: dict[str, int] = _core.SCHEMES
MOST, MOST_SEED, MOST_EPOCH, MOST_GROUP = (1 << 62) - 1, (1 << 64) - 1, (1 << 32) - 1, 1 << 31
FLOAT32_MAX = 3.4028234663852886e38


class SumTree:
    """Draws index i of [0, size) with probability mass(priority[i]) / total, exactly.

    Priorities are float32, finite and >= 0, kept bit for bit. Their integer masses (at most 2^31 - 1; above
    zero for every priority above zero) are summed exactly, so draws have no rounding, sums do not drift, and
    the same updates give the same bits in any order. ``csrc/sum_tree.h`` has the contract in full.

    Args:
        size: number of examples, in [1, 2^32].

    Raises:
        TypeError, ValueError: size is not an integer, or out of range.

    Cost: 4.53 bytes an example, touched when first written.
    Thread safety: every method takes the tree's lock and releases the GIL inside the core.
    Threads: calls with enough to do use up to ``fastprio.get_num_threads()``, with the same result for any number.
    """

    def __init__(self, size: int, *, _scale: int | None = None) -> None:
        size = integer("size", size, 1, _core.MAX_SIZE)
        if _scale is not None and not -97 <= _scale <= 179:
            raise ValueError(f"_scale = {_scale}: expected -97 <= _scale <= 179")
        self._core = _core.SumTree(size) if _scale is None else _core.SumTree(size, _scale)
        self._lock = fork_safe_lock(self, "_lock")

    def __len__(self) -> int:
        return self._core.size

    def __repr__(self) -> str:
        return f"SumTree(size={len(self)}, total={self.total}, nbytes={self.nbytes})"

    @property
    def total(self) -> int:
        """The sum of all masses, an integer below 2^63. Zero if nothing can be drawn."""
        with self._lock:
            return self._core.total

    @property
    def unit(self) -> float:
        """The priority that one unit of mass stands for, a power of two: ``total * unit`` is the sum of priorities."""
        with self._lock:
            return math.ldexp(1.0, -self._core.scale)

    @property
    def max_priority(self) -> float:
        """The largest priority offered since the last ``refit`` or ``fill``; it sets the scale of the masses."""
        with self._lock:
            bits = self._core.max_bits
        exponent, fraction = bits >> 23, bits & 0x7FFFFF
        # By integers: a conversion from float32 would lose a subnormal where denormals are flushed.
        return math.ldexp(fraction | 0x800000 if exponent else fraction, max(exponent, 1) - 150)

    @property
    def nbytes(self) -> int:
        """Bytes of leaves, sums and parked bits."""
        with self._lock:
            return self._core.nbytes

    @property
    def priorities(self) -> Float32:
        """float32 [size]: a read-only view of the priorities as they are now."""
        return self._core.priorities()

    def __getitem__(self, indices: Any) -> Float32:
        """The priorities at ``indices`` (int64 [n], each in [0, size)), float32 [n], bit for bit as given."""
        at = as_indices(indices)
        out = np.empty(at.size, np.float32)
        with self._lock:
            self._core.gather(at, out)
        return out

    def update(self, indices: Any, priorities: Any) -> None:
        """Sets the priorities of some examples. All or nothing.

        Args:
            indices: integers [n], each in [0, size). The last of duplicates wins.
            priorities: real [n], finite and >= 0; stored as float32.

        Raises:
            IndexError: an index out of range. ValueError: another length, a priority that is negative, infinite
                or NaN, or that float32 cannot hold. TypeError: another dtype. Nothing has changed then.

        Cost: O(n log size); a new largest priority may rebuild the sums, O(size).
        """
        self.update_checked(as_indices(indices), as_float32(priorities, "priorities"))

    def update_checked(self, at: Int64, values: Float32) -> None:
        """``update`` for a caller that has arrays of the right kind already, such as a store in every step."""
        with self._lock:
            self._core.update(at, values)

    def fill(self, priorities: Any) -> None:
        """Sets all priorities, forgetting the old ones and the largest seen. All or nothing.

        Args:
            priorities: a real scalar, or real [size], or an iterator (such as a generator) of real arrays whose
                lengths add up to size; pieces may be views of a file, so a fill needs no second copy in memory.

        Raises: as ``update``.
        Cost: O(size). From pieces, 4 bytes an example more while it lasts, unless all priorities were zero so far.
        """
        if isinstance(priorities, Iterator):
            self._fill_from(priorities)
            return
        array = to_numpy(priorities)
        if array.ndim == 0:
            value = as_float32(array.reshape(1), "priorities")
            with self._lock:
                self._core.fill_scalar(value)
            return
        values = as_float32(array, "priorities")
        with self._lock:
            self._core.fill(values)

    def _fill_from(self, pieces: Iterable[Any]) -> None:
        written = _core.SumTree(len(self))
        begin = 0
        for number, piece in enumerate(pieces):
            values = as_float32(piece, f"priorities (piece {number})")
            written.write(begin, values)
            begin += values.size
        if begin != len(self):
            raise ValueError(f"priorities: expected {len(self)} of them, got {begin}")
        with self._lock:
            self._core.adopt(written)

    def refit(self) -> None:
        """Chooses the scale of the masses from the largest priority there is now, and ends scheme "epoch".

        Afterwards the tree is bit-equal to one filled afresh with the same priorities. Needed only when the
        largest priority has fallen by orders of magnitude; samplers do it by themselves. Cost: O(size).
        """
        with self._lock:
            self._core.refit()

    def refit_gain(self, least: int = 1) -> int:
        """How many bits of resolution ``refit`` would win: 4, 8, ..., or 0 if fewer than ``least`` (>= 1).

        Cost: O(log size) where a heavy example shows that it is less, else O(size).
        """
        with self._lock:
            return self._core.refit_gain(integer("least", least, 1, 512))

    @property
    def parked(self) -> tuple[bool, int, int, int, bytes]:
        """What scheme "epoch" has set aside: (whether one is under way, seed, epoch, next offset, a bit an example)."""
        with self._lock:
            return self._core.parked()

    def restore(self, priorities: Any, max_priority: float, parked: Any = None, bits: Any = None) -> None:
        """Puts back a saved tree: all priorities, the largest offered, and (seed, epoch, next) with its bits.

        Raises: ValueError, as ``fill``, or if ``max_priority`` is below a priority. Nothing has changed then.
        """
        values = as_float32(priorities, "priorities")
        bits_of_max, aside = self._checked_rest(float(values.max(initial=0)), max_priority, parked, bits)
        with self._lock:
            self._core.fill(values)
            self._settle(bits_of_max, aside)

    def write(self, begin: int, priorities: Float32) -> None:
        """Sets the priorities from ``begin`` on, float32 [n], but no sums: for filling a tree that nobody else has yet.

        ``settle`` must come next, when all are set. The tree takes no more memory for it than it has.

        Raises: ValueError, as ``fill``, for more priorities than there are examples, or for a tree that has some above
            zero. Nothing has changed then.
        """
        with self._lock:
            self._core.write(begin, priorities)

    def settle(self, max_priority: float, parked: Any = None, bits: Any = None) -> None:
        """Ends what ``write`` began. Arguments and errors are those of ``restore``. Cost: O(size)."""
        checked = self._checked_rest(self.max_priority, max_priority, parked, bits)
        with self._lock:
            self._settle(*checked)

    def _checked_rest(self, largest: float, max_priority: float, parked: Any, bits: Any) -> tuple[int, Any]:
        """What ``restore`` was given beside priorities of which ``largest`` is the largest, as the core takes it."""
        if not largest <= max_priority <= FLOAT32_MAX:
            raise ValueError(f"max_priority = {max_priority}: expected a float32, and no priority above it")
        exponent = max(math.frexp(max_priority)[1], -125) if max_priority else -125
        significand = int(math.ldexp(max_priority, 24 - exponent))
        aside = None
        if (parked is None) != (bits is None):
            raise ValueError("parked and bits: give both or neither")
        if parked is not None:
            seed, epoch, following = (
                integer("parked", n, 0, (1 << b) - 1) for n, b in zip(parked, (64, 32, 62), strict=True)
            )
            packed = one_dimensional(np.ascontiguousarray(bits, np.uint8), "bits")
            if len(packed) != (len(self) + 7) // 8:
                raise ValueError(f"bits: expected {(len(self) + 7) // 8} bytes, got {len(packed)}")
            aside = (seed, epoch, following, packed)
        return significand + ((exponent + 125) << 23), aside

    def _settle(self, bits_of_max: int, aside: Any) -> None:
        self._core.set_max(bits_of_max)
        if aside is not None:
            self._core.set_parked(*aside)

    def find(self, masses: Any) -> Int64:
        """The leaf i with prefix(i) <= mass < prefix(i + 1), int64 [n], for each of ``masses`` (integers [n]).

        Raises:
            ValueError: a mass outside [0, total). TypeError: not integers.
        """
        array = one_dimensional(to_numpy(masses), "masses")
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"masses: expected integers, got dtype {array.dtype}")
        if array.dtype.kind == "i" and array.size and array.min() < 0:
            at = int(array.argmin())
            raise ValueError(f"masses[{at}] = {array[at]}: expected 0 <= mass < total = {self.total}")
        out = np.empty(array.size, np.int64)
        with self._lock:
            self._core.find(np.ascontiguousarray(array, np.uint64), out)
        return out

    def sample(
        self,
        count: int,
        *,
        seed: int,
        epoch: int = 0,
        offset: int = 0,
        scheme: str = "iid",
        group: int | None = None,
        out: tuple[Int64, Float64] | None = None,
    ) -> tuple[Int64, Float64]:
        """Draws number ``offset`` to ``offset + count`` of an epoch: a function of the arguments and the tree.

        Draw d belongs to group d // group. Schemes:

        * ``"iid"``: independent draws.
        * ``"stratified"``: each group spreads its draws over equal strata of the total mass, one in each, handed
          out in random order; every example is expected group * P(i) times, with less variance than iid.
        * ``"systematic"``: the same, with one random offset for all strata of a group.
        * ``"unique"``: no repeats within a group (successive sampling). ``offset`` is a multiple of ``group``.
        * ``"epoch"``: no repeats within the epoch. Drawn examples keep their priority but stand aside ("parked")
          for every scheme, until a draw at offset 0, ``fill`` or ``refit``. ``offset`` is 0 or goes on where the
          last such call ended.

        ``sample(a)`` then ``sample(b)`` at offset a gives what ``sample(a + b)`` gives: always for iid; with the
        same group for stratified and systematic; for unique if a is whole groups; for epoch if nothing was
        updated in between.

        Args:
            count: number of draws, >= 0.
            seed: in [0, 2^64). epoch: in [0, 2^32). offset: in [0, 2^62).
            group: draws in a group, in [1, 2^31]; ``count`` if not given. Used by stratified, systematic, unique.
            out: (int64 [count], float64 [count]), contiguous and apart, written and returned instead of new arrays.

        Returns:
            indices int64 [count], probabilities float64 [count] in (0, 1]. The probability is that of the draw:
            mass / total, which for unique and epoch is conditional on the draws before it.

        Raises:
            ValueError: nothing has a priority above zero, or too little of it for draws without replacement (a
                failed call leaves the tree as it was), or an argument out of range.

        Cost: O(count log size), and time O(group) for each group touched and scratch memory O(group) a thread; unique
            O(group^2) at worst, where most of the mass is drawn.
        """
        code = SCHEMES.get(scheme)
        if code is None:
            raise ValueError(f"scheme = {scheme!r}: expected one of {', '.join(SCHEMES)}")
        count, offset = integer("count", count, 0, MOST), integer("offset", offset, 0, MOST)
        seed, epoch = integer("seed", seed, 0, MOST_SEED), integer("epoch", epoch, 0, MOST_EPOCH)
        if group is not None:
            group = integer("group", group, 1, MOST_GROUP)
        elif scheme in ("iid", "epoch") or count == 0:  # of no meaning
            group = 1
        else:
            group = count
        if out is None:
            return self.sample_checked(count, seed, epoch, offset, code, group)
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError("out: expected two arrays, (int64, float64)")
        indices, probabilities = out
        try:
            if len(indices) != count or len(probabilities) != count:
                raise ValueError(f"out: expected two arrays of {count}, got {len(indices)} and {len(probabilities)}")
            with self._lock:
                self._core.sample(seed, epoch, offset, code, group, indices, probabilities)
        except TypeError as error:  # all else has been checked
            raise TypeError(
                "out: expected two contiguous, writable numpy arrays of one dimension, int64 and float64"
            ) from error
        return out

    def sample_checked(
        self, count: int, seed: int, epoch: int, offset: int, scheme: int, group: int
    ) -> tuple[Int64, Float64]:
        """``sample`` for a caller that has checked the arguments already, such as a sampler on every batch."""
        indices, probabilities = np.empty(count, INT64), np.empty(count)
        with self._lock:
            self._core.sample(seed, epoch, offset, scheme, group, indices, probabilities)
        return indices, probabilities
