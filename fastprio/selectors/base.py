"""The selector protocol: which examples of a forwarded batch to back-propagate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fastprio import _core
from fastprio._arrays import integer
from fastprio._random import Rng
from fastprio._registry import Registry, arguments_of, described, name_of
from fastprio.policies.base import Clock
from fastprio.ranks import place_in
from fastprio.selectors.pool import OnItsWay
from fastprio.selectors.queue import Part, Queue, Selection, apply, length_of
from fastprio.selectors.together import Together

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastprio.selectors.queue import Rows


class Selector:
    """Base of all selectors. Everything stays on the losses' device, and nothing waits for it.

    ``columns`` names what the selector reads of each example in a store (``ScoreStore(columns=selector.columns)``);
    ``batch_size`` is the size of the batches that ``batches`` yields. ``state`` holds tensors and plain values that
    are saved. Every constructor argument is kept as an attribute of the same name.
    """

    name: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {"batch_size": 32}
    """Values for the arguments that have no default, with which tables and checks make one."""
    acts: ClassVar[str] = "backprop"
    """Where the method decides, for the table of methods."""
    forwards: ClassVar[str] = "every batch"
    """Which forward passes it needs beside those of training, for the table of methods."""
    networks: ClassVar[int] = 1
    """How many networks are trained: with more than one, ``score`` returns losses [networks, n]."""

    columns: Mapping[str, str | tuple[str, int]] = {}

    state: dict[str, Any]
    steps: int
    """Batches of the loader seen so far."""
    passes: int
    """How often ``batches`` has come to its end, or was left."""
    pool: int
    """Examples in the loader's batch that is being decided on."""
    weights: torch.Tensor | None
    """float32 [batch_size], those of the batch just yielded; None: all one."""
    _yielded: Part | None
    _clock: Clock

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Gives every selector its own empty ``state``."""
        self = super().__new__(cls)
        self.state, self.weights, self._yielded = {}, None, None
        self.steps = self.passes = self.pool = 0
        return self

    def __init__(self, batch_size: int, seed: int = 0) -> None:
        self.batch_size = integer("batch_size", batch_size, 1)
        self.seed = integer("seed", seed, 0, (1 << 64) - 1)

    def __repr__(self) -> str:
        return described(self)

    # What a method defines.

    def needs_scores(self, clock: Clock) -> bool:
        """Whether this step needs the scoring pass. Decided on the host, from what the host knows."""
        return True

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """Chooses from a batch.

        Args:
            losses: floating [n] (or [networks, n]). indices: int64 [n], the examples; columns: the store's, by name:
                for selectors that compare with what is remembered.
        """
        raise TypeError(f"{type(self).__name__} does not say how it selects: override __call__")

    def observe(self, losses: torch.Tensor, *, clock: Clock) -> None:
        """Told by ``mean``: the training losses [b] of a batch that was yielded without having been scored."""

    def choose(self, batch: Any, rows: Rows | None) -> Any:
        """What of a loader's batch is trained on. rows: device -> positions there; None: all of it."""
        return batch if rows is None else apply(batch, lambda tensor: tensor[rows(tensor.device)])

    @property
    def shared(self) -> float:
        """What several ranks are to decide by together; ``agree`` is told its mean over them, a step late."""
        return 0.0

    def agree(self, mean: float) -> None:
        """Told at every step where there are several ranks: the mean of their ``shared``, the same on all of them."""

    # The loop.

    def batches(
        self,
        loader: Iterable[Any],
        score: Callable[[Any], Any],
        *,
        clock: Clock | None = None,
        columns: Any = None,
        indices: Callable[[Any], Any] | None = None,
        drop_last: bool = False,
        process_group: Any = None,
    ) -> Iterator[Any]:
        """Forwards every batch of a loader, gathers what is chosen, and yields full batches of the same structure.

        ::

            for x, y in selector.batches(loader, score):  # score(batch): its losses [n]
                losses = F.cross_entropy(model(x), y, reduction="none")
                loss = selector.mean(losses)
                ...

        Args:
            loader: yields batches: a tensor, or a tuple, list or dict of tensors with one row for each example. A
                PriorityLoader (any object with ``record``, ``skip`` and ``store``) is told of every batch: its scores,
                or that it was not scored. Its own importance weights are not applied. Another loader that draws from a
                store is told by ``score``.
            score: batch -> losses [n], or (losses, {name: observation [n]}) for a loader whose policy needs more. It is
                called without gradients. The model's mode is not touched: let it call ``model.eval()`` and back where
                there is dropout or batch norm.
            clock: epoch and progress; by default the store's, or else the epoch is how many times ``batches`` was
                gone through before. The selector's own clock counts the batches it has seen as its step.
            columns, indices: for selectors that read columns: those of a store, and batch -> indices int64 [n]. By
                default those of the loader's store, and ``loader.indices``.
            drop_last: leave out last batches that are smaller, as batch norm may need it.
            process_group: where there are several ranks; by default torch's default group, if there is one.

        Yields: batches of ``batch_size`` examples; the last one may be smaller. A fixed number comes at once. What is
            accepted by chance comes one step late, so that no step waits for the device to say how much it is; and so
            does what is chosen on a device from batches on the host.

        With several ranks all of them yield equally many batches: a batch comes when every rank has a full one, which
        is known a step late; in the end, where the last ones may be smaller, as many as the rank with the fewest can
        make, and the rest is dropped. Each has its own random numbers, and its own history. ``score`` is to call the
        model itself, not DDP around it. One collective a step.

        Raises: TypeError, ValueError: batches or losses of another form. RuntimeError: ranks whose loaders differ in
            length.
        """
        tells = all(hasattr(loader, name) for name in ("store", "record", "skip"))
        store = getattr(loader, "store", None) if tells else None
        if store is not None:
            clock = store.clock if clock is None else clock
            columns = store.columns if columns is None else columns
        clock = Clock(self.passes) if clock is None else clock
        rank, ranks = place_in(process_group)
        # Ranks that were given the same seed are to choose by chances of their own.
        seed = self.seed if ranks == 1 else _core.word(self.seed, rank, _core.Purpose.shard, 1, 0)
        together = Together(process_group) if ranks > 1 else None
        queue, made = Queue(self.choose), 0
        try:
            for batch in loader:
                now = Clock(clock.epoch, self.steps, clock.progress)
                queue.push(batch, self._select(loader, store, batch, score, now, seed, columns, indices))
                self.steps += 1
                ready = queue.length // self.batch_size
                if together is not None:
                    found = together.step(made + ready, self.shared)
                    ready = 0 if found is None else found[0] - made
                    if found is not None:
                        self.agree(found[1])
                made += ready
                for _ in range(ready):
                    yield self._show(queue.take(self.batch_size), now)
            queue.settle()
            ready = queue.length // self.batch_size if drop_last else -(-queue.length // self.batch_size)
            if together is not None:
                fewest, mean = together.end(made + ready, self.shared)
                ready = fewest - made
                self.agree(mean)
            for _ in range(ready):
                yield self._show(queue.take(min(self.batch_size, queue.length)), now)
        finally:
            self.passes += 1
            self._yielded = self.weights = None

    def mean(self, losses: torch.Tensor, *, scores: torch.Tensor | None = None) -> torch.Tensor:
        """mean(weight * loss) over the batch just yielded, with the losses' graph.

        Args:
            losses: floating [b] of the training pass.
            scores: [b], for a selector that goes by something else than losses; used for batches that were not scored.

        Raises: RuntimeError where no batch was yielded. TypeError, ValueError: losses of another form.
        """
        part = self._yielded
        if part is None:
            raise RuntimeError("mean: no batch has been yielded; call it within the loop over batches()")
        _check("losses", losses, (part.length,))
        if scores is not None:
            _check("scores", scores, (part.length,))
        if part.unscored:
            self.observe((losses if scores is None else scores).detach(), clock=self._clock)
            part.unscored = False  # once
        if part.weights is None:
            return losses.mean()
        return (losses * part.weights.to(losses.device, non_blocking=True)).mean()

    def _select(
        self,
        loader: Any,
        store: Any,
        batch: Any,
        score: Callable[[Any], Any],
        now: Clock,
        seed: int,
        columns: Any,
        indices: Callable[[Any], Any] | None,
    ) -> Selection | None:
        n = self.pool = length_of(batch)
        given = {} if indices is None else {"indices": indices(batch)}
        if not self.needs_scores(now):
            if store is not None:
                loader.skip(**given)
            return None
        with torch.no_grad():
            found = score(batch)
        losses, observations = found if isinstance(found, tuple) else (found, {})
        _check("score", losses, (n,) if self.networks == 1 else (self.networks, n))
        at = given.get("indices")
        if store is not None:
            at = loader.indices if at is None else at
            loader.record(losses if self.networks == 1 else losses.mean(0), **given, **observations)
        rng = Rng(seed, now.epoch, now.step, "select")
        return self(losses, indices=at, columns=columns, clock=now, rng=rng)

    def _show(self, part: Part, now: Clock) -> Any:
        self._yielded, self.weights, self._clock = part, part.weights, now
        return part.batch

    # Saving, and going on.

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values."""
        return arguments_of(self)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on: ``state`` and the counts, as tensors on the host and plain values.

        Examples that have been chosen and not yet yielded are not part of it: a run that goes on begins with the
        loader's next batch.
        """
        return {
            "selector": name_of(self),
            "config": self.config(),
            "steps": self.steps,
            "passes": self.passes,
            "state": {name: _copied(value) for name, value in self.state.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave. ValueError, and nothing changed, if it is not of a selector like this one."""
        here = self.state_dict()
        if set(state) != set(here):
            raise ValueError(f"state: expected {', '.join(here)}, got {', '.join(map(str, state))}")
        for what in ("selector", "config"):
            if state[what] != here[what]:
                raise ValueError(f"the state's {what} is {state[what]!r}, this one's is {here[what]!r}")
        theirs = state["state"]
        if _kinds(theirs) != _kinds(here["state"]):
            raise ValueError(f"state: expected {_kinds(here['state'])}, got {_kinds(theirs)}")
        steps, passes = integer("steps", state["steps"], 0), integer("passes", state["passes"], 0)
        self.steps, self.passes = steps, passes
        self.state = {name: _copied(value) for name, value in theirs.items()}


_registry: Registry[Selector] = Registry("selector", Selector)
register = _registry.register
"""Class decorator: gives a selector its name."""
find = _registry.find
make = _registry.make
inner_of = _registry.inner
registered = _registry.registered


def _check(what: str, losses: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(losses, torch.Tensor) or not losses.is_floating_point():
        kind = losses.dtype if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise TypeError(f"{what}: expected a floating tensor, one loss for each example of the batch, got {kind}")
    if losses.shape != shape:
        raise ValueError(
            f"{what}: expected shape {list(shape)}, one loss for each example of the batch, got {list(losses.shape)}"
        )


def _copied(value: Any) -> Any:
    value = value.read() if isinstance(value, OnItsWay) else value
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def _kinds(state: Mapping[str, Any]) -> dict[str, str]:
    return {k: f"{v.dtype}, {v.ndim}-d" if isinstance(v, torch.Tensor) else "plain" for k, v in state.items()}
