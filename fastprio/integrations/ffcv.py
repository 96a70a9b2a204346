"""FFCV (1.0.2): ``PriorityOrder`` draws a Loader's batches by priority, ``SampleIndex`` says what was drawn.

::

    sampler = fastprio.PrioritySampler(n, batch_size=256)
    loader = Loader(path, batch_size=256, order=PriorityOrder(sampler), os_cache=True, pipelines=pipelines)
    for x, y in loader:
        loss = sampler.step(F.cross_entropy(model(x), y.squeeze(1), reduction="none"))

FFCV asks for the order of a whole epoch, cuts it into arrays, a batch each, and shows these to the epoch's memory
(``MemoryManager.schedule_epoch``). Its thread reads one after the other, and tells that memory before each
(``MemoryContext.start_batch``). With ``os_cache=True`` the memory has nothing to prepare, so a batch can still be drawn
there, into its array. Whether this FFCV does all that is tried out when a loader is made; where it does not, and with
``os_cache=False``, an epoch is drawn whole when it begins.
"""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from ffcv.memory_managers import MemoryContext, OSCacheManager
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.traversal_order.base import TraversalOrder

from fastprio._arrays import as_indices
from fastprio.sampler import PriorityBatchSampler, PrioritySampler

Rows = npt.NDArray[np.uint64]  # as FFCV counts them; it compiles its loops for this dtype

PATIENCE = 20.0
"""Seconds after which a trial of FFCV's iteration, which takes milliseconds, has failed."""

_loaders: weakref.WeakKeyDictionary[PrioritySampler, weakref.ref[Any]] = weakref.WeakKeyDictionary()


class PriorityOrder(TraversalOrder):
    """Give it to an ``ffcv.loader.Loader`` as ``order=``; then ``sampler.step(losses)`` once for every batch.

    Args:
        sampler: a PrioritySampler over as many examples as the loader has rows. Example i is row i of the file, or
            row ``indices[i]`` where the loader has ``indices=``.

    With ``os_cache=True`` each batch is drawn just before it is read, ``batches_ahead + 1`` batches before it is
    trained on; ``live`` is True then. Otherwise an epoch is drawn when it begins, by the losses known so far, which one
    line in the log "fastprio" says; ``live`` is False.

    ``len(loader)`` is constant; where a policy's plan makes an epoch shorter, ``sampler.planned`` is how many examples
    it has. Epochs are counted by the sampler (``set_epoch``), unless ``loader.next_epoch`` was set. On several ranks
    the sampler slices its batches, whatever the loader's ``distributed`` says, and the loader's ``batch_size`` is that
    of a rank; start the process group first.

    What a draw raises, also in FFCV's thread, the loop over the loader raises. Leaving an epoch by ``break`` leaves
    FFCV's thread waiting, as with its own orders; it draws nothing more.

    Raises: TypeError if ``sampler`` is no PrioritySampler. And when the loader is made, ValueError: other sizes; a
        ``lag`` below what is drawn ahead; a sampler that another loader has.
    Cost: that of drawing, in FFCV's thread; 8 bytes a draw of the epoch.
    """

    def __init__(self, sampler: PrioritySampler) -> None:
        # TraversalOrder.__init__ takes the loader, which there is not yet.
        if not isinstance(sampler, PrioritySampler):
            raise TypeError(f"sampler: expected a PrioritySampler, got {type(sampler).__name__}")
        self.sampler = sampler
        self.live = False

    def __call__(self, loader: Any) -> PriorityOrder:
        """What FFCV does with an order: makes it that of ``loader``."""
        sampler = self.sampler
        rows, size, ranks = _rows(loader, sampler), loader.batch_size, sampler.num_replicas
        if sampler.batch_size not in (None, size * ranks):
            raise ValueError(f"batch_size = {size} on {ranks} ranks: the sampler's global one is {sampler.batch_size}")
        batches = PriorityBatchSampler(sampler, size, loader.drop_last)
        _refuse_second(sampler, loader)
        live = _can_draw_live(loader)
        ahead = loader.batches_ahead + 1 if live else len(batches)
        if sampler.lag is not None and sampler.lag < ahead:
            what = "batches_ahead + 1 batches are" if live else "an epoch's batches are all"
            raise ValueError(f"lag = {sampler.lag}: {what} drawn ahead, so lag >= {ahead}")
        super().__init__(loader)
        self.sampler, self.live = sampler, live
        self._rows, self._batches, self._ahead = rows, batches, ahead
        self._next_epoch, self._complete = 0, False
        self._coming: Iterator[Rows] | None = None  # what the epoch draws that is about to begin
        if live:
            self._schedule: Callable[[Any], Any] = loader.memory_manager.schedule_epoch
            loader.memory_manager.schedule_epoch = self._schedule_live
        return self

    def sample_order(self, epoch: int) -> Any:
        """Begins an epoch: uint64 [n], its rows, or zeros where each batch is yet to be drawn."""
        if not self._complete:  # the last thing that a Loader's constructor does is to ask how long an epoch is
            self._complete = True
            _loaders[self.sampler] = weakref.ref(self.loader)
            self.sampler.lookahead = self._ahead
            return _Length(len(self.sampler))
        _check_size(self.loader, self.sampler, self._rows)
        if epoch != self._next_epoch:
            self.sampler.set_epoch(epoch)
        self._next_epoch = epoch + 1
        drawn: Iterator[Rows] = (self._rows[batch] for batch in self._batches)
        # The first batch is drawn here, in the training thread: it is what begins the sampler's epoch.
        first = next(drawn, None)
        if first is None:
            return np.empty(0, np.uint64)
        drawn = itertools.chain([first], drawn)
        if not self.live:
            return np.concatenate(list(drawn))
        self._coming = drawn
        size = self._batches.batch_size
        before = self.sampler.journal.peek().number  # batches: above 0 where this goes on in the middle of an epoch
        count = self.sampler.planned - before * size
        return np.zeros(count - count % size if self._batches.drop_last else count, np.uint64)

    def _schedule_live(self, batches: Any) -> Any:
        """In place of the memory manager's ``schedule_epoch``, which FFCV calls with an epoch's batches."""
        memory, coming, self._coming = self._schedule(batches), self._coming, None
        return memory if coming is None else _DrawnWhenRead(memory, batches, coming)


