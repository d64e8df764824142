"""Batch jobs on Ray."""

from fastshap.integrations.ray.dataset import explain_dataset

__all__ = ["explain_dataset"]
