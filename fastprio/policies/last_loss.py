"""LastLoss: what methods share that remember an example's last loss, and those that plan by it for another's sake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastprio.policies.base import Clock, Columns, Observation, Policy, make

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Int64
    from fastprio._random import Rng


class LastLoss(Policy):
    """Base of policies whose column "loss" is the last one of training or of scoring, and that keep no priority."""

    columns = {"loss": "float32"}  # noqa: RUF012 (never changed)
    infallible = True
    shardable = False

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Remembers the last loss."""
        if obs.origin != "reference":
            columns["loss"][indices] = obs.loss  # numpy writes in order: the last duplicate stays
        return None


def host_of(host: str, config: Mapping[str, Any] | None) -> Policy:
    """The policy that plans for one that fills the column "loss" with a score of its own.

    Args: host: its name. config: its arguments, None for none. ValueError if it does more than plan by that column.
    """
    if not isinstance(host, str):
        raise ValueError(f"host = {host!r}: expected a policy's name")
    if config is not None and not (isinstance(config, Mapping) and all(isinstance(name, str) for name in config)):
        raise ValueError(f"host_config = {config!r}: expected the host's arguments by name, or None")
    try:
        made = make(host, **(config or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"host = {host!r}, host_config = {config!r}: {error}") from error
    overrides = any(getattr(type(made), name) is not getattr(Policy, name) for name in ("draw", "weights", "start"))
    plans = type(made).plan is not Policy.plan
    learns = type(made).observe in (Policy.observe, LastLoss.observe)
    if not plans or overrides or not learns or set(made.columns) != {"loss"} or made.requires or made.state:
        raise ValueError(f"host = {host!r}: expected a policy that does no more than plan by column 'loss'")
    return made


def plain_config(host: Policy, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The arguments that the host was made with, as it keeps them: numpy's numbers as Python's."""
    kept = host.config()
    return None if config is None else {name: kept.get(name, value) for name, value in config.items()}
