"""What the JSON files of a sentence-transformers folder say around its encoder.

Read are `modules.json` (a Transformer, a Pooling, at most one Normalize), `<n>_Pooling/config.json`
(both spellings, sentence-transformers 2 to 5 and 6), `sentence_bert_config.json` and
`config_sentence_transformers.json`. Whatever would change an embedding and is not computed here is
an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jaxrecipes.checkpoint.config_reader import ConfigReader, read_json, read_json_value
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.pooling import POOLING_MODES, PoolingMode

MODULES = "modules.json"
_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "pooling_mode"}
# Older versions named the file after the family.
_TRANSFORMER_FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_xlm-roberta_config.json",
)
_TRANSFORMER_VALUES: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


@dataclass(frozen=True)
class SentenceSettings:
    """How a folder's encoder is to be used.

    Attributes:
        folder: Where the encoder's own files are.
        pooling: How a text's hidden states become one vector.
        normalize: The folder's embeddings have length one.
        max_tokens: Longest input in tokens; None where nothing is said.
        lower_case: Texts are lower-cased before they are tokenized.
        prompts: Name -> text that is put before a text.
        default_prompt: The text that is put before every text where nothing else is asked for.
    """

    folder: Path
    pooling: PoolingMode
    normalize: bool
    max_tokens: int | None
    lower_case: bool
    prompts: Mapping[str, str]
    default_prompt: str


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """Reads the settings of a checkpoint folder.

    Args:
        folder: A sentence-transformers folder, or a plain one without `modules.json`: that has mean
            pooling (as sentence-transformers takes it, and as Contriever was trained), no
            normalisation and no prompts.

    Returns:
        The settings.

    Raises:
        CheckpointError: A file is missing or damaged, or asks for a module, a pooling or a setting
            that is not supported; the message names it.
    """
    if not (folder / MODULES).exists():
        return SentenceSettings(folder, "mean", False, None, False, {}, "")
    transformer, pooling, normalize = _modules(folder)
    max_tokens, lower_case = _transformer_settings(transformer)
    prompts, default_prompt = _prompts(folder)
    return SentenceSettings(
        transformer,
        _pooling(pooling / "config.json"),
        normalize,
        max_tokens,
        lower_case,
        prompts,
        default_prompt,
    )


def _modules(folder: Path) -> tuple[Path, Path, bool]:
    path = folder / MODULES
    listed = read_json_value(path)
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f"{path}: expected a list of modules")
    kinds: list[str] = []
    places: list[Path] = []
    for number, module in enumerate(listed):
        reader = ConfigReader(module, f"{path}: module {number}")
        kind, place = reader.text("type"), reader.text("path")
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise CheckpointError(f"{path}: module {number} has the path {place!r}, outside of it")
        ours = kind.startswith("sentence_transformers.")
        kinds.append(kind.rpartition(".")[2] if ours else kind)
        places.append(folder / place)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        wrong = next(
            (kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")), None
        )
        what = f"module {wrong} is not supported" if wrong else "this order is not supported"
        raise CheckpointError(
            f"{path}: the modules are {', '.join(kinds) or 'none'}; {what}: expected Transformer, "
            "Pooling and, at most, Normalize"
        )
    if len(places) == 3 and (places[2] / "config.json").exists():
        settings = read_json(places[2] / "config.json")
        for key, value in settings.items():
            if value != "sentence_embedding":
                raise CheckpointError(
                    f"{places[2] / 'config.json'}: key {key!r} is {value!r}; only "
                    "'sentence_embedding' is supported"
                )
    return places[0], places[1], len(places) == 3


def _pooling(path: Path) -> PoolingMode:
    values = read_json(path)
    reader = ConfigReader(values, str(path))
    if not reader.boolean("include_prompt", True):
        raise CheckpointError(
            f"{path}: key 'include_prompt' is false; pooling without the prompt's tokens is not "
            "supported"
        )
    for key in sorted(set(values) - _POOLING_KEYS - set(_LEGACY_MODES) - {"include_prompt"}):
        raise CheckpointError(f"{path}: key {key!r} is unknown; it may change what is pooled")
    modes: Any = values.get("pooling_mode")
    if modes is None:
        # The library's own default where every one of the old keys is false.
        modes = [mode for key, mode in _LEGACY_MODES.items() if values.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise CheckpointError(
            f"{path}: the pooling mode is {modes!r}; supported is one of {', '.join(POOLING_MODES)}"
        )
    return cast(PoolingMode, modes[0])


def _transformer_settings(folder: Path) -> tuple[int | None, bool]:
    path = next((folder / name for name in _TRANSFORMER_FILES if (folder / name).exists()), None)
    if path is None:
        return None, False
    values = read_json(path)
    reader = ConfigReader(values, str(path))
    for key, value in values.items():
        if key in ("max_seq_length", "do_lower_case", "unpad_inputs") or value in (None, {}):
            continue
        if key not in _TRANSFORMER_VALUES or value != _TRANSFORMER_VALUES[key]:
            raise CheckpointError(
                f"{path}: key {key!r} has the value {value!r}, which is not supported"
            )
    return reader.optional_integer("max_seq_length"), reader.boolean("do_lower_case", False)


def _prompts(folder: Path) -> tuple[dict[str, str], str]:
    path = folder / "config_sentence_transformers.json"
    if not path.exists():
        return {}, ""
    values = read_json(path)
    reader = ConfigReader(values, str(path))
    if values.get("truncate_dim") is not None:
        raise CheckpointError(
            f"{path}: key 'truncate_dim' is {values['truncate_dim']!r}; shortened embeddings are "
            "not supported"
        )
    if reader.text("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise CheckpointError(
            f"{path}: key 'model_type' is {values['model_type']!r}; only 'SentenceTransformer' is "
            "supported"
        )
    listed = values.get("prompts") or {}
    if not isinstance(listed, dict) or not all(
        text is None or isinstance(text, str) for text in listed.values()
    ):
        raise CheckpointError(f"{path}: key 'prompts' is {listed!r}; expected names and texts")
    prompts = {str(name): text for name, text in listed.items() if text is not None}
    name = values.get("default_prompt_name")
    if name is not None and name not in prompts:
        raise CheckpointError(
            f"{path}: key 'default_prompt_name' is {name!r}, which is not among the prompts: "
            f"{', '.join(prompts) or 'there are none'}"
        )
    return prompts, prompts[name] if name is not None else ""
