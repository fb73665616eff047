"""Tokenizers of checkpoints."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Everything in a checkpoint's folder that says how text becomes token ids and back.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION_FILE = "generation_config.json"


def load_tokenizer(reference: str | Path) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a checkpoint, without running any code that the checkpoint brings.

    Args:
        reference: As for `import_checkpoint`: folder, .gguf file, `package:<name>` or hub id.

    Returns:
        A tokenizer as `transformers.AutoTokenizer` makes it, so that whoever loads the exported
        checkpoint gets the same token ids.

    Raises:
        CheckpointError: There is no tokenizer, it cannot be read, or it needs code of its own.
    """
    source = resolve_reference(reference)
    if source.is_file():
        # Imported here: reading GGUF is not needed for other checkpoints.
        from jaxrecipes.checkpoint.gguf_tokenizer import write_gguf_tokenizer

        with tempfile.TemporaryDirectory(prefix="jaxrecipes-tokenizer-") as folder:
            write_gguf_tokenizer(source, Path(folder))
            tokenizer = _load_folder(Path(folder))
        tokenizer.name_or_path = str(source)
        return tokenizer
    return _load_folder(source)


def _load_folder(folder: Path) -> PreTrainedTokenizerFast:
    # Imported here: it takes two seconds, and reading weights does not need it.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer; expected tokenizer.json and tokenizer_config.json"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # the libraries below raise bare exceptions of many classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {reason}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"the tokenizer in {folder} is a {type(tokenizer).__name__}, which has no "
            f"tokenizer.json form; convert it with transformers first"
        )
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hashes all that decides which token ids a text gets.

    Args:
        tokenizer: Any fast tokenizer.

    Returns:
        sha256 as 64 hex digits. Equal for a tokenizer and its saved copy; the chat template and the
        passing state (padding, truncation) do not count.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    state["special"] = {
        name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())
    }
    text = json.dumps(state, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def end_token_ids(source: Path, hf_config: Mapping[str, Any]) -> list[int]:
    """Returns the tokens that end a text, as `transformers.generate` finds them.

    Chat models have several.

    Args:
        source: A checkpoint's folder or file.
        hf_config: Its `config.json`.
    """
    settings = [hf_config]
    if (source / GENERATION_FILE).is_file():
        settings.append(json.loads((source / GENERATION_FILE).read_text(encoding="utf-8")))
    found: list[int] = []
    for section in settings:
        ids = section.get("eos_token_id")
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return found


def copy_tokenizer(reference: str | Path, folder: Path) -> None:
    """Copies tokenizer, chat template and generation settings into a folder, byte for byte.

    Args:
        reference: Where they are, as for `load_tokenizer`; a GGUF file's are rebuilt.
        folder: An existing folder.

    Raises:
        CheckpointError: The source has no tokenizer.
    """
    source = resolve_reference(reference)
    if source.is_file():
        from jaxrecipes.checkpoint.gguf_tokenizer import write_gguf_tokenizer

        write_gguf_tokenizer(source, folder)
        return
    found = [name for name in TOKENIZER_FILES if (source / name).exists()]
    if not found:
        raise CheckpointError(f"{source} has no tokenizer files to copy")
    for name in (*found, GENERATION_FILE):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, folder / templates.name)


def write_chat_template(text: str, folder: Path) -> None:
    """Writes a chat template beside a tokenizer, in the place of all that it came with.

    Args:
        text: Jinja.
        folder: Where a tokenizer was copied to.
    """
    (folder / "chat_template.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "additional_chat_templates", ignore_errors=True)
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        values = json.loads(settings.read_text(encoding="utf-8"))
        if values.pop("chat_template", None) is not None:
            settings.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
