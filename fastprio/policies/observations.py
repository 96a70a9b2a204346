"""What policies know of a classifier beside its loss: names, meanings, checks, and how logits give them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch


class Kind(NamedTuple):
    """One observation: its dtype in ``observe``, its range, and how it comes of logits, probabilities and targets."""

    dtype: str
    least: float
    most: float
    of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

    def checked(self, name: str, values: Any) -> Any:
        """The values as an array [n] of this dtype. ValueError names the first one that is out of range."""
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            raise ValueError(f"{name}: expected numbers, shape [n], got {values.dtype} of shape {values.shape}")
        good = (values >= self.least) & (values <= self.most)
        if self.dtype[0] != "f" and values.dtype.kind == "f":
            good &= values == np.floor(values)
        if not good.all():
            row = int(good.argmin())
            of = "an integer" if self.dtype[0] != "f" else "a number"
            raise ValueError(f"{name}[{row}] = {values[row]}: expected {of} in [{self.least:g}, {self.most:g}]")
        return values.astype(self.dtype, copy=False)


KNOWN = {
    "correct": Kind("uint8", 0, 1, lambda logits, _, y: logits.argmax(1) == y),
    "prediction": Kind("int64", 0, (1 << 31) - 1, lambda logits, _, y: logits.argmax(1)),
    "p_label": Kind("float32", 0, 1, lambda _, p, y: p.gather(1, y[:, None])[:, 0]),
    "confidence": Kind("float32", 0, 1, lambda _, p, y: p.amax(1)),
    "error_norm": Kind("float32", 0, 2, lambda _, p, y: (p - torch.nn.functional.one_hot(y, p.shape[1])).norm(dim=1)),
}
"""correct: whether the given label has the largest logit. prediction: the label that has it. p_label: the probability
of the given label. confidence: the largest probability. error_norm: ||p - one_hot(label)||_2, in [0, sqrt 2]."""


def observations(names: Iterable[str], logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """The observations of a classifier's outputs that a policy asks for, for ``step(losses, **observations(...))``.

    Args:
        names: ``policy.requires``. logits: floating [n, K]. targets: int64 [n], the given labels.

    Returns: name -> [n] on the logits' device, without a graph. Probabilities are the softmax over the K classes.

    Raises: ValueError for a name that logits do not tell, or other shapes.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"logits, targets: expected [n, K] and [n], got {list(logits.shape)}, {list(targets.shape)}")
    names = tuple(names)
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise ValueError(f"{unknown[0]!r}: logits and targets tell {', '.join(KNOWN)}; pass it to step() yourself")
    if not names:
        return {}
    with torch.no_grad():
        wide = logits.detach().float()
        p = wide.softmax(1)  # over the classes of each example
        return {name: KNOWN[name].of(wide, p, targets) for name in names}
