"""Jobs of the command line, their inputs and their rows."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from fastshap.cli import app

SETTINGS = {"n_perturbations": 4}
QUICK = ["--local", "--n-perturbations", "4"]


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["run", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def refused(*arguments):
    """What a refusal says, without the line breaks of a terminal."""
    return " ".join(run(*arguments, *QUICK, code=2).stderr.split())


def rows(output):
    return {row["id"]: row for row in pq.read_table(output).to_pylist()}


def write(path, texts, ids=None):
    ids = list(range(len(texts))) if ids is None else ids
    pq.write_table(pa.table({"id": ids, "text": pa.array(texts, pa.string())}), path, row_group_size=50)
    return path


def make_texts(count):
    words = "a gorgeous witty film but the ending is dull not good at all loved every minute terrible service".split()
    draw = np.random.default_rng(0)
    return [" ".join([*draw.choice(words, draw.integers(2, 9)), str(i)]) for i in range(count)]


def replaced(table, name, values):
    """The table with another column in the place of one."""
    field = table.schema.field(name)
    return table.set_column(table.schema.names.index(name), field, [pa.array(values, field.type)])


NUMBERS = ("attributions", "standard_error", "reliability", "unassigned", "probability", "target_probabilities")


def same_numbers(one, other):
    """Rows by their ids: what both hold is equal, scores within 1e-5 of the row's largest, probabilities within 1e-5."""
    assert one.keys() == other.keys()
    for key, row in one.items():
        peer = other[key]
        equal = (row.keys() & peer.keys()) - {*NUMBERS, "digest"}
        assert {name: row[name] for name in equal} == {name: peer[name] for name in equal}
        largest = (
            np.abs(row["attributions"]).max() if row.get("attributions") else 0
        )  # what is unassigned cancels to little
        for name in NUMBERS:
            if row.get(name) and name in peer:
                here, there = np.array(row[name]), np.array(peer[name])
                size = 1 if "probabilit" in name or name == "reliability" else largest
                assert np.abs(here - there).max() <= 1e-5 * size + 1e-7, (key, name)


def damaged_page(path):
    """A Parquet file whose ids read, and whose fourth row group has texts that do not."""
    write(path, make_texts(400))
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(3).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    return path


# Slowly: it waits after all that it has taken, so that each is a part, and a job is in its middle for seconds.
SLOWLY = """
import os, sys, time
import fastshap.jobs.job as job, fastshap.jobs.local as local
from fastshap.cli import app
from fastshap.jobs.progress import JobProgress

job._SECONDS = local._SECONDS = 0.3
add = JobProgress.add
JobProgress.add = lambda *arguments: (add(*arguments), time.sleep(0.8))
"""
COMMAND = (
    "import fastshap.jobs.job as job, fastshap.jobs.local as local; job._SECONDS = local._SECONDS = 0.3;"
    "from fastshap.cli import app; app()"
)
