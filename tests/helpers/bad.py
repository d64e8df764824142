"""What is refused, with what the error says."""

import math

import datasets
import pandas
import torch

import fastshap
from fastshap import InvalidArgumentError, InvalidTypeError

TWO = ["A gorgeous, witty film, but the ending is dull.", "not good at all"]

BAD_PARAMETERS = [
    ({"n_perturbations": 0}, InvalidArgumentError, "n_perturbations.*between 1 and.*got 0"),
    ({"n_perturbations": 2.5}, InvalidTypeError, "whole number"),
    ({"n_perturbations": 10**400}, InvalidArgumentError, "n_perturbations.*between 1 and 2147483647"),
    ({"noise_std": -0.1}, InvalidArgumentError, "noise_std"),
    ({"noise_std": math.nan}, InvalidArgumentError, "noise_std"),
    ({"noise_std": "0.1"}, InvalidTypeError, "noise_std"),
    ({"batch_size": 0}, InvalidArgumentError, "batch_size.*auto"),
    ({"batch_size": "big"}, InvalidTypeError, "batch_size.*auto"),
    ({"granularity": "paragraph"}, InvalidArgumentError, "ALL_TOKENS, TOKEN, WORD"),
    ({"granularity": 3}, InvalidTypeError, "granularity"),
    ({"granularity_aggregation_strategy": "median"}, InvalidArgumentError, "SIGNED_MAX"),
    ({"inference_mode": "probs"}, InvalidArgumentError, "SOFTMAX"),
    ({"inference_mode": 3}, InvalidTypeError, "callable"),
    ({"sampling": "sobol"}, InvalidArgumentError, "'antithetic', 'iid'"),
    ({"reduction": "mean"}, InvalidArgumentError, "'sum', 'abs_mean'"),
    ({"on_error": "ignore"}, InvalidArgumentError, "'record'"),
    ({"seed": 2**63}, InvalidArgumentError, "seed"),
    ({"seed": 0.5}, InvalidTypeError, "seed"),
    ({"baseline": torch.zeros(5)}, InvalidArgumentError, r"\(5,\).*36"),
    ({"baseline": torch.zeros(2, 3, 36)}, InvalidArgumentError, r"\(2, 3, 36\)"),
    ({"baseline": torch.zeros(36, dtype=torch.int64)}, InvalidArgumentError, "int64"),
    ({"baseline": math.inf}, InvalidArgumentError, "finite"),
    ({"baseline": "[ZERO]"}, InvalidArgumentError, r"no token '\[ZERO\]'"),
    ({"baseline": ["zero"]}, InvalidTypeError, "a BaselineSet; got list"),
    ({"baseline": fastshap.BaselineSet(torch.zeros(2, 5))}, InvalidArgumentError, r"\(2, 5\).*36"),
    ({"return_convergence_delta": True, "reduction": "abs_mean"}, InvalidArgumentError, "reduction='sum'"),
    ({"rtol": 0}, InvalidArgumentError, "rtol.*more than zero"),
    ({"rtol": math.nan}, InvalidArgumentError, "rtol"),
    ({"rtol": "5%"}, InvalidTypeError, "rtol"),
    ({"max_perturbations": 20}, InvalidArgumentError, "no use without rtol"),
    ({"path_density": 0}, InvalidArgumentError, "between 0.001 and 1000"),
    ({"path_density": "dense"}, InvalidTypeError, 'None, "auto", numbers in a list or a number'),
    ({"path_density": [1]}, InvalidArgumentError, "2 to 1024 numbers; got 1"),
    ({"path_density": [1] * 1025}, InvalidArgumentError, "got 1025"),
    ({"path_density": [1, 0]}, InvalidArgumentError, "more than zero"),
    ({"path_density": [1, -1, 9]}, InvalidArgumentError, "more than zero"),
    ({"path_density": [1, 1e-4]}, InvalidArgumentError, "1000th of their mean"),
    ({"path_density": [1, math.nan]}, InvalidArgumentError, "finite"),
    ({"path_density": [1, "2"]}, InvalidTypeError, "each number of path_density"),
    ({"path_density": [[1, 2]]}, InvalidTypeError, "each number of path_density"),
    ({"path_density": "1,0"}, InvalidArgumentError, "more than zero"),
    ({"path_density": "auto"}, InvalidArgumentError, "needs rtol"),
    ({"rtol": 0.1, "max_perturbations": 9}, InvalidArgumentError, "max_perturbations.*at least 10"),
    ({"backend": "cuda"}, InvalidArgumentError, "auto, triton, torch"),
    ({"backend": "triton"}, fastshap.BackendUnavailableError, "torch"),
    ({"cuda_graphs": True}, InvalidArgumentError, "one NVIDIA GPU"),
    ({"cuda_graphs": 1}, InvalidTypeError, "cuda_graphs"),
]

