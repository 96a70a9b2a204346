"""Policies: which examples to draw next, one method a file. README.md beside this file explains the protocol."""

from fastprio._kernels import kernel, power
from fastprio.policies.base import (
    OUT,
    SCORE,
    TRAIN,
    TRAIN_RESCALED,
    Clock,
    Observation,
    Plan,
    Policy,
    example,
    find,
    make,
    register,
    registered,
)
from fastprio.policies.given import Given
from fastprio.policies.infobatch import InfoBatch
from fastprio.policies.loss_power import LossPower
from fastprio.policies.observations import observations
from fastprio.policies.uniform import Uniform

__all__ = [
    "OUT",
    "SCORE",
    "TRAIN",
    "TRAIN_RESCALED",
    "Clock",
    "Given",
    "InfoBatch",
    "LossPower",
    "Observation",
    "Plan",
    "Policy",
    "Uniform",
    "example",
    "find",
    "kernel",
    "make",
    "observations",
    "power",
    "register",
    "registered",
]
