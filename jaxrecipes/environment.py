"""What a run ran on: interpreter, packages, processors, memory and devices. No secrets."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

PACKAGES = (
    "jaxrecipes",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
)

# Extra -> a module that it installs.
EXTRAS = {
    "tpu": "libtpu",
    "gpu": "jax_cuda13_plugin",
    "ray": "ray",
    "harness": "lm_eval",
    "datasets": "datasets",
    "tfds": "tensorflow_datasets",
    "rouge": "jieba",
    "wandb": "wandb",
    "mlflow": "mlflow",
}

# Shown because they change what runs where. Variables that may hold a secret are never read.
VARIABLES = (
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_COMPILATION_CACHE_DIR",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)


def describe_environment(folder: str | os.PathLike[str] = ".") -> dict[str, Any]:
    """Describes the machine and the packages. Imports JAX and starts its devices.

    Args:
        folder: Free space is that of the disk that holds it (or its nearest existing parent).

    Returns:
        JSON values: python, platform, cpus, memory_bytes, disk_free_bytes, packages (None where not
        installed), missing_extras, variables, and devices (a list) or devices_error (text).
    """
    import psutil

    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    described: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_available_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": shutil.disk_usage(place).free,
        "packages": {name: _version(name) for name in PACKAGES},
        "missing_extras": [
            extra for extra, module in EXTRAS.items() if importlib.util.find_spec(module) is None
        ],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    try:
        described["devices"] = _devices()
    except Exception as error:  # a broken driver must not keep `env` from showing the rest
        described["devices_error"] = str(error).strip() or type(error).__name__
    return described


def _devices() -> list[dict[str, Any]]:
    import jax

    found = []
    for device in jax.devices():
        statistics = device.memory_stats() or {}
        found.append(
            {
                "id": device.id,
                "kind": device.device_kind,
                "platform": device.platform,
                "process": device.process_index,
                "memory_bytes": statistics.get("bytes_limit"),
            }
        )
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
