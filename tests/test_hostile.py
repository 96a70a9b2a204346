"""A file that somebody made to do harm is refused, or is a consistent store: no other error, no memory that it lacks.

What was tried by hand, and what came of it, is in attacks.md. The parser is plain Python, so that there is nothing to
overrun; what is looked for are errors of other kinds, memory, and trees that contradict themselves.
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from helpers import audit, in_both
from test_all_policies import NAMES, new
from test_file import forge, forge_plain, forged, parted, parts

from fastprio import ScoreStore
from fastprio._file import NO_CHECKSUM

FILES = sorted((Path(__file__).parent / "data" / "formats").glob("*/*.fastprio"))
MOST_MEMORY = 16 << 20
VALUES = (
    *(None, True, False, 0, 1, -1, 7, 8, 9, 59, 61, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**40),
    *(0.0, -0.0, 0.5, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
    *("", "nothing", "loss", "uniform", "infobatch", "noise_guard", "float32", "bit", "U8", "F32", "F64", "é\x00"),
    *([], {}, [0], [60], [0, 0], ["float32", 2**40], ["float32", -1], [[]], {"a": 1}),
)


def places(value, path=()):
    """Every place in plain values, as the keys that lead there."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def mutated(value, rng):
    """Plain values, with something in them changed, left out, doubled or exchanged."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        *way, last = rng.choice(list(places(value)) or [()]) or [None]
        if last is None:
            break
        at = value
        for key in way:
            at = at[key]
        match rng.randrange(4):
            case 0:
                at[last] = copy.deepcopy(rng.choice(VALUES))  # which a later change may change
            case 1:
                del at[last]
            case 2 if isinstance(at, dict):
                at[rng.choice(("more", "size", "loss", "priorities"))] = at[last]
            case _:
                other = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
                at[last], at[other] = at[other], at[last]
    return value


def attacked(raw, rng):
    """A file that has been tampered with in one of five ways, with a right checksum."""
    header, body = parted(raw)
    metadata = header["__metadata__"]
    match rng.randrange(5):
        case 0:
            metadata["fastprio"] = json.dumps(mutated(json.loads(metadata["fastprio"]), rng))
        case 1:
            header = {"__metadata__": header.pop("__metadata__"), **mutated(header, rng)}
        case 2:
            body = bytearray(body)
            for _ in range(rng.choice((1, 4, 16))):
                body[rng.randrange(len(body))] = rng.choice((0, 1, 127, 128, 255))
        case 3:
            begin = rng.randrange(len(body))
            body = body[:begin] + rng.randbytes(rng.randrange(40)) + body[begin + rng.randrange(40) :]
        case 4:
            metadata["checksum"] = NO_CHECKSUM
            text = bytearray(json.dumps(header), "ascii")
            for _ in range(rng.choice((1, 4))):
                text[rng.randrange(len(text))] = rng.randrange(256)
            return forged(None, body, bytes(text))
    return forged(header, bytes(body))


def opened(path):
    """The store, or None where it was refused as it is to be: with a ValueError."""
    try:
        return ScoreStore.load(path)
    except ValueError:
        return None


@in_both(100_000, 10_000_000)
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_tampered_with_a_file_is_refused_or_a_consistent_store(count, tmp_path):
    rng, read = random.Random(count), 0
    sources = [path.read_bytes() for path in FILES]
    with open(tmp_path / "hostile", "wb", buffering=0) as file:
        for number in range(count):
            raw = attacked(sources[number % len(sources)], rng)
            os.pwrite(file.fileno(), raw, 0)
            os.truncate(file.fileno(), len(raw))
            store = opened(file.name)
            if store is not None:
                read += 1
                audit(store.tree)
    assert 0.1 < read / count < 0.9  # so that both have been tried


def peak_of_refusing_or_reading(path):
    tracemalloc.start()
    store = opened(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return store, peak


LIES = [
    lambda plain: plain.update(size=2**32),
    lambda plain: plain.update(size=2**31),
    lambda plain: plain["columns"].update(more=["float64", 2**30]),
    lambda plain: plain["columns"].update(more="float64"),
]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("source", FILES, ids=lambda path: path.stem)
def test_a_file_that_says_it_is_large_is_refused_before_anything_of_that_size_is_made(source, lie, tmp_path):
    path = tmp_path / "hostile"
    path.write_bytes(source.read_bytes())
    forge_plain(path, lie)
    store, peak = peak_of_refusing_or_reading(path)
    assert store is None
    assert peak < MOST_MEMORY


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_no_number_that_a_policy_takes_from_a_file_makes_it_large(name, tmp_path):
    path = tmp_path / "hostile"
    new(name, 60).save(path)
    header, body = parts(path)
    plain = json.loads(header["__metadata__"]["fastprio"])
    tried = 0
    for of in ("policy_config", "policy_state", "epochs"):
        for *way, last in places({of: plain[of]}):
            for value in (2**31, 2**40, 1e300):
                lie = at = json.loads(json.dumps(plain))
                for key in way:
                    at = at[key]
                at[last] = value
                header["__metadata__"]["fastprio"] = json.dumps(lie)
                forge(path, header, body)
                assert peak_of_refusing_or_reading(path)[1] < MOST_MEMORY
                tried += 1
    assert tried


@in_both(5_000, 200_000)
def test_no_loop_over_what_a_file_says_leaves_its_arrays(count):
    script = Path(__file__).parent / "within_bounds.py"
    run = subprocess.run([sys.executable, script, str(count)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    assert int(run.stdout.split()[0]) > 30  # loops
