"""Input that is damaged or laid out oddly: refused with what to do, never skipped or merged."""

import csv
import gzip
import io
import os
import random
import time
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastshap import FastshapError, InvalidArgumentError, JobError
from fastshap.jobs import lines
from fastshap.jobs.columns import Columns
from fastshap.jobs.reading import Files
from helpers.jobs import damaged_page, refused, write

COLUMNS = Columns("id", "text")


def table_of(location):
    return pa.concat_tables(list(Files(location, COLUMNS).tables()))


def texts_of(location):
    return table_of(location).column("text").to_pylist()


# Directories


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.parquet", ["fine film"])
    return tmp_path / "in"


def test_what_is_no_file_is_refused(directory, tmp_path):
    link = directory / "b.parquet"
    link.symlink_to(tmp_path / "nowhere.parquet")
    assert "b.parquet is a link that leads nowhere" in refused(directory, tmp_path / "out")
    link.unlink()
    os.mkfifo(link)
    assert "b.parquet is neither a file nor a directory" in refused(directory, tmp_path / "out")
    link.rename(directory / "_b.parquet")
    assert texts_of(directory) == ["fine film"]


def test_links_that_lead_in_circles_end(directory, tmp_path):
    for name in ("one", "two"):
        (directory / name).symlink_to(".")
    assert "is the same directory as" in refused(directory, tmp_path / "out")
    for name in ("one", "two"):
        (directory / name).unlink()
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "b.parquet", ["not good"], [1])
    (directory / "link").symlink_to(tmp_path / "more")
    assert texts_of(directory) == ["fine film", "not good"]
    (directory / "again").symlink_to(tmp_path / "more")
    with pytest.raises(InvalidArgumentError, match="would be read twice"):
        Files(directory, COLUMNS)


def test_names_that_are_no_utf_8(directory, tmp_path, monkeypatch):
    odd = os.fsencode(directory) + b"/caf\xe9.parquet"
    os.rename(directory / "a.parquet", odd)
    assert "is no UTF-8; rename it" in refused(directory, tmp_path / "out")
    assert "is no UTF-8; rename it" in refused(os.fsdecode(odd), tmp_path / "out")
    write(tmp_path / "a.parquet", ["fine film"])
    assert "is no UTF-8; rename it" in refused(tmp_path / "a.parquet", os.fsdecode(odd))
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    monkeypatch.chdir(os.fsencode(tmp_path) + b"/\xff")
    assert "is no UTF-8; rename it" in refused(tmp_path / "a.parquet", "out")


def test_a_directory_that_cannot_be_read(directory, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fastshap.jobs.listing.os.listdir", denied)
    with pytest.raises(JobError, match=r"could not be read: .*Permission denied"):
        Files(directory, COLUMNS)


# Files


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('1,"fine\n2,film\n3,"not"\n4,good\n', "line 4: ',' expected"),
        ('1,fine\n2,"film\n3,not\n', "unexpected end of data"),
        ('1,"fine" film\n', "line 2: ',' expected"),
        ("1,fine\n2,a,b\n", "line 3, has 3 values, and the first line names 2 columns"),
        ("1,fine\n2\n", "line 3, has 1 values"),
    ],
)
def test_csv_with_a_quote_or_a_comma_too_many_is_refused(tmp_path, content, why):
    """Rows are not merged: an unclosed quote took the rows up to the next quote, and the job said nothing."""
    (tmp_path / "a.csv").write_text(f"id,text\n{content}")
    said = refused(tmp_path / "a.csv", tmp_path / "out")
    assert why in said
    assert "nothing was skipped" in said


def test_csv_as_it_is_written(tmp_path):
    content = '\ufefftext,more,id\r\n"fine, ""film""",x,007\r\n\r\n"two\r\nlines",y,1\r\n5" disk,,NA\r\n,,e\r\n'
    for name, packed in (("a.csv", content.encode()), ("b.csv.gz", gzip.compress(content.encode()))):
        (tmp_path / name).write_bytes(packed)
        table = table_of(tmp_path / name)
        assert table.column("text").to_pylist() == ['fine, "film"', "two\r\nlines", '5" disk', ""]
        assert table.column("id").to_pylist() == ["007", "1", "NA", "e"]
    (tmp_path / "c.csv").write_bytes(b"id,text,more\r1,fine,caf\xe9\r2,caf\xe9,\r")
    table = table_of(tmp_path / "c.csv")
    assert table.column("text").to_pylist() == ["fine", None]
    assert "not UTF-8" in table.column("problem").to_pylist()[1]
    (tmp_path / "d.csv").write_bytes(b"id,text\ncaf\xe9,fine\n")
    assert "an id that is no UTF-8" in refused(tmp_path / "d.csv", tmp_path / "out")
    (tmp_path / "e.csv").write_text("")
    assert "it has none" in refused(tmp_path / "e.csv", tmp_path / "out")


