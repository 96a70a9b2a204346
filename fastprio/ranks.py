"""Several ranks: how their losses, or the masses of their shards, meet; one collective a step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastprio._arrays import Float64, Int64
    from fastprio.journal import Taken
    from fastprio.tree import SumTree

SKIP, STEP, OTHER = 0, 1, 2
"""What a rank did with its part of a batch: OTHER is a step with observations that do not fit the first one's."""
HEADER = ("what", "epoch", "draw", "count", "sum of the indices", "batches drawn")
# Its name since torch 2.13, and before. None where torch is built without collectives.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))
Schema = tuple[tuple[str, str, tuple[int, ...]], ...]


def place_in(group: Any) -> tuple[int, int]:
    """(rank, number of ranks) in a process group; None: torch's default one as it is now, (0, 1) where there is none.

    Raises: ValueError if this process is not in the group.
    """
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("process_group: this process is not in it")
    return rank, ranks


class Flight:
    """The same number of bytes from every rank to every rank, on their way.

    Args: message: uint8 [n], where the group's collectives need it. group: a process group, None for torch's default.

    On an accelerator the copy to the host has a stream of its own: to wait for it is not to wait for the training step
    that was launched in the meantime.
    """

    def __init__(self, message: torch.Tensor, group: Any) -> None:
        self._ranks = place_in(group)[1]
        self._message = message  # until the collective is over
        self._all = torch.empty(self._ranks * message.numel(), dtype=torch.uint8, device=message.device)
        self._work = _all_gather(self._all, message, group=group, async_op=True)
        self._copied: Any = None
        if message.is_cuda:
            stream = torch.cuda.Stream(message.device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                self._work.wait()
                host = torch.empty(self._all.shape, dtype=torch.uint8, pin_memory=True)
                host.copy_(self._all, non_blocking=True)
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record(stream)
            self._gathered, self._all = self._all, host  # not given back before it is copied

    def table(self) -> Any:
        """uint8 [ranks, n]. RuntimeError, from torch, if a rank failed or is not there in time."""
        if self._copied is None:
            self._work.wait()
        else:
            self._copied.synchronize()
        return self._all.numpy().reshape(self._ranks, -1)


class Exchange:
    """Every rank's losses of a batch, gathered while the backward pass runs.

    Losses travel as float32, observations in their own dtypes; indices do not travel, because every rank knows the
    global batch. A sum of its indices does, so that ranks that have drawn differently find out.

    Args:
        group: of the ranks that draw alike. most: rows of a rank in a batch. in_step: whether ranks must have drawn as
            many batches at a step, because there is no lag.

    Cost: one all_gather of 48 + most * (4 + bytes of observations) bytes a rank and step, not waited for; at the
    first step one more, which is, of what observations there are.
    """

    def __init__(self, group: Any, most: int, in_step: bool) -> None:
        self._group, self._most, self._in_step = self.with_whom = group, most, in_step
        self.ranks = place_in(group)[1]
        self._device = device_of(group)
        self._schema: Schema | None = None
        self._bytes = 0  # of a message, once there is a schema

    def send(
        self, taken: Taken, epoch: int, drawn: int, losses: torch.Tensor | None, observations: Mapping[str, Any]
    ) -> Gathering:
        """Sends this rank's rows of ``taken``, or, without losses, that it skips them. Waits only the first time."""
        rows = [] if losses is None else self._rows(losses, observations)
        schema = None if losses is None else tuple((name, str(t.dtype), tuple(t.shape[1:])) for name, t in rows)
        what = SKIP if losses is None else STEP
        if self._schema is None:
            self._schema = self._agree(schema)
            of_rows = sum(_bytes_of(dtype, shape) for _, dtype, shape in self._schema or ())
            self._bytes = 8 * len(HEADER) + self._most * of_rows
        elif schema is not None and schema != self._schema:
            what = OTHER
        indices = taken.everyones[0]
        header = torch.tensor([what, epoch, taken.first, len(taken.indices), int(indices.sum()), drawn])
        gathering = Gathering(taken.number, indices, self._schema, self._in_step)
        if self._schema is not None:  # else all ranks skip
            payload = [table for _, table in rows] if what == STEP else []
            gathering.flight = Flight(self._message(header, payload), self._group)
        return gathering

    def _rows(self, losses: torch.Tensor, observations: Mapping[str, Any]) -> list[tuple[str, torch.Tensor]]:
        tables = {"": losses.detach().to(torch.float32)}
        for name in sorted(observations):
            table = torch.as_tensor(observations[name]).detach()
            tables[name] = table.float() if table.dtype == torch.bfloat16 else table  # numpy has no such type
        there = self._device.type != "cpu"  # a copy to the host must be over when it is read
        return [(name, table.to(self._device, non_blocking=there).contiguous()) for name, table in tables.items()]

    def _agree(self, schema: Schema | None) -> Schema | None:
        everyones: list[Any] = [None] * self.ranks
        dist.all_gather_object(everyones, schema, self._group)
        known = {tuple((name, dtype, tuple(shape)) for name, dtype, shape in s) for s in everyones if s is not None}
        if len(known) > 1:
            raise ValueError(f"observations differ between ranks: {_named(everyones)}")
        return known.pop() if known else None

    def _message(self, header: torch.Tensor, payload: list[torch.Tensor]) -> torch.Tensor:
        message = torch.zeros(self._bytes, dtype=torch.uint8, device=self._device)
        message[: 8 * len(HEADER)] = header.to(self._device, non_blocking=True).view(torch.uint8)
        begin = 8 * len(HEADER)
        for table in payload:
            flat = table.reshape(-1).view(torch.uint8)
            message[begin : begin + flat.numel()] = flat
            begin += flat.numel()
        return message


class Gathering:
    """One batch's losses on their way: ``result`` waits for them and puts them in the order of the global batch."""

    def __init__(self, number: int, indices: Int64, schema: Schema | None, in_step: bool) -> None:
        self.number, self._indices, self._schema, self._in_step = number, indices, schema, in_step
        self.flight: Flight | None = None
        self._result: tuple[Int64, Any, dict[str, Any]] | None = None

    def result(self) -> tuple[Int64, Any, dict[str, Any]]:
        """What all ranks saw: indices, losses, observations, without the rows of ranks that skipped.

        Raises:
            RuntimeError: a rank failed or is not there (from torch), or ranks have drawn different batches.
            ValueError: a rank passed other observations than at the first step.
        """
        if self._result is None:
            nothing: tuple[Int64, Any, dict[str, Any]] = self._indices[:0], np.empty(0), {}
            self._result = nothing if self.flight is None else self._received(self.flight.table())
        return self._result

    def _received(self, table: Any) -> tuple[Int64, Any, dict[str, Any]]:
        headers = table[:, : 8 * len(HEADER)].copy().view(np.int64)
        self._check(headers)
        count, ranks = int(headers[0, 3]), len(headers)
        stepped = headers[:, 0] == STEP
        kept = np.flatnonzero(np.tile(stepped, count))
        found, begin = {}, 8 * len(HEADER)
        for name, dtype, shape in self._schema or ():
            size = count * _bytes_of(dtype, shape)
            rows = table[:, begin : begin + size].copy().view(_numpy(dtype)).reshape(ranks, count, *shape)
            found[name] = rows.swapaxes(0, 1).reshape(ranks * count, *shape)[kept]
            begin += size
        return self._indices[kept], found.pop("", np.empty(0, np.float32)), found

    def _check(self, headers: Any) -> None:
        other = np.flatnonzero(headers[:, 0] == OTHER)
        if len(other):
            raise ValueError(
                f"rank {other[0]} passed other observations than at the first step; they must stay the same"
            )
        alike = headers[:, 1 : 6 if self._in_step else 5]
        if (alike != alike[0]).any():
            rank = int((alike != alike[0]).any(1).argmax())
            seen = [
                ", ".join(f"{name} {value}" for name, value in zip(HEADER[1:], headers[r, 1:], strict=True))
                for r in (0, rank)
            ]
            raise RuntimeError(
                f"ranks have drawn differently. Rank 0: {seen[0]}. Rank {rank}: {seen[1]}. Give all ranks the same "
                "seed, settings and store, step once for every batch on each, and pass lag= if loaders draw in threads"
            )


def interleaved(tables: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """Arrays [m, ...] by name from every rank, as [ranks * m, ...]: row k is row k // ranks of rank k mod ranks.

    Raises: ValueError if ranks have other names, dtypes or shapes. Waits for all ranks.
    """
    ranks, names = place_in(group)[1], sorted(tables)
    everyones: list[Any] = [None] * ranks
    dist.all_gather_object(everyones, [(name, tables[name].dtype.str, tables[name].shape) for name in names], group)
    for rank, theirs in enumerate(everyones):
        if theirs != everyones[0]:
            raise ValueError(f"ranks have other rows. Rank 0: {everyones[0]}. Rank {rank}: {theirs}")
    found = {}
    for name in names:
        table = np.ascontiguousarray(tables[name])
        message = torch.from_numpy(table.reshape(-1).view(np.uint8)).to(device_of(group))
        rows = Flight(message, group).table().copy().view(table.dtype).reshape(ranks, *table.shape)
        found[name] = rows.swapaxes(0, 1).reshape(ranks * len(table), *table.shape[1:])
    return found


class Shards:
    """The masses of all ranks' shards, each as of its rank's last step. The shards are contiguous, in rank order.

    Args:
        group: of the ranks. settings: what must be the same on all. tree: of this rank's shard.

    Raises: ValueError if ranks differ in the settings.
    Cost: one all_gather of 24 bytes a rank and step, waited for at the next draw; and one when made, which waits.
    """

    def __init__(self, group: Any, settings: Mapping[str, int], tree: SumTree) -> None:
        self._group, self._tree = group, tree
        self.rank, self.ranks = place_in(group)
        self._device = device_of(group)
        everyones: list[Any] = [None] * self.ranks
        dist.all_gather_object(everyones, (dict(settings), len(tree), tree.total * tree.unit), group)
        for rank, (theirs, _, _) in enumerate(everyones):
            if theirs != everyones[0][0]:
                raise ValueError(f"the samplers of rank 0 and rank {rank} differ: {everyones[0][0]} and {theirs}")
        sizes = [size for _, size, _ in everyones]
        self.whole, self.smallest, self.offset = sum(sizes), min(sizes), sum(sizes[: self.rank])
        self.masses: Float64 = np.array([mass for _, _, mass in everyones])
        self._waiting: list[Flight] = []
        self._failure: ValueError | None = None

    def send(self, batch: int, failure: ValueError | None = None) -> None:
        """Tells the other ranks the mass of this one's shard after a batch of this number. Does not wait.

        failure: what the batch's losses had wrong, which then raises on all ranks.
        """
        mine = np.array([batch, failure is not None, 0], np.int64)
        mine[2:].view(np.float64)[0] = self._tree.total * self._tree.unit
        self._failure = failure or self._failure
        message = torch.from_numpy(mine.view(np.uint8)).to(self._device)
        self._waiting.append(Flight(message, self._group))

    def receive(self) -> None:
        """Waits for what was sent.

        Raises: RuntimeError if a rank is not there, or did not step as often as this one. ValueError if the losses of
            one were refused.
        """
        waiting, self._waiting = self._waiting, []
        failure, self._failure = self._failure, None
        for flight in waiting:
            rows = flight.table().view(np.int64)
            if (rows[:, 0] != rows[0, 0]).any():
                raise RuntimeError(
                    f"ranks have stepped or skipped different batches, {rows[:, 0].tolist()}: call step(losses) or "
                    "skip() once for every batch on each"
                )
            self.masses = rows[:, 2].copy().view(np.float64)
            if rows[:, 1].any():
                ranks = ", ".join(map(str, np.flatnonzero(rows[:, 1])))
                own = "" if failure is None else f": {failure}"
                raise ValueError(f"batch {rows[0, 0]}: the losses of rank {ranks} were refused{own}") from failure

    def share_of_mass(self) -> float:
        """This shard's share of all mass: its own as it is now, the others' as of their last step."""
        masses = self.masses.copy()
        masses[self.rank] = self._tree.total * self._tree.unit
        whole = float(masses.sum())
        return float(masses[self.rank]) / whole if whole > 0 else 0.0


def shard_of(size: int, rank: int | None = None, num_replicas: int | None = None) -> range:
    """Which examples of ``size`` are a rank's shard: contiguous, sizes differing by at most one.

    Args:
        size: of the whole data set, at least the number of ranks. rank, num_replicas: by default of torch's default
            process group, which must exist then.

    Raises: ValueError: fewer examples than ranks, or a rank out of range.
    """
    if (rank is None) != (num_replicas is None):
        raise ValueError("rank and num_replicas: give both or neither")
    if rank is None or num_replicas is None:
        rank, num_replicas = place_in(None)
    if not 0 <= rank < num_replicas:
        raise ValueError(f"rank = {rank}: expected 0 <= rank < num_replicas = {num_replicas}")
    if size < num_replicas:
        raise ValueError(f"size = {size}: expected at least one example for each of {num_replicas} ranks")
    return range(size * rank // num_replicas, size * (rank + 1) // num_replicas)


def device_of(group: Any) -> torch.device:
    """Where a group's collectives need their tensors."""
    if "nccl" in str(dist.get_backend(group)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _numpy(dtype: str) -> Any:
    return torch.empty(0, dtype=getattr(torch, dtype.removeprefix("torch."))).numpy().dtype


def _bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    return int(_numpy(dtype).itemsize * math.prod(shape))


def _named(everyones: list[Any]) -> str:
    def columns(schema: Schema | None) -> str:
        if schema is None:
            return "skipped"
        return ", ".join(f"{name or 'losses'} {dtype} {list(shape)}" for name, dtype, shape in schema)

    return "; ".join(f"rank {rank} {columns(schema)}" for rank, schema in enumerate(everyones))
