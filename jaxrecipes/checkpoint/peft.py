"""PEFT's adapter folders, `adapter_config.json` and `adapter_model.safetensors`, both ways.

PEFT loads a file with a wrong prefix, or with tensors missing, after a warning and then computes
the base; here every tensor that the config asks for must be there, and every tensor that is there
must be asked for. PEFT keeps A as [rank, inputs] and B as [outputs, rank], the canonical leaves
transposed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxrecipes.checkpoint.config_reader import read_json
from jaxrecipes.checkpoint.names import tensor_names
from jaxrecipes.checkpoint.peft_config import (
    PeftConfig,
    adapter_config,
    doubled,
    parse_adapter_config,
)
from jaxrecipes.checkpoint.peft_names import HEAD, PREFIX, decoder_modules
from jaxrecipes.checkpoint.tensor_files import StoredTensor, open_tensor_file, shorten
from jaxrecipes.durable import replace_folder, synchronise
from jaxrecipes.errors import CheckpointError, ConfigError
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.params.lora import split_adapters, weight_of
from jaxrecipes.params.lora_init import start_adapter
from jaxrecipes.params.lora_options import RESIDUAL_INITS, AdapterOptions
from jaxrecipes.params.lora_targets import Adapter, Selection, select_modules
from jaxrecipes.params.partition import combine
from jaxrecipes.params.paths import Tree, flatten, unflatten

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True)
class LoadedAdapter:
    """Adapters that were read, on their base.

    Attributes:
        options: What `adapter_config.json` says.
        selection: What that selects in the model.
        params: Canonical tree: the base with the adapters and with the modules that trained whole.
    """

    options: AdapterOptions
    selection: Selection
    params: Tree


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file: its name and what it is in the canonical tree.

    Attributes:
        name: In the file.
        path: Canonical path.
        shape: In the file.
        transposed: The file holds the transposed leaf.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    transposed: bool = False


def write_adapter(
    folder: str | Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    options: AdapterOptions,
    *,
    initial: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> Path:
    """Writes adapters so that PEFT loads them on the base that they were made for.

    Adapters that took a part of their kernel ("pissa", "olora") are written relative to the whole
    base, as `s (A B - A0 B0) = s [A, A0] [B; -B0]`: plain ones of twice the rank, because PEFT
    would otherwise decompose the base again, and change it, when it loads them.

    Args:
        folder: Where to; created. An earlier adapter there is replaced.
        config: The model.
        params: Canonical tree with adapters; of the base only modules that trained whole are
            written (and, as PEFT does, an embedding with an adapter).
        options: The adapters' options.
        initial: `Adapted.initial` of `lora.build_adapters`; needed for "pissa" and "olora".
        base_model: Name or path of the base for the config.

    Returns:
        `folder`.

    Raises:
        CheckpointError: The tree does not have the leaves that the options ask for, or has others,
            `folder` holds something else, or it cannot be written.
    """
    folder = Path(folder).absolute()
    modules = decoder_modules(config)
    adapters, base = split_adapters(params)
    leaves = flatten(adapters)
    if options.init in RESIDUAL_INITS:
        if initial is None or not initial:
            raise CheckpointError(
                f"adapters of init {options.init} are written relative to the base that they took a"
                " part of, and the initial A and B are missing: give those of build_adapters"
            )
        leaves = _relative_to_base(leaves, flatten(initial))
        options = doubled(options)
    selection = select_modules(options, modules)
    ties_weights = config.tie_embeddings and "embedding/table" in selection.saved_leaves
    if ties_weights:
        # The tied head is written, as PEFT does, but follows from the embedding.
        kept = tuple(name for name in options.modules_to_save if not HEAD.endswith(name))
        options = replace(options, modules_to_save=kept)
        selection = select_modules(options, modules)
    entries = _entries(config, selection)
    leaves |= {path: flatten(base)[path] for path in selection.saved_leaves}
    tensors = _tensors(entries, leaves, selection)
    if ties_weights:
        tensors[f"{PREFIX}{HEAD}.weight"] = tensors[f"{PREFIX}{EMBEDDING}.weight"]
    values = adapter_config(
        options, selection, modules, base_model=base_model, ties_weights=ties_weights
    )
    if _keeps_embedding(values["target_modules"], selection):
        table = np.asarray(flatten(base)["embedding/table"])
        tensors[f"{PREFIX}{EMBEDDING}.base_layer.weight"] = table
    _write(folder, values, tensors)
    return folder


def read_adapter(
    folder: str | Path, config: ModelConfig, params: Mapping[str, Any]
) -> LoadedAdapter:
    """Reads adapters that PEFT or `write_adapter` wrote.

    Args:
        folder: Has `adapter_config.json` and `adapter_model.safetensors`.
        config: The base model.
        params: Its canonical tree; not changed.

    Returns:
        The base with the adapters. Adapters are float32; modules that trained whole have the dtype
        of the file. "pissa" and "olora" adapters that were not converted stand beside what is left
        of the base, as in PEFT.

    Raises:
        CheckpointError: A file is missing or damaged, the config has a key that is not supported,
            a tensor is missing, has another shape or is not asked for. Names it.
    """
    folder = Path(folder)
    file = folder / WEIGHTS_FILE
    if not file.exists():
        pickled = sorted(path.name for path in folder.glob("adapter_model.bin"))
        hint = f"; {pickled[0]} is a pickle, which is never read" if pickled else ""
        raise CheckpointError(f"{file} is missing{hint}; save the adapter with safetensors")
    config_file = str(folder / CONFIG_FILE)
    parsed = parse_adapter_config(read_json(folder / CONFIG_FILE), where=config_file)
    options = parsed.options
    modules = decoder_modules(config)
    try:
        selection = select_modules(options, modules, strict=False)
    except ConfigError as error:
        raise CheckpointError(f"{config_file}: {error}") from None
    stored = open_tensor_file(file)
    entries = _entries(config, selection)
    _refuse_untied(config, parsed, selection, config_file)
    _refuse_wrong_tensors(file, entries, _optional(config, selection), stored)
    base = flatten(params)
    _refuse_other_base(file, base, selection, stored)
    leaves: dict[str, Any] = {}
    for entry in entries:
        array = stored[entry.name].read()
        is_whole = entry.path in selection.saved_leaves
        array = array if is_whole else array.astype(np.float32)
        leaf = jnp.asarray(np.ascontiguousarray(array.T if entry.transposed else array))
        (base if is_whole else leaves)[entry.path] = leaf
    for adapter in selection.adapters:
        leaves[f"{adapter.module.path}/lora_scale"] = jnp.asarray(adapter.scale, jnp.float32)
        if options.init in RESIDUAL_INITS and adapter.module.kind == "linear":
            base[weight_of(adapter)] = _residual(base[weight_of(adapter)], adapter, options)
    if options.trainable_tokens:
        leaves["embedding/token_ids"] = jnp.asarray(options.trainable_tokens, jnp.int32)
    return LoadedAdapter(options, selection, combine(unflatten(leaves), unflatten(base)))


def _residual(kernel: Any, adapter: Adapter, options: AdapterOptions) -> Any:
    # The key is not used: both are decompositions.
    start = start_adapter(
        jnp.asarray(kernel), adapter.rank, adapter.scale, options.init, jax.random.key(0)
    )
    return start.residual


def _entries(config: ModelConfig, selection: Selection) -> list[_Entry]:
    """Lists the tensors that a selection consists of."""
    entries: list[_Entry] = []
    for adapter in selection.adapters:
        module, rank = adapter.module, adapter.rank
        name, path = PREFIX + module.name, module.path
        is_embedding = module.kind == "embedding"
        a, b = (
            ("lora_embedding_A", "lora_embedding_B")
            if is_embedding
            else ("lora_A.weight", "lora_B.weight")
        )
        entries.append(_Entry(f"{name}.{a}", f"{path}/lora_a", (rank, module.inputs), True))
        entries.append(_Entry(f"{name}.{b}", f"{path}/lora_b", (module.outputs, rank), True))
        if selection.use_dora:
            magnitude = f"{path}/lora_magnitude"
            entries.append(_Entry(f"{name}.lora_magnitude_vector", magnitude, (module.outputs,)))
    rows = tensor_names(config)
    for path in selection.saved_leaves:
        row = rows[path]
        entries.append(_Entry(PREFIX + row.huggingface, path, row.stored_shape, row.transposed))
    if selection.tokens[0]:
        name = f"{PREFIX}{EMBEDDING}.token_adapter.trainable_tokens_delta"
        entries.append(_Entry(name, "embedding/token_delta", selection.tokens))
    return entries


def _optional(config: ModelConfig, selection: Selection) -> set[str]:
    """Tensors that PEFT writes beside what it needs: they repeat others."""
    names = set()
    if any(adapter.module.kind == "embedding" for adapter in selection.adapters):
        names.add(f"{PREFIX}{EMBEDDING}.base_layer.weight")
    if config.tie_embeddings and "embedding/table" in selection.saved_leaves:
        names.add(f"{PREFIX}{HEAD}.weight")
    return names


def _keeps_embedding(targets: str | list[str], selection: Selection) -> bool:
    """Whether PEFT writes the embedding's own weight beside its adapter: where a target says so."""
    adapted = any(adapter.module.kind == "embedding" for adapter in selection.adapters)
    named = isinstance(targets, str) or EMBEDDING.rpartition(".")[2] in targets
    return adapted and named and not selection.tokens[0]


