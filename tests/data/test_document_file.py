"""Documents on disk with random access."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrecipes.data.document_file import DOCUMENTS, OFFSETS, DocumentFile, write_document_file
from jaxrecipes.data.documents import Document
from jaxrecipes.errors import DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.none() | TEXTS), max_size=8))
def test_what_is_written_is_read(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("documents")
    documents = [Document(str(at), text, group) for at, (text, group) in enumerate(texts)]
    assert write_document_file(iter(documents), folder) == len(documents)
    found = DocumentFile(folder)
    assert list(found) == documents
    assert [found[at] for at in reversed(range(len(found)))] == documents[::-1]
    with pytest.raises(IndexError):
        found[len(documents)]


def test_damage_is_named(tmp_path):
    with pytest.raises(DataError, match="no documents can be read"):
        DocumentFile(tmp_path)
    write_document_file([Document("a", "one"), Document("b", "two")], tmp_path)
    with (tmp_path / DOCUMENTS).open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(DataError, match="describes another file"):
        DocumentFile(tmp_path)
    np.save(tmp_path / OFFSETS, np.zeros((2, 2), np.int64))
    with pytest.raises(DataError, match="describes another file"):
        DocumentFile(tmp_path)
