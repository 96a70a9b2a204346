"""What methods share: choosing by value, by rank, by group, by quota and by chance; rings of the last values.

Sets are boolean masks [n] over the store, so that nothing loops in Python over examples. Where values are equal, chance
decides and not the place in the store. Every random number comes from the ``rng`` that the protocol hands out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._kernels import inlined, kernel, power
from fastprio.policies.base import OUT, TRAIN, TRAIN_RESCALED

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy.typing as npt

    from fastprio._arrays import Float32, Float64, Int64, Uint8
    from fastprio._random import Rng

    Mask: TypeAlias = npt.NDArray[np.bool_]
    Uint32: TypeAlias = npt.NDArray[np.uint32]
    Uint64: TypeAlias = npt.NDArray[np.uint64]

E = 2.718281828459045
MIX = 0x7FEB352D, 0x846CA68B
UNMIX = tuple(pow(m, -1, 1 << 32) for m in MIX)
LEAST, MOST = 1.401298464324817e-45, 3.4028234663852886e38
"""The least float32 above zero, and the largest."""
REDRAWS = 8  # of what is still missing of distinct draws
ROUNDS = 10_000  # of k-means, which ends long before; a bound because rounding might let it go in circles


# Numbers of examples, and codes.


def share_of(n: int, share: float) -> int:
    """floor(share * n), where a share such as 1 - 0.8 may be a little less than it means."""
    return min(n, int(share * n * (1 + 4e-16) + 1e-9))


def at_least_one(n: int, share: float) -> int:
    """``share_of``, but one where that is none of some."""
    return max(share_of(n, share), min(n, 1))


def codes_of(trained: Mask, others: int = OUT) -> Uint8:
    """uint8 [n]: TRAIN where ``trained``, the code ``others`` elsewhere."""
    codes = np.full(len(trained), others, np.uint8)
    codes[trained] = TRAIN
    return codes


def packed(mask: Mask) -> Uint8:
    """The mask as a "bit" column holds it."""
    return np.packbits(mask, bitorder="little")


def unpacked(bits: Uint8, n: int) -> Mask:
    """bool [n]: the mask that a "bit" column of n examples holds."""
    return np.unpackbits(bits, count=n, bitorder="little").view(bool)


# By value.


def lowest(values: Float32, count: int, rng: Rng, among: Mask | None = None) -> Mask:
    """bool [n]: the ``count`` smallest values (of ``among``, all if they are fewer). Cost: O(n)."""
    candidates = values if among is None else values[among]
    if count <= 0:
        return np.zeros(len(values), bool)
    if count >= len(candidates):
        return np.ones(len(values), bool) if among is None else among.copy()
    border = np.partition(candidates, count - 1)[count - 1]
    inside: Mask = candidates < border
    tied = np.flatnonzero(candidates == border)
    inside[tied[rng.choose(len(tied), count - int(np.count_nonzero(inside)))]] = True
    if among is None:
        return inside
    chosen = np.zeros(len(among), bool)
    chosen[among] = inside
    return chosen


def highest(values: Float32, count: int, rng: Rng, among: Mask | None = None) -> Mask:
    """bool [n]: the ``count`` largest values (of ``among``, all if they are fewer). Cost: O(n)."""
    return lowest(-values, count, rng, among)


@kernel
def _sort_keys(values: Float32, first: int, second: int, flip: int, keys: Uint64) -> None:
    bits = values.view(np.uint32)
    for i in range(values.size):
        ordered = bits[i] ^ np.uint32(0xFFFFFFFF if bits[i] >> np.uint32(31) else 0x80000000)
        x = np.uint32((np.uint32(i) ^ np.uint32(first)) * np.uint32(MIX[0]))
        x = np.uint32((x ^ (x >> np.uint32(16)) ^ np.uint32(second)) * np.uint32(MIX[1]))
        x = x ^ (x >> np.uint32(16))
        keys[i] = np.uint64(np.uint64(ordered ^ np.uint32(flip)) << np.uint64(32)) | np.uint64(x)


@kernel
def _sorted_examples(keys: Uint64, first: int, second: int, order: Uint32) -> None:
    for k in range(keys.size):
        x = np.uint32(keys[k] & np.uint64(0xFFFFFFFF))
        x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(UNMIX[1])) ^ np.uint32(second)
        x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(UNMIX[0])) ^ np.uint32(first)
        order[k] = x


@kernel
def _shares_below(keys: Uint64, order: Uint32, shares: Float32) -> None:
    begin = 0
    for k in range(keys.size):
        if keys[k] >> np.uint64(32) != keys[begin] >> np.uint64(32):
            begin = k
        shares[order[k]] = np.float32(begin / keys.size)


def _sorted(values: Float32, rng: Rng, descending: bool) -> tuple[Uint64, Uint32]:
    # One sort of 64-bit numbers: above, the value's bits; below, the example's number, mixed so that equal values come
    # in random order. That is several times faster than sorting indices by value.
    first, second = rng.integers(1 << 32, 2).tolist()
    keys, order = np.empty(len(values), np.uint64), np.empty(len(values), np.uint32)
    _sort_keys(np.float32(0) + values, first, second, 0xFFFFFFFF if descending else 0, keys)  # -0.0 becomes 0.0
    keys.sort()
    _sorted_examples(keys, first, second, order)
    return keys, order


def ranking(values: Float32, rng: Rng, descending: bool = True) -> Uint32:
    """uint32 [n]: the examples in order of their values, the largest first unless told otherwise. Cost: O(n log n)."""
    return _sorted(values, rng, descending)[1]


def shares_below(values: Float32, rng: Rng) -> Float32:
    """float32 [n]: for each value the share of all values that are smaller, in [0, 1). Cost: O(n log n)."""
    keys, order = _sorted(values, rng, descending=False)
    shares = np.empty(len(values), np.float32)
    _shares_below(keys, order, shares)
    return shares


def unseen_first(values: Float32, seen: Mask) -> Float32:
    """float32 [n]: the values, with infinity for the examples never scored, so that they count as the largest."""
    return np.where(seen, values, np.float32(np.inf))


@kernel
def _cluster(values: Float32, sums: Float64, begins: Int64, centres: Float64) -> None:
    for _ in range(ROUNDS):
        for g in range(centres.size):
            size = begins[g + 1] - begins[g]
            if size > 0:  # a group that has lost all its values keeps its centre
                centres[g] = (sums[begins[g + 1]] - sums[begins[g]]) / size
        changed = False
        for g in range(1, centres.size):
            border = 0.5 * (centres[g - 1] + centres[g])
            low, high = begins[g - 1], values.size
            while low < high:
                middle = (low + high) // 2
                if np.float64(values[middle]) < border:
                    low = middle + 1
                else:
                    high = middle
            changed |= low != begins[g]
            begins[g] = low
        if not changed:
            break


def clusters(values: Float32, count: int) -> Int64:
    """int64 [groups + 1]: where each group of sorted values begins, by k-means, and their number.

    Lloyd's iteration in one dimension, from ``count`` (>= 1) parts of equal size, until no value changes its group; a
    value half way between two means belongs to the upper one. Equal values are in one group, so there may be fewer
    groups than ``count``, but at least one. values: not empty. Cost: O(n) once, then O(count log n) a round.
    """
    count = min(count, len(values))
    begins = np.arange(count + 1) * len(values) // count
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, dtype=np.float64, out=sums[1:])
    _cluster(values, sums, begins, np.zeros(count))
    return np.unique(begins)


# By chance.


def uniformly(count: int, rng: Rng, among: Mask) -> Mask:
    """bool [n]: ``count`` of the examples in ``among`` (all if they are fewer), every subset equally likely."""
    members = np.flatnonzero(among)
    mask = np.zeros(len(among), bool)
    if len(members):
        mask[members[rng.choose(len(members), max(count, 0))]] = True
    return mask


def pruned(where: Mask, ratio: float, rng: Rng) -> tuple[Uint8, tuple[float, ...]]:
    """Leaves out the share ``ratio`` of the examples in ``where``, and weighs those kept for those left out.

    Returns: codes uint8 [n] and the codes' weights, for a Plan. Of m examples floor((1 - ratio) m) are kept, at least
    one, with weight m / kept: the expected weighted sum over the epoch is the sum over all examples. The rest has
    weight 1. Of fewer than two none is left out.
    """
    codes = np.full(len(where), TRAIN, np.uint8)
    m = int(np.count_nonzero(where))
    if m < 2:
        return codes, (0.0, 1.0, 1.0, 0.0)
    kept = at_least_one(m, 1 - ratio)
    codes[where] = OUT
    codes[uniformly(kept, rng, where)] = TRAIN_RESCALED
    return codes, (0.0, 1.0, m / kept, 0.0)


def accepted(shares: Any, beta: float, u: Any, least: float = 0.0) -> Any:
    """bool [n]: u < max(share ^ beta, least), the acceptance of Selective-Backprop; of numpy arrays, or of tensors.

    shares: of the losses remembered, those below each, in [0, 1). u: uniform in [0, 1). About 1 / (beta + 1) pass.
    """
    return (u < shares**beta) | (u < least)


# By rank.


def geometric_ranks(u: Float64, n: int, pressure: float) -> Int64:
    """int64 [k], ranks in [0, n) with P(r) ~ pressure^(-r / n), from u uniform in [0, 1). Cost: O(1) each.

    The first rank is pressure^(1 - 1/n) times as likely as the last; pressure >= 1, and 1 is uniform.
    """
    if pressure == 1:
        ranks = u * n
    else:
        log = np.log(pressure)
        ranks = np.log1p(u * np.expm1(-log)) * (-n / log)
    return np.minimum(ranks.astype(np.int64), n - 1)


def geometric_probabilities(ranks: Int64, n: int, pressure: float) -> Float64:
    """float64 [k]: how likely ``geometric_ranks`` gives each rank."""
    if pressure == 1:
        return np.full(len(ranks), 1 / n)
    log = np.log(pressure)
    probabilities: Float64 = np.exp(-log / n * ranks) * (np.expm1(-log / n) / np.expm1(-log))
    return probabilities


def distinct(draw: Callable[[int], Int64], law: Callable[[], Float64], n: int, count: int, rng: Rng) -> Int64:
    """int64 [count]: draws without replacement, in the order in which they come (successive sampling).

    Args:
        draw: k -> k independent draws from [0, n). law: their probabilities [n], asked for where most are drawn.
        count: above n, everything comes once before anything comes twice.
    """
    if count > n:
        rounds = [distinct(draw, law, n, min(n, count - begin), rng) for begin in range(0, count, n)]
        return np.concatenate(rounds)
    drawn = np.empty(0, np.int64)
    for _ in range(REDRAWS if 4 * count <= n else 0):
        drawn = np.concatenate([drawn, draw(2 * (count - len(drawn)))])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
        if len(drawn) >= count:
            return drawn[:count]
    # Most are drawn, or a few have nearly all the probability. Of exponential clocks with these rates the first to ring
    # are such a sample (Efraimidis and Spirakis 2006), also of what is left after some draws.
    with np.errstate(divide="ignore", invalid="ignore"):
        clocks = -np.log1p(-rng.random(n)) / law()
    clocks[drawn] = np.nan  # sorted last
    return np.concatenate([drawn, np.argsort(clocks, kind="stable")[: count - len(drawn)]])


# By group and by source.


def by_group(groups: Any, count: int) -> tuple[Uint32, Int64]:
    """The examples sorted by group, uint32 [n], and where each group begins there, int64 [count + 1].

    groups: integers [n] in [0, count). Cost: O(n).
    """
    order = np.argsort(groups, kind="stable").astype(np.uint32)
    begins = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(groups, minlength=count), out=begins[1:])
    return order, begins


def draw_in_groups(order: Uint32, begins: Int64, p: Float64, count: int, rng: Rng) -> tuple[Int64, Float64]:
    """A group by its probability, then one of its examples uniformly, ``count`` times: (indices, probabilities).

    p: float64 [groups], >= 0; groups without examples are passed over, the others' p scaled up.
    """
    sizes = np.diff(begins)
    p = np.where(sizes > 0, p, 0)
    p = p / p.sum() if p.sum() > 0 else sizes / sizes.sum()
    ends = np.cumsum(p)
    group = np.searchsorted(ends, rng.random(count) * ends[-1], side="right")
    item = (rng.random(count) * sizes[group]).astype(np.int64)  # below the size: a product with u < 1 rounds no higher
    return order[begins[group] + item].astype(np.int64), p[group] / sizes[group]


def quota(begin: int, count: int, share: float) -> int:
    """How many of the draws [begin, begin + count) are the first source's: floor of the share's running total.

    So every stretch has its share but for one, and the whole exactly.
    """
    return share_of(begin + count, share) - share_of(begin, share)


# Rings: the last ``width`` values of each example.


@inlined
def push(ring: Any, counts: Uint8, indices: Int64, values: Any) -> None:
    """Puts each value into its example's ring [n, width]. Duplicates are values of their own, in order.

    counts: uint8 [n]; place c % width is the next to be written, and a ring is full from c = width on, where c goes
    round from 2 * width - 1 to width. width <= 127.
    """
    width = ring.shape[1]
    for j in range(indices.size):
        i = indices[j]
        c = np.int64(counts[i])
        ring[i, c % width] = values[j]
        counts[i] = c + 1 if c + 1 < 2 * width else width


@kernel
def exponential(values: Any, rate: float, out: Any) -> None:
    """out = exp(rate * value), the same bits on every machine (numpy's is not)."""
    for i in range(values.size):
        out[i] = power(E, rate * values[i])


@kernel
def _read(column: Any, indices: Int64) -> float:
    total = 0.0
    for j in range(indices.size):
        total += column[indices[j]]
    return total


def fetch(indices: Int64, *columns: Any) -> None:
    """Reads a batch's rows, so that a loop over them need not wait for memory at each.

    Loops that do nothing else wait for many rows at once. Worth it for several columns of many examples.
    """
    for column in columns:
        if column.ndim == 1:
            _read(column, indices)
        else:
            _read(column[:, 0], indices)
            _read(column[:, -1], indices)
