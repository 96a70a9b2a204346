"""The tree and its draws in plain Python integers: slow, short, the oracle of the tests and the text to learn from.

Everything here gives the same results as ``fastprio.SumTree``, bit for bit, and is written from the contracts in
``csrc/*.h`` by the plainest route: masses are fractions rounded once, a search walks over all leaves. Start with
``mass`` and ``ReferenceTree.find``; the five schemes are the five branches of ``ReferenceTree.sample``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from fractions import Fraction

MAX_MASS = 2**31 - 1
MAX_SIZE = 2**32
MAX_GROUP = 2**31
REDRAWS = 8  # after so many repeats in a row, scheme "unique" draws from what is left instead
SCHEMES = ("iid", "stratified", "systematic", "unique", "epoch")


class Purpose(IntEnum):
    """What random bits are used for; two purposes never share bits. The numbers never change."""

    draw = 0
    stratum = 1
    cover = 2
    plan = 3
    redraw = 4
    policy = 5
    shard = 6


# Random bits: csrc/philox.h, csrc/bounded.h


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox4x32: four 32-bit words of counter, two of key, four of random bits.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b % 2**32, (a >> 32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def word(seed: int, epoch: int, purpose: Purpose, n: int, attempt: int = 0) -> int:
    """The 64-bit word number n of a stream, at one of the attempts that a draw may use up."""
    block = n // 2
    counter = (block % 2**32, block >> 32, epoch, purpose << 24 | attempt % 2**24)
    b = philox4x32(counter, (seed % 2**32, seed >> 32))
    return b[2] | b[3] << 32 if n % 2 else b[0] | b[1] << 32


def words(seed: int, epoch: int, purpose: Purpose, n: int, first_attempt: int = 0) -> Iterator[int]:
    """What one draw may use up: word n at attempt 0, 1, 2, ..."""
    attempt = first_attempt
    while True:
        yield word(seed, epoch, purpose, n, attempt)
        attempt += 1


def bounded(bound: int, random_words: Iterator[int], bits: int = 64) -> int:
    """An unbiased integer in [0, bound): the high half of word * bound.

    The 2^bits products fall into bound intervals of length 2^bits. Each holds the same number of products whose
    low half is at least 2^bits mod bound; the others are rejected.

    Source: Lemire, "Fast random integer generation in an interval", ACM TOMACS 2019.
    """
    while True:
        product: int = next(random_words) * bound
        if product % 2**bits >= 2**bits % bound:
            return product >> bits


# Orders: csrc/permutation.h


def shuffle(seed: int, epoch: int, purpose: Purpose, first_word: int, n: int) -> list[int]:
    """A uniform random order of [0, n) (Fisher-Yates); step j uses word first_word + j."""
    order = list(range(n))
    for j in reversed(range(1, n)):
        k = bounded(j + 1, words(seed, epoch, purpose, first_word + j))
        order[j], order[k] = order[k], order[j]
    return order


class Permutation:
    """A keyed permutation of [0, n), any position of it in O(1): a Feistel network, cycle walking, a rotation."""

    def __init__(self, n: int, seed: int, epoch: int, purpose: Purpose) -> None:
        self.n = n
        bits = max(8, (n - 1).bit_length())
        self.low_bits, self.high_bits = bits // 2, bits - bits // 2
        pairs = [word(seed, epoch, purpose, j) for j in range(4)]
        self.keys = [key for pair in pairs for key in (pair % 2**32, pair >> 32)]
        self.rotation = bounded(n, words(seed, epoch, purpose, 4))

    def __call__(self, position: int) -> int:
        """The value at ``position``, which is in [0, n)."""
        x = self._scramble(position)
        while x >= self.n:  # a value outside [0, n) is followed on its cycle until it comes back in
            x = self._scramble(x)
        return (x + self.rotation) % self.n

    def _scramble(self, x: int) -> int:
        low, high = x % (1 << self.low_bits), x >> self.low_bits
        for j in range(0, 8, 2):
            high ^= _mix(low ^ self.keys[j]) % (1 << self.high_bits)
            low ^= _mix(high ^ self.keys[j + 1]) % (1 << self.low_bits)
        return high << self.low_bits | low


def _mix(x: int) -> int:
    # The integer hash "lowbias32" by C. Wellons.
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def walk(permutation: Permutation, position: int, count: int, skip: Collection[int] = ()) -> tuple[list[int], int]:
    """The next ``count`` values from ``position`` on that are not in ``skip``, and the position to go on from."""
    values: list[int] = []
    while len(values) < count and position < permutation.n:
        value = permutation(position)
        position += 1
        if value not in skip:
            values.append(value)
    return values, position


# Masses: csrc/mass.h


def as_priority(value: float) -> float:
    """The float32 nearest to ``value``, -0.0 as 0.0; ValueError unless finite, >= 0 and within float32's range."""
    value = float(value)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"priority {value}: expected a finite number >= 0")
    try:
        narrow: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        raise ValueError(f"priority {value}: float32 cannot hold it") from None
    if value > 0 and narrow == 0:
        raise ValueError(f"priority {value}: float32 cannot hold it")
    return abs(narrow)


