"""Plain data that the stages exchange: frozen, comparable, serialisable, without torch."""

from heretic.records.choices import DirectionScope, Optimization, RowNormalization
from heretic.records.plan import (
    ATTENTION,
    COMPONENT_ALIASES,
    KERNEL_FIGURES,
    MIXER,
    MLP,
    AbliterationParameters,
    AnyKernel,
    FittedKernel,
    Kernel,
    LayerWeights,
    Plan,
    Weights,
)
from heretic.records.trial import (
    Score,
    Trial,
    TrialState,
    dominates,
    front,
    objectives,
)

__all__ = [
    "ATTENTION",
    "COMPONENT_ALIASES",
    "KERNEL_FIGURES",
    "MIXER",
    "MLP",
    "AbliterationParameters",
    "AnyKernel",
    "DirectionScope",
    "FittedKernel",
    "Kernel",
    "LayerWeights",
    "Optimization",
    "Plan",
    "RowNormalization",
    "Score",
    "Trial",
    "TrialState",
    "Weights",
    "dominates",
    "front",
    "objectives",
]
