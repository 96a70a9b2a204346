"""Promise: under Accelerate, on one process or several, the same examples are trained and credited as by hand."""

import collections
import os
import runpy

import pytest
import torch
from loader_helpers import run_but
from rank_helpers import interleaved, loss_of, on_ranks, state_of
from torch.utils.data import BatchSampler, DataLoader, Dataset

pytest.importorskip("accelerate", reason="accelerate is not installed")

from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import AcceleratorState, GradientState

from fastprio import Checkpoint, PriorityBatchSampler, PriorityLoader, PrioritySampler, ScoreStore
from fastprio.integrations.accelerate import prepare

N, BATCH, EPOCHS = 101, 8, 3
EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "examples", "accelerate_digits.py")
WAYS = [("prepare", "own"), ("prepare", "batches"), ("prepare", "singles"), ("plain", "batches"), ("plain", "singles")]
"""By our ``prepare`` or by accelerator.prepare; with a PriorityLoader, a batch sampler or a sampler."""


class Numbers(Dataset):
    def __getitem__(self, index):
        return index

    def __len__(self):
        return N


def accelerator_of(rank=0, ranks=1, **config):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "MASTER_ADDR")
    if ranks > 1:
        os.environ.update(zip(names, (str(rank), str(rank), str(ranks), "1", "127.0.0.1"), strict=True))
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**config))
    assert accelerator.num_processes == ranks
    return accelerator


@pytest.fixture(autouse=True)
def _no_state_is_left():
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def make(accelerator, way, kind, *, workers=0, drop_last=False, **options):
    """(Accelerate's loader, sampler), of BATCH examples a process."""
    store = ScoreStore(N, "loss", epochs=EPOCHS)
    ranks = accelerator.num_processes
    options, more = {"seed": 3, **options}, {"num_workers": workers}
    if kind == "own":
        loader = PriorityLoader(Numbers(), BATCH, policy=store, drop_last=drop_last, **options, **more)
        sampler = loader.sampler
    else:
        if way == "plain":
            options.update(num_replicas=1, rank=0)
        sampler = PrioritySampler(store, batch_size=BATCH * ranks, **options)
        given = {"batch_sampler": PriorityBatchSampler(sampler, BATCH, drop_last)}
        if kind == "singles":
            given = {"sampler": sampler, "batch_size": BATCH, "drop_last": drop_last}
        loader = DataLoader(Numbers(), **given, **more)
    if way == "prepare":
        return prepare(accelerator, loader), sampler
    batches = accelerator.prepare(loader)
    accelerator.register_for_checkpointing(loader if kind == "own" else Checkpoint(sampler))
    return batches, sampler


def train(accelerator, batches, sampler, steps, *, done=0, first=None, save=None, load=None):
    """The steps' (epoch, indices, weights), how many batches were ahead at most, store and model at the end.

    Args:
        done: steps before. first: the first epoch, where the loop says its epochs. save: (step, folder). load: folder.
    """
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))
    if load is not None:
        accelerator.load_state(load)
    trained, ahead, epoch = [], 0, first
    while done + len(trained) < steps:
        if epoch is not None:
            batches.set_epoch(epoch)
            batches.set_epoch(epoch)
            epoch += 1
        for batch in batches:
            assert batch.tolist() == sampler.indices.tolist()
            trained.append((sampler.epoch, batch.tolist(), sampler.weights.tolist()))
            ahead = max(ahead, sampler.journal.outstanding_batches - 1)
            error = (model(batch[:, None] / N).squeeze(1) - 1).square()
            loss = sampler.step(error * 0 + loss_of(batch, done + len(trained)))
            accelerator.backward(loss + error.mean())
            optimizer.step()
            optimizer.zero_grad()
            if save is not None and done + len(trained) == save[0]:
                accelerator.save_state(save[1])
            if done + len(trained) == steps:
                break
    sampler.flush()
    weights = [p.detach().numpy().tobytes() for p in model.parameters()]
    return trained, ahead, state_of(sampler.store), weights


