"""Trains on from files whose arrays and numbers are made up, and says which loop was led outside its arrays.

``python tests/within_bounds.py COUNT``: run by test_hostile.py. The loops are not compiled here, because compiled ones
do not check; a loop that runs for ever counts as one that was led astray.
"""

import json
import pathlib
import random
import signal
import sys
import tempfile
import traceback
import warnings

import numba

LOOPS = set()


def uncompiled(**_):
    def keep(function):
        LOOPS.add(function.__code__)
        return function

    return keep


numba.njit = uncompiled  # before fastprio is imported

from test_all_policies import EPOCHS, NAMES, Training, new  # noqa: E402
from test_file import forged, parted  # noqa: E402
from test_hostile import places  # noqa: E402

from fastprio import ScoreStore  # noqa: E402
from fastprio.policies import RePB  # noqa: E402

SIZE = 23
BYTES = (0, 1, 2, 100, 127, 128, 254, 255)
NUMBERS = (-(2**62), -100, -1, 0, 1, 24, 100, 65535, 2**31, 2**40, 2**62)


def trained(store, folder):
    """The file of a store in the middle of its ninth epoch."""
    Training(store).run(9, stop=(8, 1))
    path = folder / "store"
    store.save(path)
    return path.read_bytes()


def altered(raw, rng):
    """With other bytes in some arrays, or another number in what policy or sampler keep, and a right checksum."""
    header, body = parted(raw)
    body, metadata = bytearray(body), header["__metadata__"]
    if rng.random() < 0.25:
        plain = json.loads(metadata["fastprio"])
        part = plain[rng.choice(("policy_state", "clock", "kept"))]
        numbers = [way for way in places(part) if type(value_at(part, way)) in (int, float)]
        if numbers:
            *way, last = rng.choice(numbers)
            value_at(part, way)[last] = rng.choice(NUMBERS)
        metadata["fastprio"] = json.dumps(plain)
        return forged(header, bytes(body))
    arrays = [e["data_offsets"] for name, e in header.items() if name != "__metadata__" and e["shape"] != [0]]
    for _ in range(rng.choice((1, 3, 10))):
        begin, end = rng.choice(arrays)
        at, count = rng.randrange(begin, end), rng.choice((1, 8, end - begin))
        count = min(count, end - at)
        body[at : at + count] = bytes([rng.choice(BYTES)]) * count
    return forged(header, bytes(body))


def value_at(plain, way):
    for key in way:
        plain = plain[key]
    return plain


class Hangs(Exception):
    pass


def ring(*_):
    raise Hangs


def led_astray(path):
    """What a loop was led to, as text; or None."""
    signal.alarm(20)
    try:
        Training(ScoreStore.load(path)).run(EPOCHS, begin=8)
    except Hangs:
        return f"hangs: {traceback.format_exc()[-500:]}"
    except Exception as error:  # an error in plain Python or numpy has touched nothing
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, (IndexError, ZeroDivisionError)) and frames[-1].f_code in LOOPS:
            return f"{type(error).__name__} in {frames[-1].f_code.co_name}: {error}"
    finally:
        signal.alarm(0)
    return None


def main(count):
    rng, found = random.Random(count), set()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        sources = {name: trained(new(name, SIZE), folder) for name in NAMES}
        sources["repb, window 3"] = trained(ScoreStore(SIZE, RePB(0.5, 3)), folder)
        for number in range(count):
            name = list(sources)[number % len(sources)]
            path = folder / "hostile"
            path.write_bytes(altered(sources[name], rng))
            if (what := led_astray(path)) is not None:
                found.add(f"{name}: {what}")
    print(f"{len(LOOPS)} loops, {count} files")
    print("\n".join(sorted(found)))
    return bool(found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(int(sys.argv[1])))
