"""Whether explanations are true: the field's measures of faithfulness, robustness and agreement, with standard errors.

:class:`Faithfulness` perturbs texts and looks at the model's scores; ``docs/faithfulness.md`` says what each measure is.
"""

from fastshap.metrics.agreement import rank_correlation, rank_stability, top_k_overlap
from fastshap.metrics.explained import Scored
from fastshap.metrics.faithfulness import Faithfulness
from fastshap.metrics.measures import (
    AOPC_GRID,
    Comprehensiveness,
    Deletion,
    Infidelity,
    Insertion,
    LogOdds,
    Measure,
    Sufficiency,
)
from fastshap.metrics.normalized import NormalizedAOPC
from fastshap.metrics.result import FaithfulnessTable, MetricResult
from fastshap.metrics.sensitivity import sensitivity_max

__all__ = [
    "AOPC_GRID",
    "Comprehensiveness",
    "Deletion",
    "Faithfulness",
    "FaithfulnessTable",
    "Infidelity",
    "Insertion",
    "LogOdds",
    "Measure",
    "MetricResult",
    "NormalizedAOPC",
    "Scored",
    "Sufficiency",
    "rank_correlation",
    "rank_stability",
    "sensitivity_max",
    "top_k_overlap",
]