def by_hand(draws, ahead, ranks=1, lag=None, drop_last=False):
    """What the global batches are: a sampler, gone through with so many batches held back, and stepped."""
    store = ScoreStore(N, "loss", epochs=EPOCHS)
    sampler = PrioritySampler(store, draws, batch_size=BATCH * ranks, seed=3, lag=lag)
    trained = []
    for epoch in range(EPOCHS):
        held = collections.deque()
        batches = iter(PriorityBatchSampler(sampler, BATCH * ranks, drop_last))
        while True:
            while len(held) <= ahead and (batch := next(batches, None)) is not None:
                held.append(batch)
            if not held:
                break
            trained.append((epoch, held.popleft(), sampler.weights.tolist()))
            sampler.step(loss_of(trained[-1][1], len(trained)))
    sampler.flush()
    return trained, state_of(store)


# One process.


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize(("workers", "lag"), [(0, None), (0, 1), (2, None), (2, 5)])
@pytest.mark.parametrize(("way", "kind"), [*WAYS, ("plain", "own")])
def test_one_process_trains_and_credits_as_by_hand(way, kind, workers, lag, stateful):
    if stateful and kind == "singles":
        return  # refused, below
    accelerator = accelerator_of(use_stateful_dataloader=stateful)
    batches, sampler = make(accelerator, way, kind, workers=workers, lag=lag)
    trained, ahead, store, _ = train(accelerator, batches, sampler, 3 * 13)
    assert ahead == 2 * workers + 1
    expected, its_store = by_hand(N, ahead, lag=lag)
    assert trained == expected
    assert store == its_store


# Two processes.


def on_each(rank, way, kind, options, config):
    accelerator = accelerator_of(rank, 2, **config)
    batches, sampler = make(accelerator, way, kind, **options)
    given = isinstance(getattr(sampler, "generator", None), torch.Generator)
    each = len(batches)
    return *train(accelerator, batches, sampler, EPOCHS * each), each, given


@pytest.mark.parametrize(
    ("way", "kind", "options", "config"),
    [
        *((way, kind, {}, {}) for way, kind in WAYS),
        ("prepare", "own", {"workers": 2, "lag": 5}, {"use_stateful_dataloader": True}),
        ("prepare", "own", {"drop_last": True}, {"even_batches": False}),
        ("plain", "batches", {"workers": 1, "lag": 3}, {"even_batches": False}),
        ("plain", "batches", {"drop_last": True}, {}),
        ("plain", "singles", {"drop_last": True, "lag": 1}, {"even_batches": False}),
    ],
)
def test_two_processes_together_train_and_credit_the_global_draws(way, kind, options, config):
    results = on_ranks(2, on_each, way, kind, options, config)
    (first, ahead, store, model, each, generator), second = results[0], results[1]
    # Slices of N draws, rounded up to one more; or whole global batches, so that nobody is given other examples.
    draws = N + 1 if way == "prepare" else 7 * 2 * BATCH
    expected, its_store = by_hand(draws, ahead, 2, options.get("lag"), options.get("drop_last", False))
    assert ahead == 2 * options.get("workers", 0) + 1
    assert each == len(second[0]) / EPOCHS == len(expected) / EPOCHS
    for (epoch, mine, _), (other, theirs, _), (its, batch, _) in zip(first, second[0], expected, strict=True):
        assert epoch == other == its
        assert interleaved((mine, theirs)) == batch
    assert [interleaved((a[2], b[2])) for a, b in zip(first, second[0], strict=True)] == [e[2] for e in expected]
    assert store == second[2] == its_store
    assert model == second[3]
    assert generator == (way == "plain")  # Accelerate has put one there; it changes nothing


def refused(rank, what, config):
    accelerator = accelerator_of(rank, 2, **config)
    try:
        what(accelerator)
    except ValueError as error:
        return str(error)
    return None


def sliced_twice(accelerator):
    sampler = PrioritySampler(N, batch_size=2 * BATCH)
    next(iter(accelerator.prepare(DataLoader(Numbers(), batch_sampler=PriorityBatchSampler(sampler, BATCH)))))


def own_sliced_twice(accelerator):
    next(iter(accelerator.prepare(PriorityLoader(Numbers(), BATCH))))


def dealt(accelerator):
    next(iter(make(accelerator, "plain", "batches")[0]))


def dealt_without_a_batch_size(accelerator):
    sampler = PrioritySampler(N, num_replicas=1, rank=0)
    next(iter(accelerator.prepare(DataLoader(Numbers(), BATCH, sampler=sampler))))


def prepared(accelerator):
    prepare(accelerator, PriorityLoader(Numbers(), BATCH))