def test_long_values_of_csv_leave_the_limit_of_python_s_csv_alone(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f'id,text\n1,"{"x" * 300_000}"\n')
    assert len(texts_of(tmp_path / "a.csv")[0]) == 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_line_that_does_not_end_is_refused_as_soon_as_it_is_too_long(tmp_path, monkeypatch, name):
    monkeypatch.setattr(lines, "LONGEST", 1 << 20)
    read = []

    class Stream(lines.io.BytesIO):
        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

    monkeypatch.setattr(Files, "_open", lambda self, path: Stream(b"id,text\n" + b"x" * (20 << 20)))
    (tmp_path / name).write_text("")
    with pytest.raises(JobError, match=r"longer than 1 MiB|is no JSON"):
        table_of(tmp_path / name)
    if name == "a.csv":
        assert sum(read) < 3 << 20
    with pytest.raises(JobError, match="longer than 1 MiB"):
        list(lines.lines(Stream(b"x" * (20 << 20)), name))


CONTENTS = {"a.csv": (b'id,text\n1,"', b'"\n'), "a.jsonl": (b'{"id": 1, "text": "', b'"}\n')}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("filling", [b"x", b"x\n"], ids=["line", "lines"])
def test_a_long_value_takes_linear_time(tmp_path, name, filling):
    """Eight times the length takes about eight times as long; where it grew with the square it would be 64 times."""
    begin, end = CONTENTS[name]
    filling = filling.replace(b"\n", b"\\n") if name == "a.jsonl" else filling

    def seconds(length):
        (tmp_path / name).write_bytes(begin + filling * (length // len(filling)) + end)
        taken = []
        for _ in range(3):
            start = time.process_time()
            assert table_of(tmp_path / name).num_rows == 1
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(8 << 20) < 25 * seconds(1 << 20) + 0.1


class Endless(io.RawIOBase):
    """A line of 200 MB, which is nowhere in memory."""

    def __init__(self, begin):
        self.begin, self.left = begin, 200_000_000

    def readable(self):
        return True

    def readinto(self, buffer):
        some = self.begin or b"x" * min(len(buffer), self.left)
        self.begin = b""
        self.left -= len(some)
        buffer[: len(some)] = some
        return len(some)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_line_of_200_megabytes_is_refused_in_bounded_memory(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("")
    monkeypatch.setattr(Files, "_open", lambda self, path: io.BufferedReader(Endless(CONTENTS[name][0])))
    tracemalloc.start()
    try:
        with pytest.raises(JobError, match="is longer than 16 MiB"):
            table_of(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_messages_stay_short(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": [' + "1, " * 10**6 + '1], "text": "x"}\n')
    assert len(refused(tmp_path / "a.jsonl", tmp_path / "out")) < 1000
    (tmp_path / "a.csv").write_text(",".join(map(str, range(10**5))) + "\n")
    said = refused(tmp_path / "a.csv", tmp_path / "out")
    assert "and 99,980 more" in said
    assert len(said) < 1000


def test_a_long_value_in_quotes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST", 1 << 10)
    (tmp_path / "a.csv").write_text('id,text\n1,"' + "a line\n" * 1000)
    with pytest.raises(JobError, match="field larger than field limit"):
        table_of(tmp_path / "a.csv")


def test_a_flipped_bit_in_a_page_is_noticed(tmp_path):
    """The page still decodes, to another text; only its checksum tells."""
    path = tmp_path / "a.parquet"
    table = pa.table({"id": list(range(100)), "text": [f"fine film {i}" for i in range(100)]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    place = content.index(b"fine film 50")
    path.write_bytes(content[:place] + b"F" + content[place + 1 :])
    with pytest.raises(JobError, match=r"a\.parquet could not be read"):
        table_of(path)
    with pytest.raises(JobError, match="could not be read"):
        table_of(damaged_page(path))


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_mutated_parquet_file_reads_or_says_why(tmp_path, count):
    path = write(tmp_path / "a.parquet", ["fine film", "not good", "", None, "Café 👍"])
    whole, dice, read = path.read_bytes(), random.Random(count), 0
    for _ in range(count):
        content = bytearray(whole)
        for _ in range(dice.choice((1, 3, 9))):
            content[dice.randrange(len(content))] = dice.randrange(256)
        path.write_bytes(content)
        try:
            tables = list(Files(path, COLUMNS).tables())
        except FastshapError:
            continue
        assert sum(map(len, tables)) == 5
        read += 1
    assert 0 < read < count


def test_a_column_whose_name_is_no_utf_8_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", ["fine film"])
    path.write_bytes(path.read_bytes().replace(b"text", b"te\xed\xed"))
    with pytest.raises(FastshapError, match=r"could not be read|no column"):
        table_of(path)
