from __future__ import annotations

import gzip
import importlib
import importlib.resources
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxrecipes.data.documents import ReadReport
from jaxrecipes.data.sources import SourceSpec, read_documents, resolve_source, source_fingerprint
from jaxrecipes.errors import ConfigError, DataError

ROWS = [
    {"id": "a", "text": "first"},
    {"id": "b", "text": "zweiter, größer"},
    {"id": "c", "text": "x"},
]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(reference, **options) -> list[tuple[str, str]]:
    return [(d.id, d.text) for d in read_documents(SourceSpec(str(reference), **options))]


EXPECTED = [(row["id"], row["text"]) for row in ROWS]


def test_jsonl_plain_compressed_with_mark_and_empty_lines(tmp_path):
    text = jsonl(ROWS)
    assert read(write(tmp_path / "a.jsonl", text)) == EXPECTED
    assert read(write(tmp_path / "a.jsonl.gz", gzip.compress(text.encode()))) == EXPECTED
    assert read(write(tmp_path / "b.jsonl", b"\xef\xbb\xbf" + text.encode())) == EXPECTED
    assert read(write(tmp_path / "c.jsonl", text.replace("\n", "\r\n\n"))) == EXPECTED


def test_csv_and_tsv_with_quotes_and_line_breaks(tmp_path):
    csv = 'id,text,more\na,"one, two\nthree ""four""",1\nb,plain,2\n'
    wanted = [("a", 'one, two\nthree "four"'), ("b", "plain")]
    assert read(write(tmp_path / "a.csv", csv)) == wanted
    assert read(write(tmp_path / "a.csv.gz", gzip.compress(csv.encode()))) == wanted
    assert read(write(tmp_path / "a.tsv", "text\tn\none, two\t1\n")) == [("a.tsv:2", "one, two")]


def test_csv_reads_a_field_longer_than_the_modules_own_limit(tmp_path):
    assert len(read(write(tmp_path / "a.csv", "text\n" + "x" * 300_000 + "\n"))[0][1]) == 300_000


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read(path) == EXPECTED
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="a.parquet: cannot be read as Parquet"):
        read(path)


