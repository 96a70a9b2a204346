"""Real processes that form a gloo group, for the tests of several ranks."""

import datetime
import multiprocessing
import os
import queue
import tempfile
import time
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist


class Numbered(torch.utils.data.Dataset):
    """Every example is its index, and two features."""

    def __init__(self, size):
        self.size = size

    def __getitem__(self, index):
        return index, torch.tensor([index / self.size, 1.0])

    def __len__(self):
        return self.size


@pytest.fixture
def one_thread():
    """Forked processes must not wait for a thread pool that only their parent has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_ranks(ranks, function, *arguments, seconds=120, group_seconds=60, dying=()):
    """[function(rank, *arguments)] of each of so many forked processes; what one raises is raised here.

    dying: ranks that are expected to go without a word; None stands for their results.
    """
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        given = (ranks, os.path.join(folder, "group"), group_seconds, results, function, arguments)
        processes = [context.Process(target=_rank, args=(rank, *given)) for rank in range(ranks)]
        for process in processes:
            process.start()
        found, end = {}, time.monotonic() + seconds
        try:
            while len(found) < ranks - len(dying):
                try:
                    rank, error, value = results.get(timeout=1)
                except queue.Empty:
                    assert time.monotonic() < end, f"only ranks {sorted(found)} of {ranks} were done in {seconds} s"
                    continue
                assert error is None, f"rank {rank}:\n{error}"
                found[rank] = value
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [found.get(rank) for rank in range(ranks)]


def _rank(rank, ranks, path, group_seconds, results, function, arguments):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{path}",
            rank=rank,
            world_size=ranks,
            timeout=datetime.timedelta(seconds=group_seconds),
        )
        value = function(rank, *arguments)
        results.put((rank, None, value))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
    results.close()
    results.join_thread()
    os._exit(0)


def loss_of(indices, step):
    """Losses as a function of example and step, the same whichever rank computes them."""
    indices = np.asarray(indices, np.float64)
    return torch.from_numpy(np.float32((indices * 0.6180339887 + step * 0.4142135) % 1.0 + 0.01))


def interleaved(parts):
    """The global batch of the slices r::R that the ranks have."""
    return [index for together in zip(*parts, strict=True) for index in together]


def state_of(store):
    """Everything in a store but what is saved along with it, as bytes and text."""
    state = store.state_dict()
    arrays = {k: v.numpy().tobytes() for k, v in state.pop("arrays").items() if not k.startswith("kept.")}
    state.pop("kept")
    return arrays, repr(state)
