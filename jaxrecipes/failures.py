"""What the command line says, and returns, when something goes wrong.

| code | meaning |
|---|---|
| 0 | done |
| 1 | failure |
| 2 | wrong command line or config |
| 3 | data or a checkpoint cannot be used |
| 4 | out of memory |
| 5 | diverged |
| 75 | told to end (SIGTERM); the state is saved, the same command goes on |
| 130 | interrupted (Ctrl-C); the state is saved, the same command goes on |
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from jaxrecipes.errors import JaxrecipesError

LESS_MEMORY = (
    "Less memory is needed with a smaller train.micro_batch_size, then with train.remat=dots or "
    "full, a smaller train.loss_chunk, evaluate.batch_size or data.length, or "
    "model.compute_dtype=bfloat16; `jaxrecipes plan` estimates it."
)


@dataclass(frozen=True)
class Failure:
    """A failure in a user's words.

    Attributes:
        message: What is wrong and what to do.
        exit_code: What the process returns.
        unexpected: Whether it is an error of jaxrecipes itself.
    """

    message: str
    exit_code: int
    unexpected: bool = False


def describe_failure(error: BaseException) -> Failure:
    """Turns any exception into a message and an exit code.

    Args:
        error: What ended the command.

    Returns:
        The failure; `unexpected` where no rule knows the exception.
    """
    if isinstance(error, JaxrecipesError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted; the same command goes on where it can", 130)
    text = str(error).strip()
    # Libraries wrap a full disk in exceptions of their own.
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in text:
        place = _place(error)
        return Failure(
            f"the disk is full{place}; free some space or write elsewhere (output=FOLDER), then "
            "run the same command again: it goes on where it can",
            1,
        )
    if isinstance(error, MemoryError):
        return Failure(f"out of host memory: {text or 'allocation failed'}. {LESS_MEMORY}", 4)
    if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        return Failure(f"out of device memory: {text.splitlines()[0]}\n{LESS_MEMORY}", 4)
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return Failure(
            f"no permission{_place(error)}: {getattr(error, 'strerror', None) or text}; change the "
            "permissions or write elsewhere (output=FOLDER)",
            1,
        )
    if isinstance(error, OSError):
        return Failure(f"{error.strerror or text}{_place(error)}", 1)
    if isinstance(error, ModuleNotFoundError):
        return Failure(
            f"the Python package {error.name!r} is not installed; `jaxrecipes env` lists the "
            "extras that are missing, `pip install 'jaxrecipes[EXTRA]'` adds one",
            1,
        )
    return Failure(
        f"{type(error).__name__}: {text}\nThis is an error in jaxrecipes, not in what you gave it. "
        "--debug shows where it happened; please report it with that.",
        1,
        unexpected=True,
    )


def _place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" ({name})" if name else ""
