"""The examples run, and say what they are to say."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def output_of(*command, seconds=300):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("ranks", [2, 4])
def test_ddp_under_torchrun(ranks):
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, EXAMPLES / "ddp.py"]
    said = output_of(*run)
    assert said.count("epoch ") == 3
    assert "all ranks keep the same scores" in said