BAD_INPUTS = [
    ("", None, InvalidArgumentError, "Text 0.*empty"),
    (["fine", " \n"], None, InvalidArgumentError, "Text 1.*empty"),
    ([], None, InvalidArgumentError, "list of texts is empty"),
    (None, None, InvalidTypeError, "NoneType"),
    (7, None, InvalidTypeError, "int"),
    (["fine", 7], None, InvalidTypeError, "Text 1.*int"),
    ("fine", 3, InvalidArgumentError, r"out of range.*0 \(LABEL_0\), 1 \(LABEL_1\), 2 \(LABEL_2\)"),
    ("fine", -1, InvalidArgumentError, "out of range"),
    ("fine", "happy", InvalidArgumentError, "no label 'happy'.*LABEL_0"),
    (["fine", "good"], [1], InvalidArgumentError, "2 texts but 1 target;"),
    ("fine", torch.tensor([0.5]), InvalidTypeError, "integers"),
    ("fine", 1.5, InvalidTypeError, "float"),
    (["fine", "good"], [0, 7], InvalidArgumentError, "Text 1.*out of range"),
    ("bad \ud800 x", None, InvalidArgumentError, "Text 0.*surrogate"),
    ({"good": 1}, None, InvalidTypeError, "input_ids.*good.*column"),
    ("fine", torch.tensor(True), InvalidTypeError, "Tensor"),
    ("fine", torch.zeros(1, 0, dtype=torch.int64), InvalidArgumentError, "at least one class"),
]

BAD_FORMS = [
    (
        {"input_ids": [[5, 6]], "attention_mask": [[1]]},
        InvalidArgumentError,
        "Text 0: attention_mask must have the shape",
    ),
    ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, InvalidArgumentError, "between its tokens"),
    ({"input_ids": [5, 6], "attention_mask": [0, 0]}, InvalidArgumentError, "all zeros"),
    ({"input_ids": ["a", "b"]}, InvalidTypeError, r"\(L,\) or \(n, L\)"),
    ({"input_ids": torch.zeros(1, 2, 3, dtype=torch.long)}, InvalidTypeError, r"\(L,\) or \(n, L\)"),
    ({"input_ids": [5, 6], "position_ids": [1, 2]}, InvalidArgumentError, "position_ids"),
    ({"input_ids": [5, 6], "inputs_embeds": [1, 2]}, InvalidArgumentError, "inputs_embeds"),
    ({"text": "fine"}, InvalidTypeError, r"dataset\['text'\]"),
    (datasets.Dataset.from_dict({"text": TWO}), InvalidTypeError, r"dataset\['text'\]"),
    (pandas.DataFrame({"text": TWO}), InvalidTypeError, r"table\['text'\]"),
    ([[5, -6]], InvalidArgumentError, "zero or more"),
    ([[5, 10**30]], InvalidArgumentError, "embedding table of 11000"),
    ([[5] * 129], InvalidArgumentError, "129 tokens and the model takes 128"),
    ([2, 3], InvalidArgumentError, "special tokens alone"),
    ({"input_ids": [5, 6], "token_type_ids": [0]}, InvalidArgumentError, "token_type_ids must have the shape"),
    ({"input_ids": [5, 6], "token_type_ids": [0.0, 0.0]}, InvalidTypeError, "token_type_ids must be integers"),
    ({"input_ids": [5, 6], "token_type_ids": [0, 1]}, InvalidArgumentError, "token_type_ids"),
    ({"input_ids": [[5, 6], [5, 0]]}, InvalidArgumentError, "Text 1.*attention_mask"),
    ([[]], InvalidTypeError, "got list"),
    (torch.zeros(2, 3), InvalidTypeError, r"\(2, 3\) and torch.float32"),
    (torch.tensor(3), InvalidTypeError, "Tensor"),
    (b"fine", InvalidTypeError, "bytes"),
    (["fine", 1.5], InvalidTypeError, "Text 1.*float"),
    (["fine", ["fine"]], InvalidTypeError, "Text 1.*list"),
    ([(text for text in TWO)], InvalidTypeError, "Text 0.*generator"),
]
