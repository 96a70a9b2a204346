"""Other ways to draw a batch by priority, one small adapter each, so that they can be timed beside fastprio.

An adapter is made from priorities and a batch size, draws a batch a call, and sets a batch of priorities a call if it
can. Every one does as little as its library allows for that: none returns probabilities unless its library does
unasked. What a library cannot do stands in its adapter's docstring.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler, WeightedRandomSampler

from fastprio._kernels import kernel
from fastprio.tree import SumTree

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64


class Peer:
    """One way to draw batches.

    Args:
        weights: float32 [n], finite, >= 0, one above zero: the priorities to begin with. Not changed.
        batch: indices a call of ``draw``, in [1, n].
        seed: of the draws, in [0, 2^40), where the library takes one.

    Class attributes:
        name: how tables and records call it. title: what it is, in a line.
        module: what must be importable, "" for nothing. distribution: whose version a record states, "" for none.
        updates: whether priorities can change between two draws.
        whole_epochs: it draws an epoch ahead, so only whole epochs are measured.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    module: ClassVar[str] = ""
    distribution: ClassVar[str] = ""
    updates: ClassVar[bool] = True
    whole_epochs: ClassVar[bool] = False
    most: ClassVar[int] = 1 << 32
    """The largest number of examples that it takes."""

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        self.n, self.batch = len(weights), batch
        self.rng = np.random.default_rng(seed)

    @classmethod
    def skipped(cls, n: int = 1) -> str | None:
        """Why it cannot run here, or with ``n`` examples, in one line; None if it can."""
        if n > cls.most:
            return f"{cls.title} refuses more than {cls.most:,} examples"
        if not cls.module:
            return None
        package = cls.module.partition(".")[0]
        try:
            importlib.import_module(cls.module)
        except ModuleNotFoundError as error:
            return f"{error.name or package} is not installed"
        except Exception as error:  # whatever a foreign package raises while it is imported
            return f"{package} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())[-160:]}"
        return None

    @classmethod
    def version(cls) -> dict[str, str]:
        """Its distribution's name -> version, for the record; empty where there is none beyond torch and numpy."""
        return {cls.distribution: importlib.metadata.version(cls.distribution)} if cls.distribution else {}

    def draw(self) -> Any:
        """The indices of the next batch: a list, an array or a tensor of ``batch``."""
        raise NotImplementedError

    def update(self, indices: Int64, values: Float32) -> None:
        """Sets the priorities of ``indices`` (int64 [m]) to ``values`` (float32 [m])."""
        raise NotImplementedError


class Tree(Peer):
    """fastprio's SumTree: exact; takes up to 2^32 examples. Draws come with their probabilities, into given arrays."""

    name, title = "tree", "fastprio SumTree"

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        self.tree, self.seed, self.offset = SumTree(self.n), seed, 0
        self.tree.fill(weights)
        self.out = np.empty(batch, np.int64), np.empty(batch, np.float64)

    def draw(self) -> Int64:
        """A batch of strata, written over the one before."""
        self.tree.sample(
            self.batch, seed=self.seed, offset=self.offset, scheme="stratified", group=self.batch, out=self.out
        )
        self.offset += self.batch
        return self.out[0]

    def update(self, indices: Int64, values: Float32) -> None:
        """One call."""
        self.tree.update(indices, values)


class _Epochs(Peer):
    updates, whole_epochs = False, True
    batches: BatchSampler
    following: Iterator[list[int]] = iter(())

    def draw(self) -> list[int]:
        """The next batch; after the last of an epoch, the first of another."""
        found = next(self.following, None)
        if found is None:
            self.following = iter(self.batches)
            found = next(self.following)
        return found


class Uniform(_Epochs):
    """torch's uniform batches, the yardstick: it knows no priorities. Shuffles all N before the first index."""

    name, title = "uniform", "torch BatchSampler(RandomSampler), uniform"

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        generator = torch.Generator().manual_seed(seed)
        self.batches = BatchSampler(RandomSampler(range(self.n), generator=generator), batch, drop_last=False)


class Weighted(_Epochs):
    """torch's WeightedRandomSampler, with replacement.

    The whole epoch is drawn before its first index, so what is learnt in it changes nothing until the next one.
    Refuses more than 2^24 examples.
    """

    name, title = "weighted", "torch BatchSampler(WeightedRandomSampler)"
    most = 1 << 24

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        generator = torch.Generator().manual_seed(seed)
        sampler = WeightedRandomSampler(torch.from_numpy(weights), self.n, replacement=True, generator=generator)  # type: ignore[arg-type]
        self.batches = BatchSampler(sampler, batch, drop_last=False)


class Multinomial(Peer):
    """torch.multinomial, called for every batch: O(N) a batch. Refuses more than 2^24 examples."""

    name, title = "multinomial", "torch.multinomial, anew for each batch"
    most = 1 << 24

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        self.weights = torch.from_numpy(weights.copy())
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> torch.Tensor:
        """With replacement."""
        return torch.multinomial(self.weights, self.batch, replacement=True, generator=self.generator)

    def update(self, indices: Int64, values: Float32) -> None:
        """Writes them into the array."""
        self.weights[torch.from_numpy(indices)] = torch.from_numpy(values)


class Choice(Peer):
    """numpy's Generator.choice, called for every batch: O(N) a batch, and it wants probabilities that add up to one."""

    name, title = "choice", "numpy Generator.choice, anew for each batch"

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        self.weights = weights.astype(np.float64)

    def draw(self) -> Int64:
        """With replacement."""
        return self.rng.choice(self.n, self.batch, p=self.weights / self.weights.sum())

    def update(self, indices: Int64, values: Float32) -> None:
        """Writes them into the array."""
        self.weights[indices] = values