def prepared_singly(accelerator):
    next(iter(make(accelerator, "prepare", "singles")[0]))


def prepared_dealt(accelerator):
    sampler = PrioritySampler(N, batch_size=2 * BATCH, num_replicas=1, rank=0)
    loader = DataLoader(Numbers(), batch_sampler=PriorityBatchSampler(sampler, BATCH))
    next(iter(prepare(accelerator, loader)))


@pytest.mark.parametrize(
    ("what", "config", "message"),
    [
        (sliced_twice, {}, "deals batches to 2 ranks by itself"),
        (own_sliced_twice, {}, "deals batches to 2 ranks by itself"),
        (dealt_without_a_batch_size, {}, "global batch_size"),
        (dealt, {"split_batches": True}, "split_batches=True"),
        (dealt, {"dispatch_batches": True}, "dispatch_batches=True"),
        (dealt, {"use_stateful_dataloader": True}, "use_stateful_dataloader=True"),
        (prepared_singly, {"use_stateful_dataloader": True}, "use_stateful_dataloader=True"),
        (prepared, {"split_batches": True}, "split_batches=True"),
        (prepared, {"dispatch_batches": True}, "dispatch_batches=True"),
        (prepared_dealt, {}, "no loader that deals"),
    ],
)
def test_what_would_lose_or_mix_up_examples_is_refused_on_every_rank(what, config, message):
    for error in on_ranks(2, refused, what, config):
        assert error is not None
        assert message in error


def gathers(rank):
    accelerator = accelerator_of(rank, 2)
    batches, sampler = make(accelerator, "prepare", "own", num_samples=108)
    mine, gathered = [], []
    for batch in batches:
        mine += batch.tolist()
        sampler.step(torch.ones(len(batch)))
        gathered += accelerator.gather_for_metrics(batch).tolist()
    return mine, gathered


def test_gather_for_metrics_gives_every_draw():
    (first, gathered), (second, also) = on_ranks(2, gathers)
    assert gathered == also
    assert sorted(gathered) == sorted(first + second)
    assert len(gathered) == 108


# Lists that are changed.


def test_batches_may_be_changed_in_place():
    sampler = PrioritySampler(N, batch_size=BATCH)
    for batch in PriorityBatchSampler(sampler, BATCH):
        kept = list(batch)
        batch += [0, 0]
        batch[0] = -1
        assert sampler.indices.tolist() == kept
        sampler.step(loss_of(kept, 0))
    assert sampler.store.all_seen()


@pytest.mark.parametrize("even", [True, False])
def test_fixed_weights_are_dealt_as_accelerate_deals(even):
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1))
    whole = list(PrioritySampler(weights=weights))
    parts = []
    for rank in range(2):
        batches = BatchSampler(PrioritySampler(weights=weights), BATCH, drop_last=False)
        parts.append(list(BatchSamplerShard(batches, 2, rank, even_batches=even)))
    assert [len(part) for part in parts] == ([7, 7] if even else [7, 6])
    together = [index for k in range(7) for part in parts if k < len(part) for index in part[k]]
    assert together[:N] == whole
    assert together[N:] == (whole[: 14 * BATCH - N] if even else [])  # its own way to make ranks equal


# Saving, and going on.


def saved_and_resumed(rank, ranks, way, kind, options, config, at, say, folder):
    """The rest of a run after ``load_state``, beside that of one without interruption."""
    runs = []
    for part in ("whole", "rest"):
        accelerator = accelerator_of(rank, ranks, **config)
        batches, sampler = make(accelerator, way, kind, **options)
        each = len(batches)
        if part == "whole":
            runs.append(train(accelerator, batches, sampler, EPOCHS * each, first=say, save=(at, folder)))
            accelerator.wait_for_everyone()
        else:
            first = None if say is None else at // each  # saved at an epoch's end, it is over
            runs.append(train(accelerator, batches, sampler, EPOCHS * each, done=at, first=first, load=folder))
    (trained, _, store, model), (rest, _, its_store, its_model) = runs
    assert trained[at:] == rest
    assert store == its_store
    assert model == its_model
    assert trained[-1][0] == rest[-1][0] == EPOCHS - 1
    return True


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("kind", "stateful"), [("own", False), ("own", True), ("batches", True), ("singles", False)])
def test_load_state_goes_on_exactly_and_counts_on_by_itself(kind, stateful, workers, tmp_path):
    config = {"use_stateful_dataloader": stateful}
    for at in (1, 6, 12, 13, 14, 20, 38):
        folder = str(tmp_path / str(at))
        saved_and_resumed(0, 1, "prepare", kind, {"workers": workers}, config, at, None, folder)


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize(("way", "kind"), [("prepare", "batches"), ("plain", "batches"), ("plain", "own")])
def test_load_state_goes_on_exactly_where_the_loop_says_its_epochs(way, kind, stateful, tmp_path):
    config = {"use_stateful_dataloader": stateful}
    for at in (1, 12, 13, 20):
        saved_and_resumed(0, 1, way, kind, {"lag": 1}, config, at, 0, str(tmp_path / str(at)))