def _tensors(
    entries: list[_Entry], leaves: Mapping[str, Any], selection: Selection
) -> dict[str, np.ndarray]:
    left = dict(leaves)
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        if entry.path not in left:
            raise CheckpointError(
                f"the tree lacks {entry.path}, which the adapters' options ask for"
            )
        array = np.asarray(left.pop(entry.path))
        array = np.ascontiguousarray(array.T if entry.transposed else array)
        if array.shape != entry.shape:
            raise CheckpointError(
                f"{entry.path} has shape {list(leaves[entry.path].shape)}; the adapters' options "
                f"ask for {list(entry.shape[::-1] if entry.transposed else entry.shape)}"
            )
        tensors[entry.name] = array
    for adapter in selection.adapters:
        found = left.pop(f"{adapter.module.path}/lora_scale", None)
        if found is None or not np.isclose(float(found), adapter.scale, rtol=1e-6):
            raise CheckpointError(
                f"{adapter.module.path}/lora_scale is {found}; the options say {adapter.scale}, "
                "and the file holds the options only"
            )
        for name in ("lora_dropout", "lora_salt"):  # the rate is in the config
            left.pop(f"{adapter.module.path}/{name}", None)
    left.pop("embedding/token_ids", None)
    if left:
        raise CheckpointError(
            f"the tree has leaves that the adapters' options do not name: {shorten(sorted(left))}"
        )
    return tensors


