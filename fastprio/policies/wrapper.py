"""Wrapper: base of policies that stand around another one and let it do what they do not do themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastprio._registry import name_of
from fastprio.policies.base import Clock, Columns, Observation, Plan, Policy, inner_of, is_infallible

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64
    from fastprio._random import Rng
    from fastprio.store import ScoreStore


class Wrapper(Policy):
    """Does what ``inner`` does, with its columns and its state beside one's own.

    Args:
        inner: a policy that has learnt nothing yet, of which a copy is taken, or a name.
        inner_config: the arguments by name, where it is a name.

    Raises: ValueError: an inner policy that has learnt for a store, or arguments beside a policy.
    """

    shardable = False

    def __init__(self, inner: str | Policy, inner_config: Mapping[str, Any] | None = None) -> None:
        self._inner = inner_of(inner, inner_config, lambda policy: policy._owner is not None)
        self.inner = name_of(self._inner)
        self.inner_config = self._inner.config() or None
        self.columns, self.least_loss = self._inner.columns, self._inner.least_loss
        self.requires, self.needs_epochs = self._inner.requires, self._inner.needs_epochs
        # One dictionary for both, so that what the inner policy learns is saved and undone with what this one does.
        self.state = self._inner.state

    @property
    def wrapped(self) -> Policy:
        """The inner policy itself, for what a loop is to call of it, such as ``regroup`` or ``refer``."""
        return self._inner

    @property
    def scheme(self) -> str | None:  # type: ignore[override]
        """The inner policy's, as is all that follows."""
        return self._inner.scheme

    @property
    def infallible(self) -> bool:  # type: ignore[override]
        """Whether it promises never to fail."""
        return is_infallible(self._inner)

    @property
    def needs_unbiased(self) -> bool:
        """Whether its weights need independent draws."""
        return self._inner.needs_unbiased

    @property
    def own_draws(self) -> bool:
        """Whether it draws by itself."""
        return self._inner.own_draws

    @property
    def by_batch(self) -> bool:
        """Whether its weights are relative to a batch."""
        return self._inner.by_batch

    @property
    def needs_repeats(self) -> bool:
        """Whether too few may be left to draw without repeats."""
        return self._inner.needs_repeats

    def start(self, store: ScoreStore) -> None:
        """What it does when the store is made."""
        self._inner.start(store)

    def check(self, obs: Observation) -> None:
        """What it refuses."""
        self._inner.check(obs)

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """What it learns."""
        return self._inner.observe(columns, indices, obs, clock, rng)

    def resized(self, store: ScoreStore, before: int) -> None:
        """What it does when the store has been resized."""
        self._inner.resized(store, before)

    def unseen(self) -> float:
        """Its priority of what was never scored."""
        return self._inner.unseen()

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Its plan."""
        return self._inner.plan(store, clock, rng)

    def draw(self, store: ScoreStore, count: int, clock: Clock, rng: Rng) -> tuple[Int64, Float64] | None:
        """Its draws."""
        return self._inner.draw(store, count, clock, rng)

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """Its weights."""
        return self._inner.weights(columns, indices, probabilities, clock)
