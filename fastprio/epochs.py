"""A sampler's epochs, one after another: how one begins, and how one goes on that was saved."""

from __future__ import annotations

import logging
import threading
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fastprio import _core, resume
from fastprio._random import Rng
from fastprio.epoch import Epoch
from fastprio.feedback import Feedback
from fastprio.journal import Journal, Share
from fastprio.order import Cover, PlannedEpoch, scored
from fastprio.ranks import Exchange, Shards, place_in

if TYPE_CHECKING:
    from fastprio.policies.base import Plan
    from fastprio.store import ScoreStore

log = logging.getLogger("fastprio")


class Settings(NamedTuple):
    """What epochs are drawn by, as it is when one begins. Of arguments of PrioritySampler unless said otherwise.

    draws: of a rank in an epoch without a plan. whole: examples of all shards, where that is known. each: of what the
    number of draws of all ranks that draw alike is a multiple. moves_torch: whether to take one of torch's numbers.
    reads_ahead: whether the loader has workers.
    """

    seed: int
    batch_size: int | None
    scheme: str
    lag: int | None
    lookahead: int | None
    num_samples: int | None
    cover_first: bool
    drop_last: bool
    sharded: bool
    group: Any
    share: Share
    draws: int
    whole: int | None
    each: int
    moves_torch: bool
    reads_ahead: bool

    @property
    def among_alike(self) -> Share:
        """Which draws are this rank's among those of the ranks that draw alike: with shards, all."""
        return Share() if self.sharded else self.share

    @property
    def total(self) -> int:
        """Draws of all ranks that draw alike, in an epoch without a plan."""
        return self.draws if self.sharded or self.share.dealt else self.draws * self.share.ranks

    def to_compare(self) -> dict[str, Any]:
        """What must be the same when an epoch goes on."""
        alike: dict[str, Any] = {
            "batch_size": self.batch_size,
            "scheme": self.scheme,
            "num_samples": self.num_samples,
            "shard": "sharded" if self.sharded else "replicated",
        }
        if self.sharded:
            alike["num_replicas"], alike["rank"] = self.share.ranks, self.share.rank
        return alike