def _relative_to_base(leaves: Mapping[str, Any], initial: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `[A, A0]` and `[B; -B0]` for all adapters; where nothing was taken A0, B0 are 0."""
    changed = dict(leaves)
    for path, leaf in leaves.items():
        name = path.rpartition("/")[2]
        if name in ("lora_a", "lora_b"):
            new = np.asarray(leaf)
            old = np.asarray(initial[path]) if path in initial else np.zeros_like(new)
            parts = [new, old] if name == "lora_a" else [new, -old]
            changed[path] = np.concatenate(parts, axis=1 if name == "lora_a" else 0)
    return changed


def _refuse_untied(
    config: ModelConfig, parsed: PeftConfig, selection: Selection, where: str
) -> None:
    """Refuses adapters with which PEFT would compute another head than the tied one."""
    if not config.tie_embeddings:
        return
    saved = "embedding/table" in selection.saved_leaves
    adapted = any(adapter.module.kind == "embedding" for adapter in selection.adapters)
    if saved and not parsed.ties_weights:
        raise CheckpointError(
            f"{where}: 'modules_to_save' has the embedding of a model whose head is tied to it, "
            "and 'ensure_weight_tying' is false: PEFT trained a copy and kept the old head. Merge "
            "the adapter with PEFT, save the model with tie_word_embeddings false, and import that"
        )
    if adapted and parsed.ties_weights:
        raise CheckpointError(
            f"{where}: 'ensure_weight_tying' with an adapter on the embedding adapts the tied "
            "head, too, which is not supported; merge the adapter with PEFT and import the result"
        )


def _refuse_wrong_tensors(
    file: Path, entries: list[_Entry], optional: set[str], stored: Mapping[str, StoredTensor]
) -> None:
    names = {entry.name for entry in entries}
    missing = sorted(names - set(stored))
    spare = sorted(set(stored) - names - optional)
    if missing and spare and not any(name.startswith(PREFIX) for name in stored):
        raise CheckpointError(
            f"{file}: no tensor starts with {PREFIX!r}, for example {spare[0]}; PEFT would load "
            f"none of them and compute the base. Expected names such as {missing[0]}"
        )
    if missing:
        raise CheckpointError(
            f"{file} lacks {len(missing)} tensors that {CONFIG_FILE} asks for: {shorten(missing)}"
        )
    if spare:
        raise CheckpointError(
            f"{file} has {len(spare)} tensors that {CONFIG_FILE} does not ask for: {shorten(spare)}"
        )
    for entry in entries:
        if stored[entry.name].shape != entry.shape:
            raise CheckpointError(
                f"{file}: tensor {entry.name} has shape {list(stored[entry.name].shape)}; the "
                f"config and the base ask for {list(entry.shape)}"
            )


def _refuse_other_base(
    file: Path,
    base: Mapping[str, Any],
    selection: Selection,
    stored: Mapping[str, StoredTensor],
) -> None:
    """Compares what the file repeats of the base, or of another tensor in it."""
    kept = stored.get(f"{PREFIX}{EMBEDDING}.base_layer.weight")
    if kept is not None:
        table = np.asarray(base["embedding/table"])
        if kept.shape != table.shape or not np.array_equal(kept.read().astype(table.dtype), table):
            raise CheckpointError(
                f"{file}: tensor {kept.name} is not the base's embedding; the adapter was trained "
                "on another base, or on one with a resized vocabulary"
            )
    head = stored.get(f"{PREFIX}{HEAD}.weight")
    table = stored.get(f"{PREFIX}{EMBEDDING}.weight")
    if head is None or table is None or "head/kernel" in base:
        return
    if not np.array_equal(head.read(), table.read()):
        raise CheckpointError(
            f"{file}: {head.name} differs from {table.name}, but the base ties the two"
        )


def _write(folder: Path, values: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> None:
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG_FILE).exists())
    ):
        raise CheckpointError(
            f"{folder} exists and is not an adapter; nothing was written. Choose another folder"
        )
    partial = folder.parent / f".{folder.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
        partial.mkdir(parents=True)
        save_file(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (partial / CONFIG_FILE).write_text(text, encoding="utf-8")
        for path in [*partial.iterdir(), partial]:
            synchronise(path)
        replace_folder(partial, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} could not be written: {error}; free space or choose another folder. Nothing "
            "was changed there"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
