"""NoiseGuard: another selector where the data are clean; where they are noisy, all that its policy leaves in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from fastprio import policies
from fastprio._random import Rng
from fastprio._registry import name_of
from fastprio.policies.base import Clock
from fastprio.policies.noise_guard import CLEAN, UNDECIDED
from fastprio.selectors.base import Selector, inner_of, register
from fastprio.selectors.queue import Selection

if TYPE_CHECKING:
    from fastprio.selectors.queue import Rows


@register("noise_guard")
class NoiseGuard(Selector):
    """Has ``inner`` select where the policy of the same name finds no noise; else trains on all that it leaves in.

    The loader's policy decides, and sets aside what looks noisy::

        loader = PriorityLoader(dataset, 128, policy=policies.NoiseGuard("uniform", chance=math.log(10)), epochs=20)
        selector = selectors.NoiseGuard(SelectiveBackprop(128, beta=2))
        for epoch in range(20):
            for x, y in selector.batches(loader, score):
                losses = F.cross_entropy(model(x), y, reduction="none")
                loss = selector.mean(losses)
                ...
            loader.score(model, losses_of)

    The policy is around "uniform", as the selector is what chooses, and decides by ``loader.score``: without that it
    has no losses, and every epoch stays uniform. Until it has decided, batches are trained on as they come, without a
    scoring pass. Where it has found noise they are scored, for the policy to go by, and trained on whole: within what
    is left in, the largest losses are most likely of what should have been set aside too.

    Args:
        inner: a selector that has selected nothing yet, of which a copy is taken, or a name.
        inner_config: its arguments by name, where it is a name.

    Raises: ValueError: from ``batches``, for a loader with another policy.

    Source: ours; docs/guard.md has what was tried, such as selecting by loss within what is left in.
    """

    example = {"inner": "selective_backprop", "inner_config": {"batch_size": 32}}  # noqa: RUF012 (never changed)
    forwards = "the inner selector's; every batch under noise"

    def __init__(self, inner: str | Selector, inner_config: Mapping[str, Any] | None = None) -> None:
        self._inner = inner_of(inner, inner_config, lambda selector: selector.steps > 0)
        if isinstance(self._inner, NoiseGuard):
            raise ValueError(f"inner = {self._inner!r}: expected a selector that is no NoiseGuard itself")
        self.inner, self.inner_config = name_of(self._inner), self._inner.config()
        super().__init__(self._inner.batch_size, self._inner.seed)
        self.columns = self._inner.columns
        self.networks = self._inner.networks  # type: ignore[misc]
        self.state = self._inner.state  # the same dictionary, so that it is saved with this one
        self._policy: policies.NoiseGuard | None = None

    def batches(self, loader: Iterable[Any], score: Callable[[Any], Any], **options: Any) -> Iterator[Any]:
        """As ``Selector.batches``, of a loader whose policy is a NoiseGuard."""
        policy = getattr(getattr(loader, "store", None), "policy", None)
        if not isinstance(policy, policies.NoiseGuard):
            raise ValueError(
                f"loader: its policy is {policy!r}: expected a PriorityLoader with policy=policies.NoiseGuard(...)"
            )
        self._policy = policy
        return super().batches(loader, score, **options)

    @property
    def verdict(self) -> str:
        """The policy's."""
        return UNDECIDED if self._policy is None else self._policy.verdict

    def needs_scores(self, clock: Clock) -> bool:
        """Not before it is decided; always under noise; else as the inner selector says."""
        if self.verdict == CLEAN:
            self._inner.pool = self.pool
            return self._inner.needs_scores(clock)
        return self.verdict != UNDECIDED

    def __call__(
        self, losses: torch.Tensor, *, indices: Any = None, columns: Any = None, clock: Clock, rng: Rng
    ) -> Selection:
        """The inner selector's choice; under noise all."""
        if self.verdict == CLEAN:
            return self._inner(losses, indices=indices, columns=columns, clock=clock, rng=rng)
        every = torch.arange(losses.shape[-1], device=losses.device)
        return Selection(every if self.networks == 1 else every.expand(self.networks, -1))

    def observe(self, losses: torch.Tensor, *, clock: Clock) -> None:
        """Told to the inner selector, where it selects."""
        if self.verdict == CLEAN:
            self._inner.observe(losses, clock=clock)

    def choose(self, batch: Any, rows: Rows | None) -> Any:
        """As the inner selector does."""
        return self._inner.choose(batch, rows)

    @property
    def shared(self) -> float:
        """The inner selector's."""
        return self._inner.shared

    def agree(self, mean: float) -> None:
        """Told to the inner selector."""
        self._inner.agree(mean)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As ``Selector.load_state_dict``."""
        super().load_state_dict(state)
        self._inner.state = self.state
