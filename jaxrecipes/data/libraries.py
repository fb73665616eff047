"""Rows out of Hugging Face ``datasets`` and TensorFlow Datasets, both optional."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrecipes.data.documents import RowReader, T_co
from jaxrecipes.errors import DataError


def read_saved_dataset(folder: Path, rows: RowReader[T_co], *, split: str) -> Iterator[T_co]:
    """Reads a folder written by ``datasets.Dataset.save_to_disk`` (or ``DatasetDict``).

    Raises:
        DataError: ``datasets`` is not installed, the folder is damaged, or the split is unknown.
    """
    datasets = _library("datasets", "datasets")
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow, JSON and OS errors, all about the folder's content
        raise DataError(
            f"{folder}: cannot be read as a saved dataset ({_first_line(error)}); expected what "
            "Dataset.save_to_disk writes. Save it again."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(
                f"{folder}: split {split!r} not found; splits found: {', '.join(loaded)}. Set "
                "split: to one of them."
            )
        loaded = loaded[split]
    yield from _items(loaded, str(folder), rows)


def read_hub_dataset(
    name: str, rows: RowReader[T_co], *, subset: str | None, split: str
) -> Iterator[T_co]:
    """Reads a dataset of the Hugging Face hub through its cache (HF_HUB_OFFLINE is honoured).

    Raises:
        DataError: ``datasets`` is not installed, or the dataset, subset or split cannot be had.
    """
    datasets = _library("datasets", "datasets")
    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the library raises many kinds: offline, unknown, gated, bad split
        raise DataError(
            f"hub:{name}: cannot be loaded, subset {subset!r}, split {split!r} "
            f"({type(error).__name__}: {_first_line(error)}). Check the name and the network, or "
            "download the files and give their path."
        ) from None
    yield from _items(loaded, f"hub:{name}", rows)


def read_tfds(name: str, rows: RowReader[T_co], *, split: str) -> Iterator[T_co]:
    """Reads a TensorFlow dataset by random access (``tfds.data_source``; TensorFlow is not needed).

    Args:
        name: ``name``, ``name/config:version``, or the folder of a prepared dataset version.
        rows: Makes rows items; byte strings are decoded as UTF-8.
        split: Split name or slice, such as ``train[:1%]``.

    Raises:
        DataError: ``tensorflow_datasets`` is not installed, or the dataset cannot be had.
    """
    tfds = _library("tensorflow_datasets", "tfds")
    try:
        if Path(name).is_dir():
            source = tfds.builder_from_directory(name).as_data_source(split=split)
        else:
            source = tfds.data_source(name, split=split)
    except Exception as error:  # unknown name, no network, no TensorFlow to prepare it, bad split
        raise DataError(
            f"tfds:{name}: cannot be loaded, split {split!r} ({type(error).__name__}: "
            f"{_first_line(error)}). Expected a dataset prepared as ArrayRecord: on a machine with "
            f"TensorFlow, tfds build {name} --file_format=array_record; then give its folder: "
            "tfds:<folder with dataset_info.json>."
        ) from None
    table = (source[index] for index in range(len(source)))
    yield from _items(table, f"tfds:{name}", rows)


def _items(table: Any, where: str, rows: RowReader[T_co]) -> Iterator[T_co]:
    for number, row in enumerate(table, start=1):
        place = f"{where}: row {number}"
        values = {key: _decode(value, f"{place}: column {key!r}") for key, value in row.items()}
        if number == 1:
            strings = [key for key, value in values.items() if isinstance(value, str)]
            rows.resolve(list(values), where=place, text_like=strings)
        item = rows.make(values, where=place, default_id=str(number), id_prefix="")
        if item is not None:
            yield item


def _decode(value: Any, where: str) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: byte {error.start} is not UTF-8; expected UTF-8 text. Map another "
                f"column."
            ) from None
    # NumPy integers (ids in TFDS) become Python ones.
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _library(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"this source needs the package {module!r}, which cannot be imported ({error}). "
            f"Install it: pip install 'jaxrecipes[{extra}]'"
        ) from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
