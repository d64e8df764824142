"""GradientSHAP attributions for Hugging Face text models."""

from fastshap.base import AttributionExplainer, MultitaskExplainerMixin
from fastshap.errors import (
    BackendUnavailableError,
    ClosedError,
    DeadlineExceededError,
    FastshapError,
    InvalidArgumentError,
    InvalidTypeError,
    JobError,
    MissingPackageError,
    ModelFailedError,
    NoiseWarning,
    NonFiniteError,
    OverloadedError,
    SharedModelWarning,
    SlowBackendWarning,
    TruncationWarning,
    UnsupportedModelError,
    UntrainedHeadWarning,
    WorkerDiedError,
)
from fastshap.explainer import GradientShap
from fastshap.jobs.table import BatchExplainer
from fastshap.models.default import load_default_model
from fastshap.models.provenance import Provenance
from fastshap.one_call import explain, fit_path_density, warm_up
from fastshap.output.comparison import ComparedColumn, ComparedElement, Comparison, compare
from fastshap.output.files import read_jsonl, write_csv, write_html, write_jsonl
from fastshap.output.output import AttributionOutput, AttributionOutputs
from fastshap.output.parquet import read_parquet, to_arrow, write_parquet
from fastshap.output.summary import Lean, Summary, summarize
from fastshap.reproduction import Reproduction, reproduce
from fastshap.service.batcher import Batcher
from fastshap.text.inputs import Words
from fastshap.types import Granularity, GranularityAggregationStrategy, InferenceModes, ModelTask
from fastshap.types.baselines import BaselineSet
from fastshap.types.targets import Contrast
from fastshap.version import __version__

__all__ = [
    "AttributionExplainer",
    "AttributionOutput",
    "AttributionOutputs",
    "BackendUnavailableError",
    "BaselineSet",
    "BatchExplainer",
    "Batcher",
    "ClosedError",
    "ComparedColumn",
    "ComparedElement",
    "Comparison",
    "Contrast",
    "DeadlineExceededError",
    "FastshapError",
    "GradientShap",
    "Granularity",
    "GranularityAggregationStrategy",
    "InferenceModes",
    "InvalidArgumentError",
    "InvalidTypeError",
    "JobError",
    "Lean",
    "MissingPackageError",
    "ModelFailedError",
    "ModelTask",
    "MultitaskExplainerMixin",
    "NoiseWarning",
    "NonFiniteError",
    "OverloadedError",
    "Provenance",
    "Reproduction",
    "SharedModelWarning",
    "SlowBackendWarning",
    "Summary",
    "TruncationWarning",
    "UnsupportedModelError",
    "UntrainedHeadWarning",
    "Words",
    "WorkerDiedError",
    "__version__",
    "compare",
    "explain",
    "fit_path_density",
    "load_default_model",
    "read_jsonl",
    "read_parquet",
    "reproduce",
    "summarize",
    "to_arrow",
    "warm_up",
    "write_csv",
    "write_html",
    "write_jsonl",
    "write_parquet",
]
