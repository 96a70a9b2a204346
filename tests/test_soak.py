"""Promise: a run goes on to the bit through kills, saves, resumes and other numbers of ranks. soak.py says how."""

import json

import pytest
import soak


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("minutes", "size", "batch"), [(0.25, 20_000, 256), pytest.param(20, 10_000_000, 65_536, marks=pytest.mark.long)]
)
def test_a_run_survives(minutes, size, batch, tmp_path):
    events = soak.record(minutes, size, batch, tmp_path / "soak.json")
    assert len(json.loads((tmp_path / "soak.json").read_text())["log"]) > 2
    assert events["saves opened and proved"] > 2
    assert events["batches drawn again, alike"] > 10
