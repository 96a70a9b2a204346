"""A month in minutes: one run that is killed, saved, resumed and given other numbers of ranks, all at random.

``python tests/soak.py --minutes 20 --examples 10000000 --out FILE``. The run is cut into lives, each of one rank or of
two, which begin with the last checkpoint and end when one rank is killed, all are, or all are told to stop.
What must hold:

* Every batch of every life is the one that the life before drew there: the same run, to the bit.
* A rank whose partner is killed raises; none hangs.
* Whatever the last checkpoint and the last save of the store are, they open; their trees pass the whole audit, and are
  trees built afresh after a refit.
* Counts add up: as many updates as batches, but for those in flight; each loss is one that its example has had.
"""

import argparse
import collections
import datetime
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from helpers import audit, filled, levels

from fastprio import PriorityLoader, ScoreStore
from fastprio.bench import stamp
from fastprio.policies import LossPower

LAG, SLICES, PATIENCE = 3, 2, 120


class Indices(torch.utils.data.Dataset):
    """Every example is its index; a batch is a tensor of them."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitems__(self, indices):
        return torch.tensor(indices)


def losses_of(indices, epoch):
    """float32, of example and epoch: integers below 2^24, so that they are the same everywhere."""
    return (indices * 7919 + epoch * 104729) % 1_000_003 / np.float32(65536)


def loader_of(size, batch):
    store = ScoreStore(size, LossPower(), epochs=10**6)
    return PriorityLoader(Indices(size), batch, policy=store, seed=1, lag=LAG, collate_fn=same)


def same(rows):
    return rows


def checkpoint(loader, folder, rank):
    """As a training script does it; every rank takes part."""
    state = loader.state_dict()
    if rank == 0:
        torch.save(state, folder / "checkpoint.part")
        os.replace(folder / "checkpoint.part", folder / "checkpoint")


def life(rank, ranks, folder, size, batch, number):
    """Trains from the last save on until it is told to stop, or killed; saves at random, and writes down each batch."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/group{number}",
            rank=rank,
            world_size=ranks,
            timeout=datetime.timedelta(seconds=PATIENCE),
        )
    loader = loader_of(size, batch // ranks)
    if (folder / "checkpoint").exists():
        loader.load_state_dict(torch.load(folder / "checkpoint", weights_only=True))
    plan, journal = random.Random(number), loader.sampler.journal  # all ranks plan alike
    stop_after = plan.randrange(5, 400)
    with open(folder / f"trail{number}.{rank}", "a", buffering=1) as trail:
        steps = 0
        while True:
            for rows in loader:
                epoch, place = loader.sampler.epoch, journal.consumed_batches
                for part in range(SLICES // ranks):
                    mine = rows[part :: SLICES // ranks].numpy().tobytes()
                    which = part if ranks == 1 else rank
                    trail.write(f"{epoch} {place} {which} {hashlib.sha256(mine).hexdigest()[:16]}\n")
                loader.step(torch.from_numpy(np.float32(losses_of(rows.numpy(), epoch))))
                steps += 1
                if plan.random() < 0.05:
                    checkpoint(loader, folder, rank)
                elif plan.random() < 0.05 and rank == 0:
                    loader.store.save(folder / "store")
                if steps == stop_after and number % 3 == 0:
                    checkpoint(loader, folder, rank)
                    if ranks > 1:
                        dist.barrier()
                    os._exit(0)


def lived(number, ranks, folder, size, batch, rng):
    """How a life ended, once it has: "stopped", "one killed" or "all killed"."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=life, args=(rank, ranks, folder, size, batch, number)) for rank in range(ranks)]
    for process in processes:
        process.start()
    end = time.monotonic() + PATIENCE
    if number % 3:
        time.sleep(rng.uniform(0.5, 8))
        victims = processes if number % 3 == 1 else [rng.choice(processes)]
        for process in victims:
            os.kill(process.pid, signal.SIGKILL)
        end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0, end - time.monotonic()))
        assert process.exitcode is not None, f"life {number}: a rank hangs"
    ends = [process.exitcode for process in processes]
    if number % 3 == 0:
        assert ends == [0] * ranks, f"life {number}: {ends}"
        return "stopped"
    survivors = [code for code in ends if code != -signal.SIGKILL]
    assert all(code == 1 for code in survivors), f"life {number}: {ends}: the others were to raise"
    return "all killed" if number % 3 == 1 or ranks == 1 else "one killed"


def compared(number, folder, trail):
    """How many batches of a life had been drawn before, all alike; the others are added to ``trail``."""
    again = 0
    for path in folder.glob(f"trail{number}.*"):
        for line in path.read_text().splitlines():
            *where, found = line.split(" ")
            if len(found) < 16:
                continue  # cut off by a kill
            where = tuple(map(int, where))
            again += where in trail
            assert trail.setdefault(where, found) == found, f"life {number}: another batch at {where}"
        path.unlink()
    return again


def checked(store, batch, batches):
    """Proves what must hold of a store that so many batches were drawn from; its number of updates."""
    tree, steps = store.tree, store.clock.step
    audit(tree)
    tree.refit()
    fresh = filled(tree.priorities)
    assert (tree.total, tree._core.scale) == (fresh.total, fresh._core.scale)
    assert all((mine == its).all() for mine, its in zip(levels(tree), levels(fresh), strict=True))
    assert 0 <= batches - steps <= LAG + 1, (batches, steps)
    seen = np.flatnonzero(store.seen())
    assert seen.size == min(len(store), steps * batch) or store.clock.epoch > 0
    possible = np.zeros(seen.size, bool)
    for epoch in range(store.clock.epoch + 1):
        possible |= store.column("loss")[seen] == np.float32(losses_of(seen, epoch))
    assert possible.all()
    return steps


def drawn(kept, size, batch):
    """How many batches were taken when this was kept."""
    return kept["epoch"] * -(-size // batch) + kept["consumed_batches"]


def soak(minutes, size, batch, seed, say):
    """Lives until the time is over: what happened, name -> how often. AssertionError if a promise was broken."""
    rng, trail, events = random.Random(seed), {}, collections.Counter()
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        number = 0
        while time.monotonic() < end:
            ranks = rng.choice((1, 2))
            how = lived(number, ranks, folder, size, batch, rng)
            again = compared(number, folder, trail)
            if (folder / "checkpoint").exists():
                loader = loader_of(size, batch)
                loader.load_state_dict(torch.load(folder / "checkpoint", weights_only=True))
                events["checkpoints opened and proved"] += 1
                events["updates"] = checked(loader.store, batch, drawn(loader.store.record()[1], size, batch))
            if (folder / "store").exists():
                store = ScoreStore.load(folder / "store")
                events["saves opened and proved"] += 1
                checked(store, batch, drawn(store.record()[1], size, batch))
            events[f"lives, {ranks} ranks, {how}"] += 1
            events["batches drawn again, alike"] += again
            events["batches"] = len(trail) // SLICES
            say(f"life {number}: {ranks} ranks, {how}; {events['updates']} updates, {again} again")
            number += 1
    return dict(sorted(events.items()))


def record(minutes, size, batch, out, seed=0):
    """What happened, as ``soak`` gives it, which is written to the file ``out`` with the log of all lives."""
    log = []

    def say(line):
        log.append(line)
        print(line, flush=True)

    events = soak(minutes, size, batch, seed, say)
    command = f"python tests/soak.py --minutes {minutes:g} --examples {size} --batch {batch}"
    out.write_text(json.dumps({**stamp(command), "events": events, "log": log}, indent=1) + "\n")
    return events


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--examples", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    record(args.minutes, args.examples, args.batch, args.out, args.seed)


if __name__ == "__main__":
    sys.exit(main())
