"""What selectors do with a pool's losses: take the extreme ones, draw in proportion, bring a number to the host.

Everything stays on the tensors' device and nothing waits for it, but for ``OnItsWay.read``.
"""

from __future__ import annotations

import math

import torch


def extreme(values: torch.Tensor, count: int, largest: bool = True) -> torch.Tensor:
    """int64 [..., min(count, n)]: positions of the largest (or smallest) of the n values in each row, ascending.

    Of equal values the earlier position is taken. NaN and infinite values come after all finite ones, by position.
    """
    last = -math.inf if largest else math.inf
    keyed = torch.where(torch.isfinite(values), values.detach(), last)
    order = keyed.sort(dim=-1, descending=largest, stable=True).indices
    return order[..., :count].sort(dim=-1).values


def masses(scores: torch.Tensor) -> torch.Tensor:
    """float64 [n]: the scores that are finite and above zero, and 0 for the others; 1 for all if there are none."""
    scores = scores.detach()
    found = torch.where(torch.isfinite(scores) & (scores > 0), scores, 0.0).double()
    return torch.where(found.sum() > 0, found, 1.0)


def drawn(masses: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """int64 [k]: positions drawn with replacement in proportion to the masses, from u uniform in [0, 1), float64."""
    ends = masses.cumsum(0)
    at = torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(masses) - 1)
    # A device may sum in another order for each end, so that an example without mass seems to have some.
    return torch.where(masses[at] > 0, at, masses.argmax())


def tau_of(masses: torch.Tensor) -> torch.Tensor:
    """sqrt(n * sum g^2) of g = masses / their sum, float64: sqrt(1 + CV^2), how uneven they are; 1 is even."""
    return (len(masses) * (masses * masses).sum()).sqrt() / masses.sum()


class OnItsWay:
    """A tensor that is copied to the host. Nothing waits for it until it is read."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor, self._event = tensor, None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.current_stream(tensor.device).record_event()

    def read(self) -> torch.Tensor:
        """The tensor, on the host. Waits for what was asked of the device before the copy, not for what came after."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.cpu()

    def __float__(self) -> float:
        return float(self.read())
