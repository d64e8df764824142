"""GradientSHAP attributions for Hugging Face text models."""

from fastshap.base import AttributionExplainer, MultitaskExplainerMixin
from fastshap.default_model import load_default_model
from fastshap.errors import (
    BackendUnavailableError,
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    NonFiniteError,
    TruncationWarning,
    UnsupportedModelError,
)
from fastshap.explainer import GradientShap
from fastshap.output import AttributionOutput
from fastshap.types import Granularity, GranularityAggregationStrategy, InferenceModes, ModelTask
from fastshap.version import __version__

__all__ = [
    "AttributionExplainer",
    "AttributionOutput",
    "BackendUnavailableError",
    "FastshapError",
    "GradientShap",
    "Granularity",
    "GranularityAggregationStrategy",
    "InferenceModes",
    "InvalidArgumentError",
    "InvalidTypeError",
    "ModelTask",
    "MultitaskExplainerMixin",
    "NonFiniteError",
    "TruncationWarning",
    "UnsupportedModelError",
    "__version__",
    "load_default_model",
]
