"""Policies: which examples to draw next, one method a file. README.md beside this file explains the protocol."""

from fastprio._kernels import kernel, power
from fastprio.policies import primitives, schedules
from fastprio.policies.active_bias import ActiveBias
from fastprio.policies.align_prune import AlignPrune
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
from fastprio.policies.batch_loss_score import BatchLossScore
from fastprio.policies.dyn_unc import DynUnc
from fastprio.policies.el2n import EL2N
from fastprio.policies.flow import FLOW
from fastprio.policies.forgetting_events import ForgettingEvents
from fastprio.policies.given import Given
from fastprio.policies.group_dro import GroupDRO
from fastprio.policies.infobatch import InfoBatch
from fastprio.policies.instance_early_stopping import InstanceEarlyStopping
from fastprio.policies.kakurenbo import Kakurenbo
from fastprio.policies.late_stopping import LateStopping
from fastprio.policies.loss_ema import LossEMA
from fastprio.policies.loss_power import LossPower
from fastprio.policies.multiplicative_reweighting import MultiplicativeReweighting
from fastprio.policies.noise_guard import NoiseGuard
from fastprio.policies.observations import observations
from fastprio.policies.on_the_fly_denoising import OnTheFlyDenoising
from fastprio.policies.online_data_mixing import OnlineDataMixing
from fastprio.policies.orderdp import OrderDP
from fastprio.policies.random_subset import RandomSubset
from fastprio.policies.rank_based import RankBased
from fastprio.policies.rank_power import RankPower
from fastprio.policies.recency_bias import RecencyBias
from fastprio.policies.repb import RePB
from fastprio.policies.replay_mixture import ReplayMixture
from fastprio.policies.second_split_forgetting import SecondSplitForgetting
from fastprio.policies.self_paced import SelfPaced
from fastprio.policies.seta import SeTa
from fastprio.policies.stale_selective_backprop import StaleSelectiveBackprop
from fastprio.policies.uniform import Uniform

__all__ = [
    "EL2N",
    "FLOW",
    "OUT",
    "SCORE",
    "TRAIN",
    "TRAIN_RESCALED",
    "ActiveBias",
    "AlignPrune",
    "BatchLossScore",
    "Clock",
    "DynUnc",
    "ForgettingEvents",
    "Given",
    "GroupDRO",
    "InfoBatch",
    "InstanceEarlyStopping",
    "Kakurenbo",
    "LateStopping",
    "LossEMA",
    "LossPower",
    "MultiplicativeReweighting",
    "NoiseGuard",
    "Observation",
    "OnTheFlyDenoising",
    "OnlineDataMixing",
    "OrderDP",
    "Plan",
    "Policy",
    "RandomSubset",
    "RankBased",
    "RankPower",
    "RePB",
    "RecencyBias",
    "ReplayMixture",
    "SeTa",
    "SecondSplitForgetting",
    "SelfPaced",
    "StaleSelectiveBackprop",
    "Uniform",
    "example",
    "find",
    "kernel",
    "make",
    "observations",
    "power",
    "primitives",
    "register",
    "registered",
    "schedules",
]