class SampleIndex(Operation):
    """Outputs which examples a batch has, int64 [n], whatever it is applied to: that need not be an index.

    ::

        pipelines = {..., "index": PipelineSpec("label", transforms=[SampleIndex(), ToTensor()])}
        for x, y, index in Loader(path, ..., pipelines=pipelines):
            loss = sampler.step(losses, indices=index)

    Args:
        indices: the loader's ``indices=``, where it has one: integers, no two alike. The output is then positions in
            it, which is how the sampler counts.

    Like all that FFCV outputs, the tensor is overwritten some batches later: clone it to keep it.

    Raises: ValueError if ``indices`` has duplicates or one below 0; TypeError if they are no integers.
    """

    def __init__(self, indices: Any = None) -> None:
        super().__init__()
        self._positions = None
        if indices is not None:
            rows = as_indices(indices)
            if len(np.unique(rows)) != len(rows) or rows.min(initial=0) < 0:
                raise ValueError("indices: expected rows >= 0, no two alike, or positions among them are not defined")
            self._positions = np.full(rows.max(initial=-1) + 1, -1)
            self._positions[rows] = np.arange(len(rows))

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, Any]:
        """int64, one number an example. Not compiled: it is one call of numpy's."""
        dtype = np.dtype(np.int64)
        return replace(previous_state, jit_mode=False, shape=(), dtype=dtype), AllocationQuery((), dtype)

    def generate_code(self) -> Any:
        """The function that FFCV calls with a batch, where to put the result, and the batch's rows."""
        positions = self._positions

        def sample_index(batch: Any, out: Any, rows: Any) -> Any:
            out[:] = rows if positions is None else positions[rows]
            return out

        sample_index.with_indices = True  # type: ignore[attr-defined]
        return sample_index


class _Length:
    """Stands for an order of which only the length is known; to read by it is an error."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


class _DrawnWhenRead(MemoryContext):
    """FFCV's memory of one epoch, which moreover draws every batch just before it is read.

    Args:
        memory: FFCV's own. batches: uint64 arrays, one a batch, to be filled. draws: what to fill them with.
    """

    def __init__(self, memory: Any, batches: Any, draws: Iterator[Rows]) -> None:
        self._memory, self._batches, self._draws = memory, batches, draws

    @property
    def state(self) -> Any:
        return self._memory.state

    def __enter__(self) -> _DrawnWhenRead:
        self._memory.__enter__()
        return self

    def start_batch(self, batch: int) -> None:
        """Fills a batch. StopIteration ends FFCV's thread in good order, where there is nothing more to draw."""
        try:
            drawn, rows = next(self._draws), self._batches[batch]
            if len(drawn) != len(rows):
                raise RuntimeError(f"batch {batch}: {len(drawn)} examples were drawn where {len(rows)} were expected")
            rows[:] = drawn
        except StopIteration:
            raise
        except Exception as error:
            # Raised here it would end the thread only, and the training loop would wait for ever.
            reader: Any = threading.current_thread()
            reader.output_queue.put(_Raised(error))
            raise StopIteration from error
        self._memory.start_batch(batch)

    def __exit__(self, *exception: Any) -> None:
        self._memory.__exit__(*exception)