def test_text_by_file_line_and_paragraph(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n")
    assert read(path) == [("a.txt", "one\ntwo\n\n\nthree\n")]
    assert read(path, unit="line") == [("a.txt:1", "one"), ("a.txt:2", "two"), ("a.txt:5", "three")]
    assert read(path, unit="paragraph") == [("a.txt:1", "one\ntwo"), ("a.txt:5", "three")]


def test_folder_and_glob_read_sorted_files_with_ids_by_relative_name(tmp_path):
    write(tmp_path / "b" / "2.md", "two")
    write(tmp_path / "a" / "1.txt", "one")
    write(tmp_path / "a" / ".hidden.txt", "no")
    write(tmp_path / "a" / "picture.png", b"\x89PNG")
    assert read(tmp_path) == [("a/1.txt", "one"), ("b/2.md", "two")]
    assert read(f"{tmp_path}/**/*.md") == [("2.md", "two")]
    for name in "12":
        write(tmp_path / "c" / f"{name}.jsonl", jsonl(ROWS[:1]))
    assert [i for i, _ in read(tmp_path / "c")] == ["1.jsonl#a", "2.jsonl#a"]


def test_columns_are_mapped_inline(tmp_path):
    rows = [
        {"key": 7, "title": "T", "body": "B", "t": "g1"},
        {"key": 8, "title": "", "body": "C", "t": 2},
    ]
    path = write(tmp_path / "a.jsonl", jsonl(rows))
    columns = {"text": ["title", "body"], "id": "key", "group": "t"}
    documents = list(read_documents(SourceSpec(path, columns=columns)))
    assert [(d.id, d.text, d.group) for d in documents] == [("7", "T\n\nB", "g1"), ("8", "C", "2")]


def test_empty_documents_are_counted_and_left_out(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([{"text": ""}, {"text": "x"}, {"text": " \n"}]))
    report = ReadReport()
    assert [d.id for d in read_documents(SourceSpec(path), report)] == ["a.jsonl:2"]
    assert report.dropped == {"empty": 2}
    assert report.examples == {"empty": ["a.jsonl:1", "a.jsonl:3"]}
    assert report.columns == {"text": "text"}


def test_saved_dataset_and_dataset_dict(tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(
        str(tmp_path / "two")
    )
    assert read(tmp_path / "one") == EXPECTED
    assert read(tmp_path / "two", split="test") == EXPECTED[:1]
    with pytest.raises(DataError, match="splits found: train, test"):
        read(tmp_path / "two", split="dev")
    with pytest.raises(DataError, match=r"columns found:  id, text\n.*needed: body"):
        read(tmp_path / "one", columns={"text": "body"})


def test_hub_dataset_offline_is_a_data_error(tmp_path):
    pytest.importorskip("datasets")
    program = (
        "from jaxrecipes.data.sources import *\n"
        "try: list(read_documents(SourceSpec('hub:nobody/nothing')))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("DataError hub:nobody/nothing: cannot be loaded")


def test_tfds_unknown_dataset_is_a_data_error():
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match="tfds:no_such_dataset: cannot be loaded"):
        read("tfds:no_such_dataset")


TFDS_BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class Texts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"body": tfds.features.Text(), "id": tfds.features.Scalar(np.int64)}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": ((i, {"body": f"größer {i}", "id": i}) for i in range(5))}

    def _generate_examples(self):
        return ()
"""


def test_tfds_folder_is_read_by_random_access_without_tensorflow(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    # etils, below tensorflow_datasets, names the back-port of this standard module when it builds.
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "texts_of_a_test" / "__init__.py", "")
    write(tmp_path / "texts_of_a_test" / "builder.py", TFDS_BUILDER)
    builder = importlib.import_module("texts_of_a_test.builder").Texts(
        data_dir=str(tmp_path / "data"), file_format="array_record"
    )
    builder.download_and_prepare()
    documents = read(f"tfds:{builder.data_dir}", columns={"text": "body"})
    assert sorted(documents) == [(str(i), f"größer {i}") for i in range(5)]
    assert documents == read(f"tfds:{builder.data_dir}", columns={"text": "body"})
    with pytest.raises(DataError, match=r"(?s)columns found:.*columns: \{text: body, id: id"):
        read(f"tfds:{builder.data_dir}", split="train[:2]", columns={"id": "id"})


def test_topics_are_read_in_order():
    documents = read("topics")
    assert len(documents) > 60
    assert [i for i, _ in documents] == sorted(i for i, _ in documents)


def test_docstrings_are_public_long_enough_unique_and_grouped():
    report = ReadReport()
    spec = SourceSpec("docstrings:numpy")
    documents = list(read_documents(spec, report))
    assert len(documents) > 300
    assert all(len(d.text) >= 300 + len(d.id) for d in documents)
    assert len({d.text.split("\n\n", 1)[1] for d in documents}) == len(documents)
    assert not any(part.startswith("_") for d in documents for part in d.id.split("."))
    assert {d.group for d in documents if d.id == "numpy.linalg.svd"} == {"svd"}
    assert not any(re.search(r" at 0x[0-9a-f]{6}", d.text) for d in documents)
    assert report.dropped["exact duplicate"] > 10
    with pytest.raises(DataError, match="no_such_package"):
        read("docstrings:no_such_package")


@pytest.mark.slow
def test_docstrings_are_the_same_in_every_process():
    program = (
        "from jaxrecipes.data.sources import *\n"
        "print(source_fingerprint(SourceSpec('docstrings'))['documents'])\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


BAD_FILES = {
    "empty": ("a.jsonl", b"", "a.jsonl: the file is empty"),
    "only empty lines": ("a.jsonl", b"\n\n", "only empty lines"),
    "only empty texts": ("a.jsonl", b'{"text": ""}\n', "no document was found (1 empty)"),
    "no json": ("a.jsonl", b'{"text": "a"}\nhello\n', "a.jsonl:2: this is not valid JSON"),
    "truncated json": ("a.jsonl", b'{"text": "a"}\n{"text": "b', "probably truncated"),
    "json array": ("a.json", b'["a", "b"]\n', "jq -c"),
    "pretty json": ("a.json", b'{\n "text": "a"\n}\n', "one large JSON value"),
    "deep json": ("a.jsonl", b"[" * 100_000, "nested too deeply"),
    "number as text": ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: column 'text' holds int 3"),
    "null as text": ("a.jsonl", b'{"text": null}\n', "holds null; expected a string"),
    "list as id": ("a.jsonl", b'{"text": "a", "id": []}\n', "id column 'id' holds list []"),
    "no text column": (
        "a.jsonl",
        b'{"key": "k", "body": "long text here"}\n',
        "columns: {text: body, id: key}",
    ),
    "column missing later": (
        "a.jsonl",
        b'{"text": "a"}\n{"body": "b"}\n',
        "a.jsonl:2: column 'text'",
    ),
    "id twice": ("a.jsonl", b'{"text":"a","id":1}\n{"text":"b","id":1}\n', "the id '1'"),
    "latin-1": ("a.txt", "ok\ngrün\n".encode("latin-1"), "a.txt:2: byte 2 of the line (0xfc)"),
    "utf-16": ("a.txt", "hello".encode("utf-16"), "iconv -f UTF-16"),
    "nul byte": ("a.txt", b"ab\ncd\x00ef\n", "a.txt:2: the line holds a NUL byte (byte 2)"),
    "nul escape": ("a.jsonl", b'{"text": "a\\u0000b"}\n', "NUL character (at character 1)"),
    "half a surrogate": ("a.jsonl", b'{"text": "a\\ud800"}\n', "surrogate"),
    "no gzip": ("a.txt.gz", b"plain text", "gzip"),
    "truncated gzip": (
        "a.txt.gz",
        gzip.compress(os.urandom(4000).hex().encode())[:900],
        "gzip data end",
    ),
    "csv width": ("a.csv", b"id,text\n1,a\n2,b,c\n", "a.csv:3: the row has 3 cells; expected 2"),
    "csv quotes": ("a.csv", b'text\n"abc\n', "not valid CSV"),
    "csv header": ("a.csv", b"text,text\na,b\n", "names a column twice"),
    "csv no text": ("a.csv", b"id,body\n1,a\n", "columns found:  id, body"),
    "csv only header": ("a.csv", b"id,text\n", "no document was found"),
    "no parquet": ("a.parquet", b"PAR1 nonsense", "cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_say_where_and_what(tmp_path, name):
    file, content, message = BAD_FILES[name]
    path = write(tmp_path / file, content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert message in str(caught.value)
    assert file in str(caught.value)


def test_a_huge_line_is_refused_without_being_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrecipes.data.files.MAX_LINE_BYTES", 2**20)
    path = write(tmp_path / "a.jsonl", b'{"text": "' + b"x" * 2**21 + b'"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: the line is longer than 1 MiB"):
        read(path)


def test_missing_files_propose_what_is_near(tmp_path):
    write(tmp_path / "corpus.jsonl", "{}")
    with pytest.raises(DataError, match="did you mean corpus.jsonl"):
        read(tmp_path / "corpsu.jsonl")
    with pytest.raises(DataError, match="does not exist either"):
        read(tmp_path / "no" / "a.jsonl")
    with pytest.raises(DataError, match="hub:"):
        read("squad_that_is_no_file")
    with pytest.raises(DataError, match="no file of a known kind"):
        read(f"{tmp_path}/*.nothing")


def test_mixed_kinds_and_wrong_options_are_refused(tmp_path):
    write(tmp_path / "a.jsonl", jsonl(ROWS))
    write(tmp_path / "a.txt", "text")
    with pytest.raises(DataError, match=r"several kinds \(jsonl, text\)"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="unknown source kind 'xml'"):
        read(tmp_path / "a.txt", kind="xml")
    with pytest.raises(ConfigError, match="unknown role 'label'"):
        read(tmp_path / "a.jsonl", columns={"label": "x"})
    with pytest.raises(ConfigError, match="unit"):
        read(tmp_path / "a.txt", unit="page")
    with pytest.raises(DataError, match="no saved dataset"):
        read(tmp_path, kind="saved_dataset")


def test_the_kind_is_found_by_looking(tmp_path):
    assert resolve_source(SourceSpec(write(tmp_path / "a", jsonl(ROWS)))).kind == "jsonl"
    assert resolve_source(SourceSpec(write(tmp_path / "b", "hello"))).kind == "text"
    assert resolve_source(SourceSpec("docstrings:a, b")).spec.modules == ("a", "b")
    assert resolve_source(SourceSpec("hub:org/name")).name == "org/name"
    assert resolve_source(SourceSpec("tfds:ag_news")).kind == "tfds"


def test_the_fingerprint_follows_the_bytes_and_not_the_place(tmp_path):
    one = SourceSpec(write(tmp_path / "x" / "a.jsonl", jsonl(ROWS)))
    moved = SourceSpec(write(tmp_path / "y" / "a.jsonl", jsonl(ROWS)))
    changed = SourceSpec(write(tmp_path / "z" / "a.jsonl", jsonl(ROWS[:2])))
    assert source_fingerprint(one) == source_fingerprint(moved)
    assert source_fingerprint(one) != source_fingerprint(changed)
    mapped = SourceSpec(one.reference, columns={"text": "id"})
    assert source_fingerprint(one) != source_fingerprint(mapped)


def test_real_corpora_are_read_whole(shared_data):
    wiki = read(shared_data / "wikitext2")
    assert len(wiki) == 2664
    assert len(read(shared_data / "scifact" / "corpus.jsonl.gz", columns={"id": "doc_id"})) == 5183
    with pytest.raises(DataError, match=r"columns: \{text: context, id: id\}"):
        read(shared_data / "lambada" / "test.jsonl")
