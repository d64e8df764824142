"""The processes that explain."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from fastshap.errors import JobError, WorkerDiedError
from fastshap.extras import needed
from fastshap.integrations.ray.lost import RETRIES, often
from fastshap.jobs.job import model_identity
from fastshap.jobs.opening import differences
from fastshap.jobs.parts import part_rows
from fastshap.jobs.reading import texts_of
from fastshap.jobs.table import BatchExplainer
from fastshap.models.provenance import library_versions

if TYPE_CHECKING:
    import pyarrow as pa

# A batch that killed its worker so often is explained row by row; a row that did so by itself is recorded as an error.
_DEATHS = 2


class Worker:
    """Explains blocks of rows in a process of its own.

    A block whose worker died over it is explained row by row, and a row that its worker died over is not tried for ever.
    """

    def __init__(
        self, explainer: BatchExplainer, model: dict[str, Any], ledger: Any, threads: float, versions: dict[str, str]
    ) -> None:
        torch.set_num_threads(max(1, int(threads)))
        self._explainer, self._model, self._ledger, self._versions = explainer, model, ledger, versions
        # The model, loaded while others read the first texts.
        self._provenance = ThreadPoolExecutor(1).submit(lambda: explainer.provenance)
        self._checked = False

    def __call__(self, table: pa.Table) -> pa.Table:
        ray = needed("ray", "ray")
        if not self._checked:
            self._check()
        ids, texts = table.column("id"), texts_of(table)
        before = self._explainer.explainer.padding
        key = hashlib.blake2b(repr(ids.to_pylist()).encode(), digest_size=16).hexdigest()
        deaths = ray.get(self._ledger.begin.remote(key))
        if deaths > RETRIES:
            raise WorkerDiedError(often(f"{deaths} times over the same {len(ids)} rows, from id {ids[0].as_py()!r}"))
        ended = [key]
        if deaths < _DEATHS:
            outputs = self._explainer.outputs(texts)
        else:
            outputs = []
            for i, text in enumerate(texts):
                ended.append(f"{key} {i}")
                if ray.get(self._ledger.begin.remote(ended[-1])) >= _DEATHS:
                    # Noted until the block ends, so that it kills no other process when the block begins anew.
                    text = WorkerDiedError(f"The process that explained this text died {_DEATHS} times over it alone.")
                    outputs += self._explainer.outputs([text])
                else:
                    outputs += self._explainer.outputs([text])
                    ray.get(self._ledger.end.remote([ended.pop()]))
        after = self._explainer.explainer.padding
        ray.get(self._ledger.end.remote(ended, after[0] - before[0], after[1] - before[1]))
        return part_rows(ids, texts, outputs)

    def _check(self) -> None:
        """Compares the model and the libraries with the driver's."""
        here = library_versions()
        for name in self._versions:
            if name != "python" and here.get(name) != self._versions[name]:
                raise JobError(
                    f"A worker has {name} {here.get(name)}, and the driver {self._versions[name]}; install one everywhere."
                )
        about = model_identity(self._provenance.result())
        for name in ("model_fingerprint", "tokenizer_fingerprint", "configuration", "labels_fingerprint"):
            if differing := differences(self._model[name], about[name], name):
                raise JobError(
                    f"A worker's model is another than the driver's ({'; '.join(differing)}): the same name led to another "
                    "model there. Put the same files on every node."
                )
        self._checked = True
