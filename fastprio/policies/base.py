"""The policy protocol: how what was observed of examples becomes what is drawn next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastprio._registry import Registry, arguments_of, described
from fastprio.policies.observations import KNOWN

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastprio._arrays import Float32, Float64, Int64, Uint8
    from fastprio._random import Rng
    from fastprio.store import ScoreStore

OUT, TRAIN, TRAIN_RESCALED, SCORE = 0, 1, 2, 3
"""A plan's codes: left out; trained on; trained on in place of others; forwarded only, for its loss."""

Columns = dict[str, Any]


@dataclass
class Clock:
    """When something happens. epoch and step (updates the store has taken) count from 0; progress is in [0, 1].

    progress is the share of training that is over; it stays 0 where the number of epochs is not known.
    """

    epoch: int = 0
    step: int = 0
    progress: float = 0.0


class Observation:
    """What was seen of a batch's rows: ``loss`` float32 [n], ``origin``, and what else was passed, by name.

    origin is "train", "score" (a forward pass without training) or "reference" (another model's losses).
    """

    __slots__ = ("loss", "origin", "others")

    def __init__(self, loss: Float32, origin: str, others: dict[str, Any]) -> None:
        self.loss, self.origin, self.others = loss, origin, others

    def __getattr__(self, name: str) -> Any:
        try:
            return self.others[name]
        except KeyError:
            raise AttributeError(f"the observation has no {name!r}; pass it to step() or update()") from None


@dataclass
class Plan:
    """What an epoch consists of: every example with a code of weight above zero, once, in keyed random order.

    Args:
        codes: uint8 [size], a code an example; None: all TRAIN.
        weights: the weight that the code multiplies the loss with; zero: not drawn.
        score: codes of the examples whose losses the policy wants at the epoch's end from a pass without training.
        info: what the training loop may want to know, such as {"lr_scale": 1.3} or {"round_over": True}.
    """

    codes: Uint8 | None = None
    weights: tuple[float, ...] = (0.0, 1.0, 1.0, 0.0)
    score: tuple[int, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)


class Policy:
    """Base of all policies. Override what the method needs; every default does nothing.

    ``columns`` names what the store keeps of each example: name -> a numpy dtype name, ("dtype", width), or "bit"
    (packed, eight to a byte). ``state`` holds small arrays and scalars that are saved with the store. Every
    constructor argument is kept as an attribute of the same name, so that a saved store can make its policy again.
    """

    name: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {}
    """Values for arguments, those without a default among them, with which tables and checks make one."""
    acts: ClassVar[str] = ""
    """Where the method decides, for the table of methods: "epoch" (its plan), "draw", "weight", or several."""
    forwards: ClassVar[str] = "none"
    """Which forward passes it needs beside those of training, for the table of methods."""
    scheme: ClassVar[str | None] = None
    """The scheme of draws that a sampler takes where none is given to it and it has a batch size; None: its own."""

    columns: Mapping[str, str | tuple[str, int]] = {}
    requires: tuple[str, ...] = ()
    """Names of observations that step() and update() must be given beside the loss."""
    needs_epochs: bool = False
    """Whether ``progress`` is needed, so that a store without ``epochs=`` is an error."""
    least_loss: float = -np.inf
    """Losses below this are refused (a reference model's excepted)."""
    infallible: bool = False
    """Promises that ``observe`` never raises on what has passed ``check``, and returns valid float32 priorities. The
    store then spares the copies from which it would undo a failed call. It counts in the class that defines
    ``observe``, not in one derived from it. (An interrupt may leave columns a batch newer than priorities.)"""

    shardable: bool = True
    """Whether each rank may keep a store of its own shard: not where plans leave examples out, nor where the policy's
    law is of all examples together."""

    state: dict[str, Any]
    _owner: Any  # the mark of the store that it learns for

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Gives every policy its own empty ``state``, whether or not its constructor calls this one."""
        self = super().__new__(cls)
        self.state, self._owner = {}, None
        return self

    def __init__(self) -> None:
        """Without arguments, where a derived class does not say which it takes."""

    def __repr__(self) -> str:
        return described(self)

    @property
    def observes(self) -> bool:
        """Whether the policy learns from losses at all."""
        return type(self).observe is not Policy.observe

    @property
    def needs_unbiased(self) -> bool:
        """Whether its weights need draws that are independent of each other's outcome (no "unique", no "epoch")."""
        return False

    @property
    def own_draws(self) -> bool:
        """Whether ``draw`` draws, in its own way, and not the tree by the sampler's scheme."""
        return type(self).draw is not Policy.draw

    @property
    def by_batch(self) -> bool:
        """Whether its weights are relative to a batch, so that draws must come in batches."""
        return False

    @property
    def needs_repeats(self) -> bool:
        """Whether it sets examples aside by priority zero, so that too few may be left to draw without repeats."""
        return False

    def start(self, store: ScoreStore) -> None:
        """Called once when the store is made: check sizes, set first priorities."""

    def check(self, obs: Observation) -> None:
        """Refuses (ValueError) what ``observe`` cannot take, before anything is recorded.

        What stands here checks the observations in ``requires`` whose names are known (``observations.KNOWN``) and
        converts them, so that ``observe`` finds "correct" as uint8 0 or 1, for instance; call it from your own.
        """
        for name in self.requires:
            if name in KNOWN:
                obs.others[name] = KNOWN[name].checked(name, obs.others[name])

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Writes a batch's rows into the columns and returns their new priorities, float32 [n], or None.

        Rows come in order; duplicates are separate rows, of which the last priority counts. ``columns["seen"]``
        has the packed bits of the examples seen before. Losses are finite. If this raises, the store puts the
        batch's rows back as they were, and ``state`` but for arrays above 64 KB, which it is not to change. Called
        once without any rows when a store is made, to compile loops.
        """
        return None

    def resized(self, store: ScoreStore, before: int) -> None:
        """Called when the store has been resized, from ``before`` examples; rows that are new are zero."""

    def unseen(self) -> float:
        """The priority of an example that was never scored, once covering is over."""
        return 1.0

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Called at an epoch's start. A plan replaces drawing for that epoch; None leaves it to draw()."""
        return None

    def draw(self, store: ScoreStore, count: int, clock: Clock, rng: Rng) -> tuple[Int64, Float64] | None:
        """A batch drawn in the policy's own way (indices, probabilities), or None: drawn from the tree."""
        return None

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """The weights that multiply the losses of a drawn batch, float32 [n], or None: all one."""
        return None

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values."""
        return arguments_of(self)


def is_infallible(policy: Policy) -> bool:
    """What the class says whose ``observe`` it is: a subclass with one of its own has promised nothing.

    The one that stands in ``Policy`` does nothing, and so cannot fail.
    """
    owner = next(base for base in type(policy).__mro__ if "observe" in vars(base))
    promise = vars(owner).get("infallible", False)
    return owner is Policy or bool(policy.infallible if isinstance(promise, property) else promise)


_registry: Registry[Policy] = Registry("policy", Policy)
register = _registry.register
"""Class decorator: makes ``policy=name`` work wherever a policy is asked for."""
find = _registry.find
make = _registry.make
inner_of = _registry.inner
example = _registry.example
registered = _registry.registered
