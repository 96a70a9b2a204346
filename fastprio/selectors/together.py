"""Several ranks whose selectors choose different numbers: how many batches all of them can train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastprio.ranks import Flight, device_of, place_in

if TYPE_CHECKING:
    from fastprio._arrays import Int64


class Together:
    """The ranks' numbers of full batches, each as of the step before.

    Args: group: a process group of more than one rank; None: torch's default one.

    Cost: one all_gather of 24 bytes a rank and step, waited for at the next one; and one more at the end.
    """

    def __init__(self, group: Any) -> None:
        self._group, self._device = group, device_of(group)
        self._flight: Flight | None = None

    def step(self, made: int, shared: float) -> tuple[int, float] | None:
        """Tells how many batches this rank has made so far, and what the ranks are to average.

        Returns: the fewest that any rank had made a step before, and the average; None at the first step.

        Raises: RuntimeError if a rank is not there, or its loader ended earlier or later.
        """
        found = self._received()
        self._send(made, shared, False)
        return found

    def end(self, made: int, shared: float) -> tuple[int, float]:
        """The same where there will be no further step, of all ranks as they are now."""
        self._received()
        self._send(made, shared, True)
        found = self._received()
        assert found is not None
        return found

    def _send(self, made: int, shared: float, over: bool) -> None:
        mine = np.array([made, over, 0], np.int64)
        mine[2:].view(np.float64)[0] = shared
        self._flight = Flight(torch.from_numpy(mine.view(np.uint8)).to(self._device), self._group)

    def _received(self) -> tuple[int, float] | None:
        if self._flight is None:
            return None
        rows: Int64 = self._flight.table().copy().view(np.int64)
        if rows[:, 1].any() and not rows[:, 1].all():
            early = int(rows[:, 1].argmax())
            raise RuntimeError(
                f"the loader of rank {early} has ended before those of other ranks (this is rank "
                f"{place_in(self._group)[0]}): every rank's loader must have as many batches"
            )
        return int(rows[:, 0].min()), float(rows[:, 2].copy().view(np.float64).mean())
