"""Promise: however long a run lasts, it needs no more memory. Measured in a process of its own."""

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import in_both

from fastprio import PriorityLoader

PAGE = os.sysconf("SC_PAGE_SIZE")
MOST = 1 << 20  # bytes


def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def growth(cycles, leak):
    """By how many bytes memory has grown over so many cycles of draw, update and state_dict, after a tenth of them.

    Every thousandth cycle saves. leak: bytes that each cycle keeps, for the control.
    """
    loader = PriorityLoader(range(640), 64, seed=1)
    losses, kept, done, first = torch.rand(640), [], 0, None
    with tempfile.TemporaryDirectory() as folder:
        while done < cycles:
            for batch in loader:
                loader.step(losses[batch])
                loader.state_dict()
                if leak:
                    kept.append(np.ones(leak, np.uint8))
                if done % 1000 == 999:
                    loader.store.save(Path(folder, "store"))
                done += 1
                if done == cycles // 10:
                    first = resident()
    return resident() - first


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")
@in_both(5_000, 1_000_000)
def test_memory_stays_as_it_is(count):
    def grown(leak):
        run = subprocess.run(
            [sys.executable, __file__, str(count), str(leak)], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert grown(0) <= MOST
    assert grown(max(1, 4 * MOST // count)) > MOST  # the control


if __name__ == "__main__":
    print(growth(*map(int, sys.argv[1:])))
