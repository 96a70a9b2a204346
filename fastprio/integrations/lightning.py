"""Lightning: the sampler goes in as ``sampler=``; a callback checks it, saves it and logs what it knows.

Works with ``lightning`` and ``pytorch_lightning``, whichever is imported (of both, ``lightning``).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from torch.utils._pytree import tree_leaves

from fastprio._arrays import integer
from fastprio.checkpoint import Checkpoint
from fastprio.ranks import place_in
from fastprio.sampler import PrioritySampler

_NAMES = ("lightning.pytorch", "pytorch_lightning")
_IMPORTED = [name for name in _NAMES if name in sys.modules] or [
    name for name in _NAMES if importlib.util.find_spec(name.partition(".")[0])
]
# A callback has to be of the package that the trainer is of.
Callback: Any = importlib.import_module((_IMPORTED or _NAMES[:1])[0]).Callback


class PriorityCallback(Callback):
    """Keeps a sampler's store and position in Lightning's checkpoints, checks how it is used, and logs ``stats()``.

    ::

        sampler = PrioritySampler(ScoreStore(len(data), epochs=10), batch_size=32 * devices)
        loader = DataLoader(data, batch_size=32, sampler=sampler)   # batch_size= of a process, sampler=, no shuffle
        Trainer(max_epochs=10, callbacks=[PriorityCallback(sampler)]).fit(model, loader)

    and ``training_step`` returns ``sampler.step(losses)``. On several processes the sampler slices by itself.

    A fit with ``ckpt_path`` goes on exactly, with the batches and weights that an uninterrupted one would have had,
    also in the middle of an epoch. (Lightning warns there that the loader is not resumable: it knows no other way than
    the loader's. With ``max_steps`` take a checkpoint of ``every_n_train_steps``: one saved at the end of an epoch that
    the limit has cut off, or ended with, Lightning itself counts wrongly.) Where processes are forked or spawned by
    Lightning, the scores are in them and in the checkpoints, not in the process that called ``fit``.

    Args:
        sampler: a PrioritySampler whose ``batch_size`` is that of all processes.
        log_every: batches between two logs of ``sampler.stats()`` ("fastprio/coverage", ...) to the trainer's loggers;
            None: at every epoch's end. Each is O(size).

    Raises, before the first batch: ValueError for a loader that does not draw from the sampler or has a data set of
        another length, another batch size or a state of its own, and for ``lag`` below what its workers read ahead.
    Raises, after a batch: RuntimeError if ``training_step`` neither stepped nor skipped.
    """

    def __init__(self, sampler: PrioritySampler, *, log_every: int | None = None) -> None:
        if not isinstance(sampler, PrioritySampler):
            raise TypeError(f"sampler: expected a PrioritySampler, got {type(sampler).__name__}")
        self.sampler, self.log_every = sampler, None if log_every is None else integer("log_every", log_every, 1)
        self._trainer: Any = None  # while it fits
        self._ended = False  # whether Lightning has ended the epoch of the newest batch
        self._ahead = 0  # draws that the loader may have read ahead
        self._size, self._limits = 1, (0, 0)  # a loader's batch; batches of an epoch, and between validations

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Names the first epoch: Lightning does so only after workers have been given their first indices."""
        if stage == "fit":
            self._trainer = trainer
            self.sampler.set_epoch(trainer.current_epoch)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lets the trainer go."""
        self._trainer = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The checks: now the loader is what Lightning has made of it, and the process group is there."""
        sampler, store = self.sampler, self.sampler.store
        ranks = place_in(None)[1]
        loaders = [loader for loader in tree_leaves(trainer.train_dataloader) if _draws_from(loader, sampler)]
        if not loaders:
            found = [
                type(getattr(loader, "sampler", loader)).__name__ for loader in tree_leaves(trainer.train_dataloader)
            ]
            raise ValueError(
                f"the train loader's sampler is {', '.join(found)}, not the callback's: pass DataLoader(..., "
                "sampler=sampler) with that one, and no overfit_batches"
            )
        loader = loaders[0]
        if len(loader.dataset) != len(store):
            raise ValueError(f"the store has {len(store)} examples, the train data set {len(loader.dataset)}")
        if hasattr(loader, "state_dict"):
            raise ValueError(
                f"{type(loader).__name__} has a state of its own, loaded by Lightning only in the middle of an epoch: "
                "use torch's DataLoader(..., sampler=sampler), for which this callback does it"
            )
        if sampler.shard == "sharded" and ranks > 1:
            raise ValueError("shard = 'sharded': Lightning saves the state of one rank; use 'replicated'")
        size = loader.batch_size or loader.batch_sampler.batch_size
        if sampler.batch_size is not None:
            if sampler.batch_size % (size * ranks):
                raise ValueError(
                    f"the sampler's batch_size is {sampler.batch_size}: expected that of all processes, "
                    f"{ranks} * {size} = {ranks * size}"
                )
            each = sampler.batch_size // ranks
            sampler.lookahead = -(-loader.num_workers * (loader.prefetch_factor or 0) * size // each)
            sampler._check_scheme()
        self._ahead = loader.num_workers * (loader.prefetch_factor or 0) * size
        self._size, self._limits = size, (trainer.fit_loop.max_batches, trainer.val_check_batch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Notes that an epoch is under way, and where its end is."""
        self._ended = False
        if self.sampler.plan is not None:
            # Lightning takes len(loader) for the epoch's end, where it validates and steps schedulers and optimizer.
            most, between = self._limits
            trainer.fit_loop.max_batches = min(most, -(-self.sampler.planned // self._size))
            if trainer.check_val_every_n_epoch is not None and between is not None:
                trainer.val_check_batch = min(between, trainer.fit_loop.max_batches)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Finds a batch that was not stepped, and logs."""
        left = self.sampler.journal.outstanding
        if left > self._ahead and self.sampler.store.policy.observes:
            raise RuntimeError(
                f"batch {batch_idx} of epoch {trainer.current_epoch} was neither stepped nor skipped ({left} draws are "
                f"outstanding, the loader reads {self._ahead} ahead): call sampler.step(losses) or sampler.skip() in "
                "training_step"
            )
        if self.log_every is not None and (batch_idx + 1) % self.log_every == 0:
            self._log(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Applies what other processes or the accelerator have sent last, which no draw has asked for."""
        if self.sampler.lag is None:
            self.sampler.flush()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Notes that the epoch has ended, before it is saved, and by default logs."""
        self._ended = True
        if self.log_every is None:
            self._log(trainer)

    def _log(self, trainer: Any) -> None:
        if trainer.loggers and trainer.is_global_zero:
            stats = {f"fastprio/{name}": value for name, value in self.sampler.stats().items()}
            for logger in trainer.loggers:
                logger.log_metrics(stats, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The store and where training stands; Lightning puts it into the checkpoint. The same on all ranks."""
        state, trainer = Checkpoint(self.sampler).state_dict(), self._trainer
        if trainer is not None:
            # The epoch may be over for Lightning before all is drawn (limit_train_batches, early stopping). With
            # max_steps it goes on where it was, also if it has called the epoch's end.
            ended = trainer.is_last_batch or (self._ended and trainer.max_steps == -1)
            state["sampler"]["over"] = state["sampler"]["over"] or ended
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``state_dict`` gave. Not when Lightning only tests or validates a checkpoint."""
        if self._trainer is None:
            return
        Checkpoint(self.sampler).load_state_dict(state)
        position = state["sampler"]
        if position["iteration"]:  # said now for workers, as in ``setup``
            self.sampler.set_epoch(position["epoch"] + position["over"])


def _draws_from(loader: Any, sampler: PrioritySampler) -> bool:
    batches = getattr(loader, "batch_sampler", None)
    return getattr(loader, "sampler", None) is sampler or getattr(batches, "sampler", None) is sampler
