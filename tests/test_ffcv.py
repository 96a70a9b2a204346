"""Promise: an FFCV loader with PriorityOrder draws by the newest losses, credits them rightly, and never hangs."""

from __future__ import annotations

import gc
import logging
import runpy
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from loader_helpers import Raw, loss_of
from test_lag import oracle

import fastprio
from fastprio import PrioritySampler, ScoreStore
from fastprio._kernels import get_bit, mark
from fastprio.policies.primitives import push

pytest.importorskip("ffcv", reason="ffcv is not installed: pip install '.[ffcv]' (it needs OpenCV and libturbojpeg)")

from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption, epoch_iterator
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import Squeeze, ToTensor
from ffcv.writer import DatasetWriter

from fastprio.integrations import ffcv as integration
from fastprio.integrations.ffcv import PriorityOrder, SampleIndex

# Numba's own, where it frees what FFCV compiled.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <finalize object:pytest.PytestUnraisableExceptionWarning"
)

N, BATCH = 90, 8  # 11 whole batches and one of 2


class Images:
    """Small images whose first two bytes are their row, which is their label too."""

    def __len__(self):
        return N

    def __getitem__(self, row):
        image = np.zeros((4, 4, 3), np.uint8)
        image[0, 0, :2] = divmod(row, 256)
        return image, row


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("ffcv") / "images.beton")
    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    # Its pages are for QUASI_RANDOM and os_cache=False: the smallest that FFCV takes.
    DatasetWriter(path, fields, num_workers=1, page_size=1 << 21).from_indexed_dataset(Images())
    return path


@pytest.fixture(autouse=True)
def own_threads():
    """FFCV sets the number of torch's threads, for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_hang():
    """FFCV waits for ever where its thread has died; this ends the wait."""

    def expired(number, frame):
        raise TimeoutError("a loop over an FFCV loader hangs")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, 30)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def make(path, sampler, *, drop_last=False, images=False, subset=None, batch=BATCH, order=None, **arguments):
    """A loader of (label, index), or with ``images`` of (image, label, index)."""
    pipelines = {
        "image": [SimpleRGBImageDecoder(), ToTensor()] if images else None,
        "label": [IntDecoder(), ToTensor(), Squeeze()] if images else [IntDecoder(), ToTensor()],
        "index": PipelineSpec("label", transforms=[SampleIndex(subset), ToTensor()]),
    }
    return Loader(
        path,
        batch,
        num_workers=1,
        os_cache=arguments.pop("os_cache", True),
        order=order or PriorityOrder(sampler),
        drop_last=drop_last,
        indices=subset,
        pipelines=pipelines,
        **arguments,
    )


def sampler_of(policy="loss", *, n=N, epochs=None, **options):
    return PrioritySampler(ScoreStore(n, policy, epochs=epochs), batch_size=BATCH, **options)


def run(loader, sampler, epochs, stop=None):
    """As ``loader_helpers.run``, of an FFCV loader, whose tensors are overwritten: checks every batch's data."""
    seen = []
    for epoch in range(epochs):
        seen.append([])
        for *_, label, index in loader:
            drawn = sampler.indices
            np.testing.assert_array_equal(index.numpy(), drawn)
            np.testing.assert_array_equal(label.flatten().numpy(), loader.indices[drawn])
            seen[-1].append(drawn.tolist())
            sampler.step(loss_of(drawn, epoch))
            if stop == (epoch, len(seen[-1])):
                break
    return seen


