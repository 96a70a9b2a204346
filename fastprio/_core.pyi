"""
The C++ core of fastprio. Use fastprio.SumTree; the contracts are in csrc/sum_tree.h.
"""

import enum
from typing import Annotated, overload

import numpy
from numpy.typing import NDArray


MAX_SIZE: int = 4294967296

MAX_THREADS: int = 1024

SCHEMES: dict = ...

class Purpose(enum.Enum):
    """What random bits are used for; two purposes never share bits."""

    draw = 0

    stratum = 1

    cover = 2

    plan = 3

    redraw = 4

    policy = 5

    shard = 6

class Isa(enum.Enum):
    """Which compiled copy of the hot loops runs; all give the same bits."""

    baseline = 0

    avx2 = 1

    avx512 = 2

class SumTree:
    """The exact sum tree, without locks and conversions."""

    @overload
    def __init__(self, size: int) -> None: ...

    @overload
    def __init__(self, size: int, fixed_scale: int) -> None: ...

    @property
    def size(self) -> int: ...

    @property
    def total(self) -> int: ...

    @property
    def scale(self) -> int: ...

    @property
    def max_bits(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def update(self, indices: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], priorities: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def fill(self, priorities: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def fill_scalar(self, priority: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def write(self, begin: int, priorities: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def adopt(self, written: SumTree) -> None: ...

    def refit(self) -> None: ...

    def refit_gain(self, least: int) -> int: ...

    def set_max(self, bits: int) -> None: ...

    def gather(self, indices: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], priorities: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

    def find(self, masses: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], indices: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

    def sample(self, seed: int, epoch: int, offset: int, scheme: int, group: int, indices: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')], probabilities: Annotated[NDArray[numpy.float64], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

    def parked(self) -> tuple[bool, int, int, int, bytes]:
        """(active, seed, epoch, next, a bit an example)"""

    def set_parked(self, seed: int, epoch: int, next: int, bits: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def priorities(self) -> Annotated[NDArray[numpy.float32], dict(shape=(None,), writable=False)]:
        """A read-only view of all leaves."""

    def level(self, k: int) -> Annotated[NDArray[numpy.uint64], dict(shape=(None,), writable=False)]:
        """For tests: the nodes of level k, 0 being the one above the leaves."""

    @property
    def levels(self) -> int: ...

class Singles:
    """An iterator of ints, of which the rest can be taken back."""

    def __iter__(self, /):
        """Implement iter(self)."""

    def __next__(self, /):
        """Implement next(self)."""

    def __init__(self, indices: Annotated[NDArray[numpy.int64], dict(shape=(None,), device='cpu', writable=False)]) -> None: ...

    def __len__(self) -> int: ...

    @property
    def taken(self) -> int: ...

    def cut(self) -> int: ...

def walk(n: int, seed: int, epoch: int, purpose: Purpose, position: int, skip: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], indices: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')]) -> tuple[int, int]: ...

def integers(bound: int, seed: int, epoch: int, purpose: Purpose, first: int, out: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu')]) -> None: ...

def word(seed: int, epoch: int, purpose: Purpose, n: int, attempt: int) -> int: ...

def mass(priority: float, scale: int) -> int: ...

def get_num_threads() -> int: ...

def set_num_threads(n: int) -> None: ...

def set_least_per_thread(n: int) -> None:
    """
    For tests: how many items make a thread worth starting; 0 for what was measured.
    """

def isa() -> Isa: ...

def isa_available(isa: Isa) -> bool: ...

def use_isa(isa: Isa) -> None:
    """For tests."""