class _TorchRL(Peer):
    module, distribution = "torchrl._torchrl", "torchrl"
    kind: ClassVar[str]
    dtype: ClassVar[Any]

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        self.tree = getattr(importlib.import_module(self.module), f"SumSegmentTree{self.kind}")(self.n)
        self.tree[np.arange(self.n)] = weights.astype(self.dtype)

    def draw(self) -> Int64:
        """As its PrioritizedSampler: masses below the sum, looked up; clamped, because rounding can pass N."""
        masses = self.rng.uniform(0.0, self.tree.query(0, self.n), self.batch)
        found: Int64 = np.minimum(self.tree.scan_lower_bound(masses), self.n - 1)
        return found

    def update(self, indices: Int64, values: Float32) -> None:
        """One call."""
        self.tree[indices] = values.astype(self.dtype, copy=False)


class TorchRL32(_TorchRL):
    """TorchRL's CPU tree as its replay buffer makes it: sums and draws in float32, iid only.

    From 2^24 equal priorities on, more and more examples can never be drawn. Checks nothing: one NaN ruins the root.
    Its wheels are bound to one version of torch, and do not import beside another.
    """

    name, title, kind, dtype = "torchrl32", "TorchRL SumSegmentTreeFp32", "Fp32", np.float32


class TorchRL64(_TorchRL):
    """The same in float64: twice the memory (34 GB at a billion)."""

    name, title, kind, dtype = "torchrl64", "TorchRL SumSegmentTreeFp64", "Fp64", np.float64


class Cpprb(Peer):
    """cpprb's PrioritizedReplayBuffer with the smallest example it takes, one float32: sums in float32, strata.

    Cannot be seeded. Drawing cannot be had without weights and without gathering the examples, so both are in its
    time. Sums are float32, with what that means above 2^24 examples.
    """

    name, title = "cpprb", "cpprb PrioritizedReplayBuffer"
    module, distribution = "cpprb", "cpprb"

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        # alpha and eps: priorities as given, as everywhere else.
        make = importlib.import_module(self.module).PrioritizedReplayBuffer
        self.buffer = make(self.n, {"x": {}}, alpha=1.0, eps=0.0)
        for begin in range(0, self.n, 1 << 20):
            piece = weights[begin : begin + (1 << 20)]
            self.buffer.add(x=np.zeros(len(piece), np.float32), priorities=piece)

    def draw(self) -> Any:
        """uint64 [batch]."""
        return self.buffer.sample(self.batch, beta=0.4)["indexes"]

    def update(self, indices: Int64, values: Float32) -> None:
        """One call."""
        self.buffer.update_priorities(indices, values)


class Tianshou(Peer):
    """Tianshou's SegmentTree, in numba: float64 sums, iid only. Checks that indices are in range, not what is set."""

    name, title = "tianshou", "Tianshou SegmentTree (numba)"
    module, distribution = "tianshou.data.utils.segtree", "tianshou"

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        self.tree = importlib.import_module(self.module).SegmentTree(self.n)
        self.tree[np.arange(self.n)] = weights

    def draw(self) -> Int64:
        """As its PrioritizedReplayBuffer."""
        found: Int64 = self.tree.get_prefix_sum_idx(self.rng.random(self.batch) * self.tree.reduce())
        return found

    def update(self, indices: Int64, values: Float32) -> None:
        """One call."""
        self.tree[indices] = values


@kernel
def _alias(weights: Float64, uniforms: Float64, keep: Float64, other: Int64, waiting: Int64, drawn: Int64) -> None:
    n = weights.size
    scale = n / weights.sum()
    small, large = 0, n  # two stacks in one array, from both of its ends
    for i in range(n):
        keep[i] = weights[i] * scale
        other[i] = i
        if keep[i] < 1.0:
            waiting[small] = i
            small += 1
        else:
            large -= 1
            waiting[large] = i
    while small > 0 and large < n:
        small -= 1
        i, j = waiting[small], waiting[large]
        other[i] = j
        keep[j] -= 1.0 - keep[i]
        if keep[j] < 1.0:
            large += 1
            waiting[small] = j
            small += 1
    for k in range(drawn.size):
        x = uniforms[k] * n
        i = min(int(x), n - 1)
        drawn[k] = i if x - i < keep[i] else other[i]


class Alias(Peer):
    """A table of Walker and Vose, rebuilt for each batch: O(N) a batch, though a draw from a table is O(1).

    In numba, into arrays that are kept. A draw's one float64 serves for column and coin, so the coin has fewer bits
    the more examples there are.
    """

    name, title = "alias", "alias table, rebuilt for each batch (numba)"

    def __init__(self, weights: Float32, batch: int, seed: int) -> None:
        super().__init__(weights, batch, seed)
        self.weights = weights.astype(np.float64)
        self.scratch = np.empty(self.n), np.empty(self.n, np.int64), np.empty(self.n, np.int64)

    def draw(self) -> Int64:
        """Builds the table and draws."""
        drawn = np.empty(self.batch, np.int64)
        _alias(self.weights, self.rng.random(self.batch), *self.scratch, drawn)
        return drawn

    def update(self, indices: Int64, values: Float32) -> None:
        """Writes them into the array."""
        self.weights[indices] = values


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (Tree, Uniform, Weighted, Multinomial, Choice, TorchRL32, TorchRL64, Cpprb, Tianshou, Alias)
}
"""Name -> adapter, in the order of the tables."""