@pytest.mark.parametrize(
    ("way", "kind", "options", "config", "say"),
    [
        ("prepare", "own", {}, {}, None),
        ("prepare", "own", {"workers": 1, "lag": 3}, {"use_stateful_dataloader": True}, None),
        ("plain", "batches", {}, {}, 0),
    ],
)
def test_load_state_goes_on_exactly_on_two_processes(way, kind, options, config, say, tmp_path):
    for at in (3, 7, 10):
        folder = str(tmp_path / str(at))
        assert on_ranks(2, saved_and_resumed, 2, way, kind, options, config, at, say, folder) == [True, True]


@pytest.mark.parametrize("way", ["prepare", "plain"])
def test_stateful_mode_needs_our_batch_sampler(way):
    accelerator = accelerator_of(use_stateful_dataloader=True)
    with pytest.raises(ValueError, match="use_stateful_dataloader=True"):
        next(iter(make(accelerator, way, "singles")[0]))


@pytest.mark.parametrize("loaded", [False, True])
def test_skipping_the_first_batches_is_refused(loaded, tmp_path):
    for part in ("whole", "rest"):
        accelerator = accelerator_of()
        batches, sampler = make(accelerator, "prepare", "own")
        if part == "whole":
            train(accelerator, batches, sampler, 5, save=(5, str(tmp_path)))
        elif loaded:
            train(accelerator, batches, sampler, 5, done=5, load=str(tmp_path))
    with pytest.raises(ValueError, match=r"skip_first_batches\(..., 5\)"):
        next(iter(skip_first_batches(batches, 5)))
    next(iter(skip_first_batches(batches, 0)))


def test_with_fixed_weights_skipping_draws_the_same_again():
    weights = torch.rand(N, generator=torch.Generator().manual_seed(1))
    accelerator = accelerator_of()
    batches = accelerator.prepare(DataLoader(Numbers(), BATCH, sampler=PrioritySampler(weights=weights)))
    whole = [batch.tolist() for batch in batches]
    batches.set_epoch(0)
    assert [batch.tolist() for batch in skip_first_batches(batches, 5)] == whole[5:]


# What cannot be prepared.


def test_a_loader_without_our_sampler_is_refused():
    with pytest.raises(TypeError, match="expected one with a PrioritySampler, got one with RandomSampler"):
        prepare(accelerator_of(), DataLoader(Numbers(), BATCH, shuffle=True))


def test_a_lag_below_what_is_read_ahead_is_refused_with_the_least():
    accelerator = accelerator_of()
    with pytest.raises(ValueError, match="reads 5 batches ahead, so lag >= 5"):
        make(accelerator, "prepare", "own", workers=2, lag=4)
    assert not accelerator._dataloaders


def test_a_forgotten_step_is_found():
    accelerator = accelerator_of()
    batches, sampler = make(accelerator, "prepare", "batches")
    with pytest.raises(RuntimeError, match="neither stepped nor skipped"):
        run_but(batches, sampler, 4)


def test_preparing_again_changes_nothing():
    accelerator = accelerator_of()
    batches, _ = make(accelerator, "prepare", "own")
    assert accelerator.prepare(batches) is batches
    assert accelerator._dataloaders == [batches]


def example(rank, ranks):
    if ranks > 1:
        accelerator_of(rank, ranks)
    return runpy.run_path(EXAMPLE, run_name="__main__")["accuracy"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_example_learns(ranks):
    accuracies = on_ranks(ranks, example, ranks)
    assert min(accuracies) > 0.9
    assert len(set(accuracies)) == 1