def settled(sampler):
    """How many batches are drawn and not consumed, once FFCV's thread has read as far ahead as it does."""
    before, now = -1, sampler.journal.outstanding
    while before != now:
        time.sleep(0.05)
        before, now = now, sampler.journal.outstanding
    return -(-now // BATCH)


def test_importing_fastprio_does_not_import_ffcv():
    code = "import sys, fastprio, fastprio.integrations; assert not [name for name in sys.modules if 'ffcv' in name]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_trains(capsys):
    runpy.run_path(str(Path(__file__).parent.parent / "examples" / "ffcv_loader.py"), run_name="__main__")
    assert "epoch 2: mean loss 0." in capsys.readouterr().out


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_every_batch_is_what_was_drawn_and_its_losses_are_credited_to_it(beton, os_cache, drop_last):
    """Image, label, index and journal agree, and what the store has learnt is what an oracle has."""
    sampler = sampler_of(epochs=4)
    loader = make(beton, sampler, os_cache=os_cache, drop_last=drop_last, images=True)
    assert loader.traversal_order.live == os_cache
    known = {}
    for epoch in range(4):
        sizes = []
        for number, (image, label, index) in enumerate(loader):
            drawn = sampler.indices
            at = image[:, 0, 0].long()
            assert (at[:, 0] * 256 + at[:, 1]).tolist() == label.tolist() == index.tolist() == drawn.tolist()
            losses = loss_of(label, epoch)
            weights = sampler.weights
            mean = sampler.step(losses, indices=index) if number % 2 else sampler.step(losses)
            assert mean == pytest.approx((weights * losses).mean().item(), rel=1e-5)
            known.update(zip(drawn.tolist(), losses.tolist(), strict=True))
            sizes.append(len(index))
        assert sizes == [BATCH] * 11 + [N % BATCH] * (not drop_last)
        assert len(loader) == len(sizes)
        assert sampler.journal.outstanding == 0
        if epoch == 0 and not drop_last:
            assert sampler.store.all_seen()  # the first epoch covers
    column = sampler.store.column("loss")
    assert known == {index: column[index] for index in np.flatnonzero(sampler.store.seen()).tolist()}


@pytest.mark.parametrize("stop", [None, (0, 5), (1, 11)])
@pytest.mark.parametrize("ahead", [1, 3])
def test_live_draws_are_those_of_the_definition(beton, ahead, stop):
    """With the least lag that there may be: every batch sees the losses of all batches but those in flight."""
    lag = ahead + 1
    sampler = sampler_of(Raw(), cover_first=False, lag=lag)
    assert run(make(beton, sampler, batches_ahead=ahead), sampler, 3, stop) == oracle(lag, 3, loss_of, stop=stop)


@pytest.mark.parametrize("ahead", [1, 2, 3, 5])
def test_ffcv_reads_just_batches_ahead_and_one_more(beton, ahead):
    sampler = sampler_of()
    most = 0
    for label, _ in make(beton, sampler, batches_ahead=ahead):
        most = max(most, settled(sampler) - 1)  # without the one that is being trained on
        sampler.step(loss_of(label.flatten()))
    assert most == sampler.lookahead == ahead + 1


@pytest.mark.parametrize("os_cache", [True, False])
def test_a_lag_below_what_is_drawn_ahead_is_an_error_that_names_the_least(beton, os_cache):
    least = 4 if os_cache else 12
    with pytest.raises(ValueError, match=f"lag = {least - 1}: .* drawn ahead, so lag >= {least}$"):
        make(beton, sampler_of(lag=least - 1), os_cache=os_cache)
    sampler = sampler_of(lag=least)
    assert len(run(make(beton, sampler, os_cache=os_cache), sampler, 1)[0]) == 12


def test_frozen_draws_are_those_of_the_definition(beton, caplog):
    """Without the OS's cache an epoch is drawn by what was known when it began, which is a lag of a whole epoch."""
    sampler = sampler_of(Raw(), cover_first=False)
    with caplog.at_level(logging.WARNING, "fastprio"):
        loader = make(beton, sampler, os_cache=False)
        assert run(loader, sampler, 3, (1, 4)) == oracle(12, 3, loss_of, stop=(1, 4))
    (record,) = caplog.records
    assert "os_cache=False" in record.getMessage()
    assert run(make(beton, other := sampler_of(Raw(), cover_first=False)), other, 3) != oracle(12, 3, loss_of)


def test_making_a_loader_begins_no_epoch(beton):
    sampler = sampler_of("infobatch", epochs=2)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    loader = make(beton, sampler)
    assert torch.equal(state, torch.get_rng_state())
    assert sampler.epoch == sampler.journal.outstanding == 0
    assert sampler.plan is None
    assert len(loader) == 12
    with pytest.raises(TypeError, match="_Length"):
        loader.first_traversal_order[0]


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_plan_makes_an_epoch_shorter_and_len_does_not_change(beton, os_cache, drop_last):
    sampler = sampler_of("infobatch", epochs=10)
    loader = make(beton, sampler, os_cache=os_cache, drop_last=drop_last)
    length = len(loader)
    lengths = [sum(map(len, run(loader, sampler, 1)[0])) for _ in range(3)]
    assert lengths[0] == (88 if drop_last else 90)
    assert 40 < lengths[2] < 75
    planned = sampler.planned
    assert lengths[2] == (planned - planned % BATCH if drop_last else planned)
    assert len(loader) == length


@pytest.mark.parametrize("policy", ["uniform", "weights"])
def test_policies_that_learn_nothing_need_no_steps(beton, policy):
    weights = np.arange(N) % 3
    sampler = (
        sampler_of("uniform") if policy == "uniform" else PrioritySampler(weights=weights, batch_size=BATCH, seed=3)
    )
    loader = make(beton, sampler)
    for _ in range(2):
        rows = [row for _, index in loader for row in index.tolist()]
        assert len(rows) == N
        if policy == "uniform":
            assert sorted(rows) == list(range(N))
        else:
            assert (weights[rows] > 0).all()


def test_fewer_examples_than_a_batch_make_an_empty_epoch(beton):
    sampler = PrioritySampler(N, num_samples=5, batch_size=BATCH)
    with pytest.warns(UserWarning, match="no batch: it has 5 examples, a batch "):
        assert list(make(beton, sampler, drop_last=True)) == []


def test_an_abandoned_iterator_takes_nothing_from_the_next(beton):
    """Its thread is still there. Left at every point, also while it draws; the next epoch is whole each time."""
    sampler = sampler_of()
    loader = make(beton, sampler)
    for epoch in range(30):
        for number, (_, index) in enumerate(loader):
            if number == epoch % 7:
                break
            np.testing.assert_array_equal(index.numpy(), sampler.indices)
            sampler.step(loss_of(index, epoch))
    assert sum(map(len, run(loader, sampler, 1)[0])) == N
    assert sampler.epoch == 30


def test_an_iterator_that_is_not_the_newest_raises_and_does_not_hang(beton):
    sampler = sampler_of()
    loader = make(beton, sampler)
    old = iter(loader)
    next(old)
    new = iter(loader)
    with pytest.raises(RuntimeError, match="a newer iteration of this sampler has begun"):
        list(old)
    assert list(old) == []
    batches = 0
    for _, index in new:
        np.testing.assert_array_equal(index.numpy(), sampler.indices)
        sampler.step(loss_of(index))
        batches += 1
    assert batches == 12


def test_what_a_draw_raises_in_ffcvs_thread_the_loop_raises_and_goes_on_after(beton, capfd):
    class Breaks(Raw):
        broken = False

        def weights(self, columns, indices, probabilities, clock):
            if self.broken:
                raise ZeroDivisionError("of the policy")
            return None

    policy = Breaks()
    sampler = sampler_of(policy)
    loader = make(beton, sampler)
    run(loader, sampler, 1)
    taken = []

    def train():
        for _, index in loader:
            taken.append(index.tolist())
            policy.broken = len(taken) >= 3
            sampler.step(loss_of(index))

    with pytest.raises(ZeroDivisionError, match="of the policy"):
        train()
    assert 3 <= len(taken) <= 3 + sampler.lookahead  # those drawn before come first
    policy.broken = True
    with pytest.raises(ZeroDivisionError):
        next(iter(loader))
    policy.broken = False
    assert sum(map(len, run(loader, sampler, 1)[0])) == N
    gc.collect()
    assert "Exception" not in capfd.readouterr().err


@pytest.mark.parametrize(("lag", "message"), [(None, "neither stepped nor skipped"), (4, "call step")])
def test_a_forgotten_step_is_found(beton, lag, message):
    sampler = sampler_of(lag=lag)
    loader = make(beton, sampler)

    def train():
        for number, (_, index) in enumerate(loader):
            settled(sampler)
            if number != 4:
                sampler.step(loss_of(index))

    with pytest.raises(RuntimeError, match=message):
        train()


def test_a_skipped_batch_is_passed_over(beton):
    sampler = sampler_of()
    for number, (_, index) in enumerate(make(beton, sampler)):
        if number % 3 == 1:
            sampler.skip()
        else:
            sampler.step(loss_of(index))
    assert 0.6 < sampler.store.stats()["coverage"] < 0.7


@pytest.mark.parametrize("os_cache", [True, False])
def test_of_a_subset_the_sampler_counts_positions(beton, os_cache):
    rows = np.array([80, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31])
    sampler = sampler_of(n=11)
    loader = make(beton, sampler, subset=rows, os_cache=os_cache)
    for epoch in range(2):
        for label, index in loader:
            np.testing.assert_array_equal(label.flatten().numpy(), rows[index])
            sampler.step(loss_of(index, epoch), indices=index)
    assert sampler.store.all_seen()


def test_every_rank_reads_its_slice(beton):
    slices = []
    for rank in range(2):
        sampler = PrioritySampler(weights=np.ones(N), batch_size=2 * BATCH, num_replicas=2, rank=rank)
        loader = make(beton, sampler, distributed=True)
        assert len(loader) == 6
        slices.append([index.tolist() for _, index in loader])
    together = [[row for pair in zip(*batch, strict=True) for row in pair] for batch in zip(*slices, strict=True)]
    alone = PrioritySampler(weights=np.ones(N), batch_size=2 * BATCH)
    assert together == list(fastprio.PriorityBatchSampler(alone, 2 * BATCH))


def test_epochs_are_the_samplers_or_what_ffcv_was_told(beton):
    sampler = sampler_of()
    loader = make(beton, sampler)
    found = []
    for said in (None, None, "sampler", None, "loader", None):
        if said == "sampler":
            sampler.set_epoch(7)
        elif said == "loader":
            loader.next_epoch = 20
        run(loader, sampler, 1)
        found.append(sampler.epoch)
    assert found == [0, 1, 7, 8, 20, 21]


def test_a_sampler_without_a_batch_size_takes_the_loaders(beton):
    sampler = PrioritySampler(N)
    loader = make(beton, sampler)
    run(loader, sampler, 2)
    assert sampler.batch_size == BATCH


def test_what_does_not_fit_is_an_error_that_names_the_values(beton):
    with pytest.raises(TypeError, match="expected a PrioritySampler, got int"):
        PriorityOrder(N)
    with pytest.raises(ValueError, match=r"the sampler has 91 examples, .*images.beton has 90$"):
        make(beton, sampler_of(n=91))
    with pytest.raises(ValueError, match=r"the sampler has 90 examples, .* has 90, 3 of them by indices="):
        make(beton, sampler_of(), subset=[1, 2, 3])
    with pytest.raises(ValueError, match=r"indices: in \[1, 90\]: expected rows of .*, in \[0, 90\)"):
        make(beton, sampler_of(n=3), subset=[1, 2, 90])
    with pytest.raises(TypeError, match="expected integers, got dtype bool"):
        Loader(beton, BATCH, num_workers=1, order=PriorityOrder(sampler_of()), indices=np.ones(N, bool))
    with pytest.raises(ValueError, match=r"batch_size = 4 .*global one is 8"):
        make(beton, sampler_of(), batch=4)
    with pytest.raises(ValueError, match="no two alike"):
        SampleIndex([1, 2, 1])
    sampler = sampler_of()
    loader = make(beton, sampler)
    sampler.store.resize(N + 1)
    with pytest.raises(ValueError, match="the sampler has 91 examples"):
        iter(loader)


def test_a_sampler_is_one_loaders_until_that_is_gone(beton):
    sampler = sampler_of()
    loader = make(beton, sampler)
    for order in (PriorityOrder(sampler), loader.traversal_order):
        with pytest.raises(ValueError, match=r"draws for a Loader of .*images.beton already"):
            make(beton, sampler, order=order)
    run(loader, sampler, 1)
    del loader, order
    run(make(beton, sampler), sampler, 1)


def test_a_loader_that_could_not_be_made_does_not_keep_the_sampler(beton):
    sampler = sampler_of()
    order = PriorityOrder(sampler)
    held = []
    try:
        Loader(beton, BATCH, num_workers=1, order=order, pipelines={"label": 3})
    except ValueError as error:
        held.append(error)  # and with it the loader
    assert held
    assert sampler.lookahead is None
    run(make(beton, sampler, order=order), sampler, 1)


# What may be different in another FFCV, each in a way that would train on wrong rows or hang.


def batches_are_copied(monkeypatch):
    pipeline = epoch_iterator.EpochIterator.run_pipeline

    def run_pipeline(self, number, rows, slot, event):
        return pipeline(self, number, rows.copy(), slot, event)

    monkeypatch.setattr(epoch_iterator.EpochIterator, "run_pipeline", run_pipeline)


def memory_is_not_told(monkeypatch):
    pipeline = epoch_iterator.EpochIterator.run_pipeline

    def run_pipeline(self, *arguments):
        told = self.memory_context
        self.memory_context = SimpleNamespace(start_batch=lambda number: None, __exit__=told.__exit__)
        return pipeline(self, *arguments)

    monkeypatch.setattr(epoch_iterator.EpochIterator, "run_pipeline", run_pipeline)


def memory_is_told_too_late(monkeypatch):
    pipeline = epoch_iterator.EpochIterator.run_pipeline

    def run_pipeline(self, number, rows, slot, event):
        told, before = self.memory_context, rows.copy()
        told.start_batch(number)
        self.memory_context = SimpleNamespace(start_batch=lambda number: None)
        found = pipeline(self, number, before, slot, event)
        self.memory_context = told
        return found

    monkeypatch.setattr(epoch_iterator.EpochIterator, "run_pipeline", run_pipeline)


def loader_has_other_attributes(monkeypatch):
    plain = Loader.__iter__
    monkeypatch.setattr(Loader, "__iter__", lambda self: (self.fname, plain(self))[1])


def errors_are_hidden(monkeypatch):
    def unchecked(self):
        result = self.output_queue.get()
        if not isinstance(result, tuple):
            raise StopIteration
        return result[1]

    monkeypatch.setattr(epoch_iterator.EpochIterator, "__next__", unchecked)


def thread_dies(monkeypatch):
    pipeline = epoch_iterator.EpochIterator.run_pipeline

    def run_pipeline(self, *arguments):
        try:
            return pipeline(self, *arguments)
        except StopIteration:
            raise SystemExit from None  # ends a thread without a word

    monkeypatch.setattr(epoch_iterator.EpochIterator, "run_pipeline", run_pipeline)


CHANGES = [
    batches_are_copied,
    memory_is_not_told,
    memory_is_told_too_late,
    loader_has_other_attributes,
    errors_are_hidden,
]


@pytest.mark.parametrize("change", CHANGES)
def test_another_ffcv_is_noticed_and_draws_whole_epochs(beton, monkeypatch, change):
    change(monkeypatch)
    sampler = sampler_of(Raw(), cover_first=False)
    with pytest.warns(UserWarning, match="each epoch is drawn whole") as caught:
        loader = make(beton, sampler)
    assert caught[0].filename == __file__  # it points at who makes the loader
    assert not loader.traversal_order.live
    assert run(loader, sampler, 2) == oracle(12, 2, loss_of)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_ffcv_that_would_hang_is_noticed(beton, monkeypatch):
    monkeypatch.setattr(integration, "PATIENCE", 0.3)
    thread_dies(monkeypatch)
    with pytest.warns(UserWarning, match="no batch came"):
        make(beton, sampler_of())


def test_this_ffcv_is_tried_out_without_a_warning_or_a_change(beton):
    plain = make(beton, None, order=OrderOption.SEQUENTIAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = make(beton, sampler_of())
    assert loader.next_epoch == plain.next_epoch == 0
    assert vars(loader).keys() == vars(plain).keys()
    assert [label.flatten().tolist() for label, _ in plain] == [
        list(range(first, min(first + BATCH, N))) for first in range(0, N, BATCH)
    ]


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_a_run_goes_on_where_a_checkpoint_was_taken(beton, os_cache, drop_last):
    """With a lag, so that how far FFCV's thread has read, which varies, makes no difference."""
    lag = 4 if os_cache else 12
    settings = {"epochs": 4, "lag": lag, "seed": 6}
    whole = sampler_of(**settings)
    expected = run(make(beton, whole, os_cache=os_cache, drop_last=drop_last), whole, 4)
    for stop in (0, 1), (0, 7), (1, 4), (2, 10):
        sampler = sampler_of(**settings)
        begun = make(beton, sampler, os_cache=os_cache, drop_last=drop_last)
        run_until(begun, sampler, stop)
        state = fastprio.Checkpoint(sampler).state_dict()
        again = sampler_of(**settings)
        fastprio.Checkpoint(again).load_state_dict(state)
        rest = run_on(make(beton, again, os_cache=os_cache, drop_last=drop_last), again, stop[0], 4)
        assert rest == [expected[stop[0]][stop[1] :], *expected[stop[0] + 1 :]]
        again.flush()
        whole.flush()
        assert again.store.priorities.tobytes() == whole.store.priorities.tobytes()


def run_until(loader, sampler, stop):
    for epoch in range(stop[0] + 1):
        for number, _ in enumerate(loader):
            sampler.step(loss_of(sampler.indices, epoch))
            if (epoch, number + 1) == stop:
                return


def run_on(loader, sampler, first, epochs):
    seen = []
    for epoch in range(first, epochs):
        seen.append([])
        for *_, index in loader:
            assert index.tolist() == sampler.indices.tolist()
            seen[-1].append(index.tolist())
            sampler.step(loss_of(sampler.indices, epoch))
    return seen


def test_kernels_are_compiled_as_before_after_ffcv_has_changed_a_type_of_numbas(beton):
    """FFCV makes Numba's type of uint8 arrays read-only in place."""
    bits, counts, at, ring = np.zeros(4, np.uint8), np.zeros(20, np.uint8), np.array([9]), np.zeros((20, 2))
    mark(bits, bits, at)
    push(ring, counts, at, at)
    run(make(beton, sampler := sampler_of()), sampler, 1)

    @numba.njit  # uncached, so that it is compiled here
    def policys(bits, at, ring, counts):
        mark(bits, bits, at)
        push(ring, counts, at, at)
        return get_bit(bits, at[0])

    assert policys(np.zeros(4, np.uint8), at, ring, counts)
    assert counts[9] == 2
