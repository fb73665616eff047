"""The errors a user can meet, each with the exit code that the command line returns for it.

A message says what is wrong, where (file, line, key or tensor), what was expected and what to do.
Nothing here imports anything heavy: the command line needs these classes before it needs JAX.
"""

from __future__ import annotations


class JaxrecipesError(Exception):
    """Base of all errors that are reported without a traceback. Exit code 1."""

    exit_code = 1


class UsageError(JaxrecipesError):
    """The command line was called wrongly. Exit code 2."""

    exit_code = 2


class ConfigError(JaxrecipesError):
    """A config file, an override or a rule is wrong. Exit code 2."""

    exit_code = 2


class DataError(JaxrecipesError):
    """Input data cannot be used as it is. Exit code 3."""

    exit_code = 3


class CheckpointError(JaxrecipesError):
    """A checkpoint (model, tokenizer or training state) cannot be used as it is. Exit code 3."""

    exit_code = 3


class DeviceMemoryError(JaxrecipesError):
    """The work does not fit into the device's memory. Exit code 4."""

    exit_code = 4


class DivergedError(JaxrecipesError):
    """Training met more non-finite or outlying losses than its limit allows. Exit code 5."""

    exit_code = 5


class PreemptedError(JaxrecipesError):
    """The process was told to end (SIGTERM); its state was saved. Exit code 75."""

    exit_code = 75


class InterruptedRunError(JaxrecipesError):
    """The user interrupted the run (Ctrl-C); its state was saved. Exit code 130."""

    exit_code = 130
