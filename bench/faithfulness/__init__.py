"""Methods, baselines and models beside each other by the measures of ``fastshap.metrics``: ``python -m bench faithfulness``."""