class _Raised:
    """An error in the place of a batch: FFCV unpacks what its thread has made in the training thread, and it raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __iter__(self) -> Iterator[Any]:
        raise self._error


def _rows(loader: Any, sampler: PrioritySampler) -> Rows:
    """The file's rows of the examples. FFCV does not look whether ``indices=`` are rows: it reads beyond the file."""
    rows, size = as_indices(loader.indices), loader.reader.num_samples
    if len(rows) and not 0 <= rows.min() <= rows.max() < size:
        raise ValueError(f"indices: in [{rows.min()}, {rows.max()}]: expected rows of {loader.fname}, in [0, {size})")
    unsigned = rows.astype(np.uint64)
    _check_size(loader, sampler, unsigned)
    return unsigned


def _check_size(loader: Any, sampler: PrioritySampler, rows: Rows) -> None:
    if len(sampler.store) != len(rows):
        size = loader.reader.num_samples
        chosen = "" if len(rows) == size else f", {len(rows)} of them by indices="
        raise ValueError(f"the sampler has {len(sampler.store)} examples, {loader.fname} has {size}{chosen}")


def _refuse_second(sampler: PrioritySampler, loader: Any) -> None:
    other = _loaders.get(sampler)
    if other is None or other() is None:
        return
    gc.collect()  # a loader and its order hold each other
    first = other()
    if first is not None:
        raise ValueError(
            f"this sampler draws for a Loader of {first.fname} already: make another for {loader.fname}, which may be "
            "of the same store, PrioritySampler(sampler.store, ...), where one loader is iterated at a time"
        )


def _can_draw_live(loader: Any) -> bool:
    """Whether batches can be drawn as they are read; says so where not."""
    if not isinstance(loader.memory_manager, OSCacheManager):
        logging.getLogger("fastprio").warning(
            "%s: with os_cache=False FFCV plans an epoch's reading ahead, so each epoch is drawn whole when it begins; "
            "os_cache=True draws by the newest losses",
            loader.fname,
        )
        return False
    failure = _try_out(loader)
    if failure is not None:
        warnings.warn(
            f"this FFCV iterates in another way than 1.0.2 ({failure}), so each epoch is drawn whole when it begins, "
            "and not by the newest losses",
            stacklevel=4,
        )
    return failure is None


def _try_out(loader: Any) -> str | None:
    """Draws live for a pretended loader, iterated by FFCV's own code. Returns what is wrong, or None."""
    found: list[str | None] = []

    def try_out() -> None:
        try:
            found.append(_differs(loader))
        except Exception as error:
            found.append(repr(error))

    # In a thread of its own, for what goes wrong may be that a batch never comes.
    thread = threading.Thread(target=try_out, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return found[0] if found else "no batch came"


def _differs(loader: Any) -> str | None:
    drawn = [[4, 3], [2, 1], [0]]

    class Failure(Exception):
        pass

    def fails() -> Iterator[Rows]:
        yield np.array(drawn[0], np.uint64)
        raise Failure

    came = [batch.tolist() for (batch,) in _pretended(loader, iter(np.array(rows, np.uint64) for rows in drawn))]
    if came != drawn:
        return f"{drawn} was drawn and {came} read"
    iterator = iter(_pretended(loader, fails()))
    next(iterator)
    try:
        next(iterator)
    except Failure:
        return None if next(iterator, None) is None else "after an error it goes on"
    return "an error while drawing does not reach the loop"


def _pretended(loader: Any, draws: Iterator[Rows]) -> Any:
    """A loader of ``loader``'s class over five rows, in batches of two, which outputs just the rows of each batch."""
    order = np.zeros(5, np.uint64)
    memory = loader.memory_manager.schedule_epoch([])
    pretended = object.__new__(type(loader))
    vars(pretended).update(
        batch_size=2,
        batches_ahead=1,
        num_workers=loader.num_workers,
        drop_last=False,
        recompile=False,
        next_epoch=0,
        traversal_order=SimpleNamespace(sample_order=lambda epoch: order),
        first_traversal_order=order,
        reader=SimpleNamespace(metadata=None),
        memory_manager=SimpleNamespace(schedule_epoch=lambda batches: _DrawnWhenRead(memory, batches, draws)),
        graph=SimpleNamespace(allocate_memory=lambda batch_size, slots: {"operation": {}, "shared": {}}),
        code=([(lambda batch_indices, **others: (batch_indices.copy(),), ["rows"])], ["rows"]),
    )
    return pretended
