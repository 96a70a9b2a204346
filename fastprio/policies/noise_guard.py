"""NoiseGuard: another policy where the data are clean; where they are noisy, uniform batches without the suspects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprio._arrays import integer
from fastprio._kernels import get_bit, kernel, put_bit
from fastprio._random import Rng
from fastprio.policies.arguments import real
from fastprio.policies.base import SCORE, TRAIN, Clock, Columns, Observation, Plan, Policy, register
from fastprio.policies.primitives import codes_of, highest, share_of, uniformly
from fastprio.policies.wrapper import Wrapper

if TYPE_CHECKING:
    from fastprio._arrays import Float32, Float64, Int64, Uint8
    from fastprio.policies.primitives import Mask
    from fastprio.store import ScoreStore

UNDECIDED, CLEAN, UNSAFE, MISLABELED = "undecided", "clean", "unsafe", "mislabeled"


@kernel
def _observe(smoothed: Float32, seen: Uint8, indices: Int64, losses: Float32, momentum: float) -> None:
    first = np.empty(indices.size, np.bool_)
    for j in range(indices.size):
        i = indices[j]
        first[j] = not get_bit(seen, i)
        put_bit(seen, i, True)  # a later row may be of the same example
        before = np.float64(losses[j]) if first[j] else np.float64(smoothed[i])
        smoothed[i] = np.float32(momentum * before + (1.0 - momentum) * losses[j])
    for j in range(indices.size):
        if first[j]:
            put_bit(seen, indices[j], False)  # the inner policy is to see it as it was


@register("noise_guard")
class NoiseGuard(Wrapper):
    """Asks first whether there is noise, and lets ``inner`` choose only where there is none.

    The first ``probe`` epochs are uniform, and a score pass of everything ends them. tau = sqrt(1 + CV^2) of its losses
    says how uneven they are, and decides:

    * tau >= ``tau``, "clean": few examples hold most of the loss, and ``inner`` does what it does without a guard.
    * tau < ``tau``, "unsafe": much of the loss cannot be learnt, and to choose by it is to choose noise. All epochs are
      uniform.
    * "mislabeled": unsafe, and for more than ``share`` of the examples seen, then or later, the model is clearly
      worse than a guess: their smoothed loss is above ``clearly`` * ``chance``. From then on the examples above
      ``chance`` are set aside. They are forwarded at each epoch's end, and come back when their smoothed loss is not.

    Args:
        inner: a policy that has learnt nothing yet, of which a copy is taken, or a name.
        chance: > 0, the loss of a guess that knows nothing: ln K for K classes.
        inner_config: the arguments by name, where ``inner`` is a name.
        probe: >= 1, epochs until the decision; enough for the model to be better than a guess. An untrained model's
            losses are all alike, which looks like noise.
        tau: >= 1. clearly: > 0. share: in [0, 1].
        momentum: in [0, 1), of the smoothed loss, which begins with the losses that decide.
        most: in [0, 1), share of all examples that may be set aside: of more, those with the highest smoothed loss.
        back: in [0, 1], share of those set aside, rounded up and at least one, that is in the epoch all the same,
            others each time; a loader's drop_last leaves out some of these as of any.

    Call ``loader.score`` at each epoch's end: without it, the losses are those of training, of different steps. Losses
    are >= 0. An example never scored is trained on. Neither "clean" nor "mislabeled" is ever taken back. A loader with
    drop_last needs a whole batch among what is left. Cost: 4 bytes an example beside the inner policy's.

    Source: ours; the defaults were chosen on held-out images, and docs/guard.md has what was tried. tau is that of
    Katharopoulos and Fleuret, ICML 2018; losses above a guess's as a sign of a wrong label go back to the large-loss
    criterion of Song et al., ECCV 2020.
    """

    example = {"inner": "loss", "chance": 2.3}  # noqa: RUF012 (never changed)
    acts = "epoch"
    forwards = "all, once; the left-out, each epoch"
    infallible = Wrapper.infallible  # what is added to the inner policy's ``observe`` cannot fail

    def __init__(
        self,
        inner: str | Policy,
        chance: float,
        inner_config: Mapping[str, Any] | None = None,
        probe: int = 1,
        tau: float = 1.7,
        clearly: float = 1.2,
        share: float = 0.15,
        momentum: float = 0.5,
        most: float = 0.7,
        back: float = 0.05,
    ) -> None:
        super().__init__(inner, inner_config)
        self.chance, self.probe = real("chance", chance, 0, above=True), integer("probe", probe, 1)
        self.tau, self.share = real("tau", tau, 1), real("share", share, 0, 1)
        self.clearly = real("clearly", clearly, 0, above=True)
        self.momentum, self.most = real("momentum", momentum, 0, 1, below=True), real("most", most, 0, 1, below=True)
        self.back = real("back", back, 0, 1)
        if "smoothed" in self.columns or "verdict" in self.state:
            raise ValueError(f"inner = {self._inner!r}: expected a policy without a column 'smoothed'")
        self.columns = {**self.columns, "smoothed": "float32"}
        self.least_loss = max(0.0, self.least_loss)
        self.state.update(verdict=UNDECIDED, probed_tau=0.0)

    @property
    def verdict(self) -> str:
        """What was decided: "undecided" as yet, "clean", "unsafe" or "mislabeled"."""
        return str(self.state["verdict"])

    @property
    def probed_tau(self) -> float:
        """The tau by which it was decided; 0 before."""
        return float(self.state["probed_tau"])

    def start(self, store: ScoreStore) -> None:
        """There is to be an epoch after the probe."""
        if store.epochs is not None and self.probe >= store.epochs:
            raise ValueError(f"probe = {self.probe}: training has {store.epochs} epochs; expected fewer for the probe")
        super().start(store)

    def observe(self, columns: Columns, indices: Int64, obs: Observation, clock: Clock, rng: Rng) -> Float32 | None:
        """Smooths the losses, of training and scoring alike, and lets the inner policy learn from them."""
        if obs.origin != "reference":
            momentum = 0.0 if self.verdict == UNDECIDED else self.momentum
            _observe(columns["smoothed"], columns["seen"], indices, obs.loss, momentum)
        return super().observe(columns, indices, obs, clock, rng)

    def plan(self, store: ScoreStore, clock: Clock, rng: Rng) -> Plan | None:
        """Everything, until it is decided; then the inner policy's plan, or all but what is set aside."""
        if clock.epoch < self.probe:
            return Plan(score=(TRAIN,) if clock.epoch == self.probe - 1 else ())
        self._decide(store)
        if self.verdict == CLEAN:
            return super().plan(store, clock, rng)
        aside = self.aside(store)
        count = int(np.count_nonzero(aside))
        back = max(count - share_of(count, 1.0 - self.back), min(count, 1))  # rounded up
        trained = ~aside | uniformly(back, rng, aside)
        return Plan(codes_of(trained, SCORE), score=(SCORE,), info={"verdict": self.verdict, "aside": count})

    def weights(self, columns: Columns, indices: Int64, probabilities: Float64, clock: Clock) -> Float32 | None:
        """The inner policy's where it draws; else all one."""
        if self.verdict != CLEAN and indices.size:  # of no rows a store asks, to compile loops
            return None
        return super().weights(columns, indices, probabilities, clock)

    def aside(self, store: ScoreStore) -> Mask:
        """bool [n]: the examples that are set aside as things stand."""
        if self.verdict != MISLABELED:
            return np.zeros(len(store), bool)
        rng = Rng(store.seed, store.clock.epoch, 1, "plan")  # for ties; step 1, because plans have the bits of step 0
        return highest(store.column("smoothed"), share_of(len(store), self.most), rng, among=self.suspects(store))

    def suspects(self, store: ScoreStore, clearly: float = 1.0) -> Mask:
        """bool [n]: the examples for which the model is (clearly) worse than a guess, whatever was decided."""
        worse: Mask = store.seen() & (store.column("smoothed") > np.float32(clearly * self.chance))
        return worse

    def _decide(self, store: ScoreStore) -> None:
        seen = store.seen()
        if self.verdict == UNDECIDED and store.column("smoothed").any():  # else nothing is left to learn
            losses = store.column("smoothed")[seen].astype(np.float64)
            tau = float(np.sqrt(np.mean(losses**2)) / losses.mean())
            self.state.update(verdict=CLEAN if tau >= self.tau else UNSAFE, probed_tau=tau)
        worse = np.count_nonzero(self.suspects(store, self.clearly))
        if self.verdict == UNSAFE and worse > self.share * np.count_nonzero(seen):
            self.state["verdict"] = MISLABELED