def mass(priority: float, scale: int) -> int:
    """0 if the priority is 0, else priority * 2^scale rounded half to even and clamped to [1, 2^31 - 1]."""
    if priority == 0:
        return 0
    return min(max(round(Fraction(priority) * Fraction(2) ** scale), 1), MAX_MASS)


def scale_of(largest: float) -> int:
    """The scale that puts the mass of the largest priority into [2^27, 2^31). It moves in steps of 4 bits."""
    log2 = math.frexp(largest)[1] - 1 if largest > 0 else 0
    return 27 - 4 * (log2 // 4)


# The tree: csrc/sum_tree.h


def stratum_target(k: int, u: int, group: int, total: int) -> int:
    """What number k of a group's strata looks up, u being uniform in [0, total): a point in stratum k of the mass."""
    return (k * total + u) // group


def _find(masses: Iterable[int], r: int) -> int:
    # The one index with prefix(index) <= r < prefix(index + 1), for r in [0, sum of masses).
    for index, m in enumerate(masses):
        if r < m:
            return index
        r -= m
    raise AssertionError("r is not below the sum of the masses")


class ReferenceTree:
    """What ``SumTree`` promises, as a list of priorities."""

    def __init__(self, size: int, _scale: int | None = None) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"size = {size}: expected 1 <= size <= 2^32")
        self.priorities = [0.0] * size
        self.max_priority = 0.0  # the largest offered since the last fill or refit
        self.parked: set[int] = set()
        self.next_draw: tuple[int, int, int] | None = None  # seed, epoch, offset that scheme "epoch" goes on with
        self._fixed_scale = _scale
        self._rescale()

    def __len__(self) -> int:
        return len(self.priorities)

    def __getitem__(self, indices: Iterable[int]) -> list[float]:
        return [self.priorities[i] for i in self._checked(indices)]

    def _checked(self, indices: Iterable[int]) -> list[int]:
        at = list(indices)
        for i in at:
            if not 0 <= i < len(self):
                raise IndexError(f"index {i}: expected 0 <= index < {len(self)}")
        return at

    def _rescale(self) -> None:
        self.scale = scale_of(self.max_priority) if self._fixed_scale is None else self._fixed_scale
        self.masses = [self._mass(i) for i in range(len(self))]

    def _mass(self, i: int) -> int:
        return 0 if i in self.parked else mass(self.priorities[i], self.scale)

    @property
    def total(self) -> int:
        """The sum of all masses."""
        return sum(self.masses)

    def update(self, indices: Iterable[int], priorities: Iterable[float]) -> None:
        """Sets the priorities of some examples; the last of duplicates wins. All or nothing."""
        at, values = self._checked(indices), [as_priority(p) for p in priorities]
        if len(at) != len(values):
            raise ValueError(f"{len(at)} indices for {len(values)} priorities")
        for i, p in zip(at, values, strict=True):
            self.priorities[i] = p
        self.max_priority = max([self.max_priority, *values])  # losing duplicates count too
        if self._fixed_scale is None and self.scale != scale_of(self.max_priority):
            self._rescale()
        for i in at:
            self.masses[i] = self._mass(i)

    def fill(self, priorities: float | Iterable[float]) -> None:
        """Sets all priorities, from a list or to one number, and forgets all else."""
        given = priorities if isinstance(priorities, Iterable) else [priorities] * len(self)
        values = [as_priority(p) for p in given]
        if len(values) != len(self):
            raise ValueError(f"expected {len(self)} priorities, got {len(values)}")
        self.priorities = values
        self.refit()

    def refit(self) -> None:
        """Takes the scale from the largest priority there is now; nothing stays parked."""
        self.max_priority = max(self.priorities)
        self.parked, self.next_draw = set(), None
        self._rescale()

    def find(self, masses: Iterable[int]) -> list[int]:
        """The leaf i with prefix(i) <= r < prefix(i + 1), for each r."""
        targets, total = list(masses), self.total
        for r in targets:
            if not 0 <= r < total:
                raise ValueError(f"mass {r}: expected 0 <= mass < total = {total}")
        return [_find(self.masses, r) for r in targets]

    def sample(
        self, count: int, *, seed: int, epoch: int = 0, offset: int = 0, scheme: str = "iid", group: int | None = None
    ) -> tuple[list[int], list[float]]:
        """Draws number ``offset`` to ``offset + count``: indices, and the probability of each draw."""
        if scheme not in SCHEMES:
            raise ValueError(f"scheme = {scheme!r}: expected one of {', '.join(SCHEMES)}")
        limits = (("count", count, 62), ("seed", seed, 64), ("epoch", epoch, 32), ("offset", offset, 62))
        for name, value, bits in limits:
            if not 0 <= value < 2**bits:
                raise ValueError(f"{name} = {value}: expected 0 <= {name} < 2^{bits}")
        size = max(count, 1) if group is None else group
        if not 1 <= size <= MAX_GROUP:
            raise ValueError(f"group = {size}: expected 1 <= group <= 2^31")
        draws = range(offset, offset + count)
        if count == 0:
            return [], []
        if scheme == "epoch":
            return self._sample_epoch(draws, seed, epoch)
        total = self.total
        if total == 0:
            raise ValueError("nothing can be drawn: no priority is above zero")
        if scheme == "unique":
            return self._sample_unique(draws, seed, epoch, size)
        targets = []
        for draw in draws:
            group_begin, place = draw - draw % size, draw % size
            u = bounded(total, words(seed, epoch, Purpose.draw, group_begin if scheme == "systematic" else draw))
            if scheme == "iid":
                targets.append(u)
                continue
            if draw == draws[0] or place == 0:
                order = shuffle(seed, epoch, Purpose.stratum, group_begin, size)
            targets.append(stratum_target(order[place], u, size, total))
        indices = self.find(targets)
        return indices, [float(self.masses[i]) / float(total) for i in indices]

    def _sample_unique(self, draws: range, seed: int, epoch: int, group: int) -> tuple[list[int], list[float]]:
        # Successive sampling: each draw follows mass / (total - mass of what the group has so far). Redrawing a
        # repeat gives that law; so does looking up an integer among the masses that are left.
        if draws.start % group:
            raise ValueError(f"offset = {draws.start}: expected a multiple of group = {group}")
        total, indices, probabilities = self.total, list[int](), list[float]()
        left = list(self.masses)
        for draw in draws:
            if draw % group == 0:
                left = list(self.masses)  # a zero for each leaf the group has taken
            rest = sum(left)
            if rest == 0:
                raise ValueError(f"draw {draw - draws.start} of this call finds nothing left")
            candidate = _find(self.masses, bounded(total, words(seed, epoch, Purpose.draw, draw)))
            redraw = words(seed, epoch, Purpose.redraw, draw)
            for _ in range(REDRAWS):
                if left[candidate]:
                    break
                candidate = _find(self.masses, bounded(total, redraw))
            if not left[candidate]:
                candidate = _find(left, bounded(rest, redraw))
            indices.append(candidate)
            probabilities.append(float(left[candidate]) / float(rest))
            left[candidate] = 0
        return indices, probabilities

    def _sample_epoch(self, draws: range, seed: int, epoch: int) -> tuple[list[int], list[float]]:
        if draws.start and self.next_draw != (seed, epoch, draws.start):
            raise ValueError(f"offset = {draws.start}: expected 0 or the next draw, {self.next_draw}")
        before = self.parked, self.next_draw, self.masses
        self.parked = set(self.parked) if draws.start else set()
        self.masses = [self._mass(i) for i in range(len(self))]
        indices, probabilities = list[int](), list[float]()
        for draw in draws:
            total = self.total
            if total == 0:
                self.parked, self.next_draw, self.masses = before
                raise ValueError(f"draw {draw - draws.start} of this call finds nothing left")
            i = _find(self.masses, bounded(total, words(seed, epoch, Purpose.draw, draw)))
            indices.append(i)
            probabilities.append(float(self.masses[i]) / float(total))
            self.parked.add(i)
            self.masses[i] = 0
        self.next_draw = seed, epoch, draws.stop
        return indices, probabilities