class Epochs:
    """The epochs of one sampler.

    Args:
        store: drawn from. journal, feedback: the sampler's.

    Attributes: number: of the epoch under way, or the first. said: the next one's, if ``set_epoch`` has said it.
    """

    def __init__(self, store: ScoreStore, journal: Journal, feedback: Feedback) -> None:
        self._store, self._journal, self._feedback = store, journal, feedback
        self._cover = Cover(store)
        self.number = 0
        self.said: int | None = None
        self.under_way: Epoch | None = None
        self._iteration = 0  # how many have begun
        self._was_idle = False
        self._loaded: dict[str, Any] | None = None  # a state, until the next iteration begins
        self._iterators = 0
        self._settings: Settings | None = None
        self._warned = False

    @property
    def was_loaded(self) -> bool:
        """Whether a state was loaded and not taken up yet."""
        return self._loaded is not None

    @property
    def begun(self) -> bool:
        """Whether any epoch has begun, here or before the state that was loaded."""
        return self._iteration > 0

    def iterator(self) -> int:
        """The number of a new iterator, since a state was loaded; ``begin`` is given it when that is drawn from."""
        self._iterators += 1
        return self._iterators

    def begin(self, settings: Settings, iterator: int) -> Epoch:
        """The next epoch, or the one that a state was loaded of. The caller holds the store's lock."""
        self._connect(settings)
        goes_on = False
        if self._loaded is not None:
            goes_on = self._go_on(self._loaded, settings, iterator)
        elif self._store.kept is not None:
            self._feedback.waiting.clear()  # a store was loaded alone: what waits is of before
        self._loaded, self._settings = None, settings
        self._store.keep(self._record)  # what was loaded has been taken up, or is not wanted
        if not goes_on:
            self._begin_new(settings)
        assert self.under_way is not None
        return self.under_way

    def _connect(self, now: Settings) -> None:
        """Finds the ranks that losses are exchanged with."""
        exchange, self._feedback.exchange = self._feedback.exchange, None
        if now.share.ranks > 1 and not now.sharded and self._store.policy.observes:
            assert now.batch_size is not None
            with_whom = now.group, now.batch_size // now.share.ranks, now.lag is None
            same = exchange is not None and exchange.with_whom == with_whom
            self._feedback.exchange = exchange if same else Exchange(*with_whom)

    def _begin_new(self, now: Settings) -> None:
        store, policy, last = self._store, self._store.policy, self.under_way
        self._warn_if_unscored(last)
        samples = now.num_samples or len(store)
        if now.among_alike.ranks > 1 and now.scheme == "epoch" and now.total > samples:
            raise ValueError(f"num_samples = {samples} does not divide by {now.share.ranks} ranks: pass drop_last=True")
        if now.moves_torch:
            # RandomSampler takes one number here; doing the same keeps augmentation equal between the two.
            torch.empty((), dtype=torch.int64).random_()
        number = self.said if self.said is not None else self.number + (last is not None)
        self._feedback.begin_epoch(number, _most_left(now))
        unconsumed = self._journal.oldest()
        idle = last is not None and not self._journal.consumed_batches
        if unconsumed is not None and unconsumed.cover is not None and not (idle and self._was_idle):
            # A loop that broke off, or only looked at a batch: covering goes on after what was consumed, however far
            # the loader had read ahead. But not twice in a row without progress, or one batch could block it for ever.
            self._cover.go_back(unconsumed.cover)
        self._was_idle = idle
        if last is not None:
            last.over = True
        self._journal.begin_epoch(now.batch_size, now.share.ranks, _in_flight(now))
        seed = store.seed = _seed(now)
        store.begin_epoch(number)
        if store.tree.refit_gain(least=8):
            store.tree.refit()
        plan = policy.plan(store, store.clock, Rng(seed, number, 0, "plan"))
        planned, total = None, now.total
        if plan is not None:
            planned = PlannedEpoch(plan, len(store), seed, number)
            total = self._planned_total(plan, planned.chosen, now)
        elif policy.observes:
            # Without replacement everything comes once anyway, and what was covered would come twice.
            self._cover.begin_epoch(seed, now.cover_first and now.scheme != "epoch")
        shards = self._meet(now, number)  # now that priorities are what they are to be
        self.number, self.said = number, None  # an epoch whose plan fails has not been
        self._iteration += 1
        self.under_way = self._epoch(number, seed, total, planned, shards, now)

    def _warn_if_unscored(self, last: Epoch | None) -> None:
        """Once: losses that the last plan asked for have not come."""
        if self._warned or last is None or not last.finished or last.planned is None or self._store.was_scored:
            return  # one that was broken off has no end
        wanted = int(np.count_nonzero(scored(last.planned.plan, len(self._store)))) if last.planned.plan.score else 0
        if wanted:
            self._warned = True
            warnings.warn(
                f"epoch {last.number}: policy {self._store.policy.name!r} asked for the losses of {wanted} examples at "
                "its end, and none came: call loader.score(model, loss_fn) after every epoch",
                stacklevel=2,
            )

    def _planned_total(self, plan: Plan, chosen: int, now: Settings) -> int:
        if now.sharded:
            if plan.codes is None:
                return now.draws
            raise ValueError(
                f"shard = 'sharded': policy {self._store.policy.name!r} plans epochs of other lengths on every rank; "
                "use 'replicated'"
            )
        total = chosen
        if now.num_samples is not None:  # a plan without codes has no end of its own
            total = now.num_samples if plan.codes is None else min(total, now.num_samples)
        return (total // now.each if now.drop_last else -(-total // now.each)) * now.each

    def _meet(self, now: Settings, number: int) -> Shards | None:
        """The other ranks' shards, which all ranks meet for at an epoch's begin."""
        self._feedback.shards = None
        if not now.sharded or place_in(now.group)[1] == 1:
            return None
        alike = {"seed": now.seed, "epoch": number, "batch_size": now.batch_size or 0, "draws": now.draws}
        shards = Shards(now.group, alike, self._store.tree)
        if now.whole not in (None, shards.whole):
            raise ValueError(f"the ranks' shards have {shards.whole} examples, the data set {now.whole}")
        if now.scheme == "epoch" and now.draws > shards.smallest:
            raise ValueError(
                f"num_samples = {now.num_samples or shards.whole} on {shards.ranks} ranks: {now.draws} draws each "
                f"without replacement, and the smallest shard has {shards.smallest} examples; pass drop_last=True or "
                "fewer"
            )
        self._feedback.shards = shards
        return shards

    def _epoch(
        self, number: int, seed: int, total: int, planned: PlannedEpoch | None, shards: Shards | None, now: Settings
    ) -> Epoch:
        batch = now.batch_size
        return Epoch(
            self._store,
            self._journal,
            self._feedback,
            self._cover,
            planned,
            number=number,
            seed=seed,
            total=total,
            scheme=now.scheme,
            batch_size=batch // now.share.ranks if now.sharded and batch is not None else batch,
            lag=now.lag,
            share=now.among_alike,
            shards=shards,
        )

    # Saving, and going on.

    def state(self, seed: int) -> dict[str, Any]:
        """Where the loader stands. See ``PrioritySampler.state_dict``."""
        if self._loaded is not None:
            return {"format": resume.FORMAT, **self._loaded}
        epoch = self.under_way
        self._journal.mark(0 if epoch is None else epoch.position)
        if epoch is None:
            return self._state(seed, 0, over=False, replay=True)
        over = epoch.exhausted or epoch.position >= epoch.total
        return self._state(seed, epoch.position, over=over, replay=True)

    def consumed_state(self, seed: int, over: bool | None, yielded: int | None) -> dict[str, Any]:
        """Where training stands. See ``PrioritySampler.consumed_state``."""
        epoch, oldest = self.under_way, self._journal.oldest()
        if self._loaded is not None or epoch is None:
            return self.state(seed)
        position = epoch.position
        if not self._store.policy.observes and not self._journal.consumed_batches:
            position = self._never_stepped(epoch, yielded)
        elif oldest is not None:
            self._journal.check_forgotten()
            position = oldest.first + oldest.consumed * oldest.share.ranks
        elif epoch.again:
            position = epoch.again[0].first
        if over is None:
            over = position >= epoch.total or (epoch.exhausted and oldest is None)
        return self._state(seed, position, over=over, replay=False)

    def _never_stepped(self, epoch: Epoch, yielded: int | None) -> int:
        """Where a loop stands that need not step, because nothing is learnt."""
        assert self._settings is not None
        if yielded is not None and epoch.batch_size is not None:
            return min(epoch.begun_at + yielded * epoch.batch_size, epoch.total)
        if self._settings.reads_ahead or self._journal.issuer not in (0, threading.get_ident()):
            raise ValueError(
                "nothing was stepped in this epoch and its loader reads ahead, so where training stands is not known: "
                "call step(losses) or skip() once for every batch, or use PriorityLoader"
            )
        return epoch.position

    def _state(self, seed: int, position: int, over: bool, replay: bool) -> dict[str, Any]:
        return {
            "format": resume.FORMAT,
            "seed": seed,
            "iteration": self._iteration,
            "epoch": self.number,
            "said": self.said,
            "position": position,
            "over": over,
            "replay": replay,
        }

    def load(self, state: dict[str, Any]) -> None:
        """The next epoch is the rest of the one that this state is of. What was under way here is forgotten."""
        if self.under_way is not None:
            self.under_way.over, self.under_way = True, None
        self._journal.begin_epoch(None, 1)
        self._feedback.waiting.clear()
        self._cover, self._was_idle, self._iteration = Cover(self._store), False, state["iteration"]
        self._loaded, self.number, self._iterators = state, state["epoch"], 0

    def claim(self) -> None:
        """What is saved with the store from now on is this sampler's, also if another one draws from it."""
        if self._loaded is None:
            self._store.keep(self._record)

    def _record(self) -> resume.Record | None:
        """What is saved with the store."""
        if self.under_way is None or self._settings is None:
            return None
        counts = {"iteration": self._iteration, "was_idle": self._was_idle}
        alike = {**self._settings.to_compare(), "each": self._settings.each}
        return resume.pack(self.under_way, self._journal, self._feedback, self._cover, alike, counts)

    def _go_on(self, state: dict[str, Any], now: Settings, iterator: int) -> bool:
        """Puts back the epoch that was under way, with what is to be issued again. False if a new one is to begin."""
        said, pending = self.said, state["said"]
        following = said if said is not None else pending
        # A loader that had come to the end makes a second iterator for a new epoch. One that had only drawn everything
        # goes on with the first, which is then empty. A loop says by ``set_epoch`` whether it is still in that epoch.
        over = state["over"] and (iterator > 1 if state["replay"] else said != state["epoch"])
        if self._store.kept is None:
            return self._go_on_alone(state, following, over, now)
        saved = resume.unpack(self._store.kept, len(self._store))
        for name, value in now.to_compare().items():
            if saved.settings.get(name) != value:
                raise ValueError(f"the state is of {name} = {saved.settings.get(name)!r}, this sampler has {value!r}")
        if state["iteration"] not in (saved.iteration, saved.iteration - 1):
            raise ValueError(
                f"the loader's state is of iteration {state['iteration']}, the store's of {saved.iteration}: they were "
                "not saved at the same moment"
            )
        # A snapshot from before an epoch's first draw is of the epoch before.
        before = state["iteration"] == saved.iteration - 1
        position = 0 if before else state["position"]
        # In the middle of an epoch a name does not end it: frameworks name epochs early, or count from 0 again. Where
        # nothing is left of it, it does, but for a loader's first iterator (see above).
        left = state["replay"] or position < saved.total
        over = not before and (over or (not left and said not in (None, saved.epoch)))
        again = resume.to_issue_again(saved, position, state["replay"], now.among_alike, self._journal.depth)
        shards = None if over else self._meet(now, self.number)
        self._journal.begin_epoch(now.batch_size, now.share.ranks, _in_flight(now))
        self._feedback.begin_epoch(saved.epoch, _most_left(now))
        self._feedback.restore(saved.updates, saved.batches)
        self._cover.restore(*saved.cover)
        self._was_idle, self._iteration, self.number = saved.was_idle, saved.iteration, saved.epoch
        planned = None
        if saved.plan is not None:
            planned = PlannedEpoch(saved.plan, len(self._store), self._store.seed, saved.epoch)
            planned.at = saved.plan_at
        # Without a plan, of as many ranks as there are now.
        total = saved.total if planned is not None or saved.settings.get("each") == now.each else now.total
        epoch = self._epoch(saved.epoch, self._store.seed, total, planned, shards, now)
        epoch.drawn, epoch.batches = saved.drawn, saved.batches
        epoch.begun_at = position
        self.under_way = epoch
        passed = [e for e in saved.entries if e.end <= position and e.consumed < len(e.indices)]
        self._journal.consumed_batches = saved.consumed_batches + len(passed)  # their losses will not come
        if over:
            for draws in again:
                self._journal.append(draws)
            self.said = following
            return False
        if said not in (None, saved.epoch):
            log.warning(
                "set_epoch(%s) is passed over: a state of epoch %d was loaded, which goes on", said, saved.epoch
            )
        self.said = pending if said is None else None
        epoch.again.extend(again)
        self._journal.go_on_from(position if state["replay"] else None)
        return True

    def _go_on_alone(self, state: dict[str, Any], said: int | None, over: bool, now: Settings) -> bool:
        """The same without a journal, where nothing is learnt, and a draw is a function of its number."""
        if state["iteration"] and self._store.policy.observes:
            raise ValueError(
                "the state of the store that was saved at the same moment has not been loaded: its journal is needed "
                "to go on exactly (store.load_state_dict, or a sampler made with the store that was loaded)"
            )
        if state["iteration"] == 0 or over:
            following = state["epoch"] + (state["iteration"] > 0)
            self.said = following if said is None else said
            self._iteration = state["iteration"]
            return False
        self.said, self._iteration = state["epoch"], state["iteration"] - 1
        self._begin_new(now)
        assert self.under_way is not None
        self.under_way.go_to(state["position"])
        self.under_way.begun_at = state["position"]
        return True


def _seed(now: Settings) -> int:
    """Of the draws: with shards, each rank's own."""
    if not now.sharded or now.share.ranks == 1:
        return now.seed
    return _core.word(now.seed, now.share.rank, _core.Purpose.shard, 0, 0)


def _most_left(now: Settings) -> int | None:
    """How many draws a step may leave outstanding, where that is known."""
    if now.lookahead is None or now.batch_size is None:
        return None
    return now.lookahead * (now.batch_size // now.share.ranks)


def _in_flight(now: Settings) -> int:
    return (max(now.lag or 0, now.lookahead or 0) + 1) * (now.batch_size or 0)
