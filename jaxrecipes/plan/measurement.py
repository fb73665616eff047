"""What the compiler says about one program: memory, its largest buffers, operations, collectives.

A measurement is plain data: it can be written down and read again (`plan.cache`), without the
compiled program.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax

from jaxrecipes.errors import DeviceMemoryError
from jaxrecipes.plan.buffers import ARGUMENT, TEMPORARY, Buffer, compile_with_buffers
from jaxrecipes.plan.hlo import Account, Collective, CustomCall, account

# Rows of the buffer table that are kept.
LARGEST_BUFFERS = 8


@dataclass(frozen=True)
class Measurement:
    """One compiled program on one device. Sizes in bytes.

    Attributes:
        out_of_memory: The compiler's words where the program does not fit, else None.
        peak_bytes: Arguments, outputs and temporaries at the worst moment.
        assigned_bytes: `peak_bytes` and the gaps of the heap: what is compared with the limit.
        argument_bytes: Of the peak, what the program is given: weights, optimizer state, batch.
        temporary_bytes: Of the peak, what it makes and drops.
        host_bytes: Memory of the host that offloaded values take.
        peak_at: The operation at the peak.
        largest: The largest buffers alive at the peak, at most `LARGEST_BUFFERS`.
        account: Operations, traffic and collectives of one execution.
        compile_seconds: Time the compiler took; as measured when it ran, for a cached measurement.
    """

    out_of_memory: str | None
    peak_bytes: int
    assigned_bytes: int
    argument_bytes: int
    temporary_bytes: int
    host_bytes: int
    peak_at: str
    largest: tuple[Buffer, ...]
    account: Account
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether the compiler accepted the program."""
        return self.out_of_memory is None


def measure(lowered: jax.stages.Lowered, mesh: Mapping[str, int] | None) -> Measurement:
    """Compiles a program and asks the compiler about it.

    Args:
        lowered: The program.
        mesh: Axis sizes of the mesh that it was lowered for.

    Returns:
        The measurement, also of a program that does not fit.

    Raises:
        DeviceMemoryError: It does not fit, and the compiler says nothing more.
    """
    began = time.monotonic()
    # A hit in JAX's own cache of compiled programs would leave no account of the buffers.
    cached = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compilation = compile_with_buffers(lowered)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    seconds = time.monotonic() - began
    message, report = compilation.out_of_memory, compilation.buffers
    if message is not None and (report is None or not compilation.hlo_text):
        raise DeviceMemoryError(
            f"the step does not fit, and the compiler does not say what fills the memory: {message}"
        )
    counted = account(compilation.hlo_text, mesh)
    if report is None:
        # A compiler that dumps no assignment: its totals, without what fills them.
        assert compilation.compiled is not None
        memory: Any = compilation.compiled.memory_analysis()
        arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        total = arguments + temporaries + results
        return Measurement(
            message, total, total, arguments, temporaries, 0, "", (), counted, seconds
        )
    return Measurement(
        message.strip().splitlines()[0] if message else None,
        report.peak_bytes,
        report.assigned_bytes,
        report.total(ARGUMENT),
        report.total(TEMPORARY),
        report.host_bytes,
        report.peak_instruction,
        report.buffers[:LARGEST_BUFFERS],
        counted,
        seconds,
    )


def to_json(measurement: Measurement) -> dict[str, Any]:
    """Returns the measurement as JSON values."""
    return asdict(measurement)


def from_json(values: Mapping[str, Any]) -> Measurement:
    """Reads what `to_json` wrote.

    Args:
        values: JSON values.

    Returns:
        The measurement.

    Raises:
        TypeError: A field is missing or unknown.
        KeyError: The same.
    """
    counted = dict(values["account"])
    collectives = tuple(
        Collective(**{**one, "axes": tuple(one["axes"])}) for one in counted.pop("collectives")
    )
    calls = tuple(CustomCall(**one) for one in counted.pop("custom_calls"))
    plain = {key: value for key, value in values.items() if key not in ("account", "largest")}
    return Measurement(
        **plain,
        largest=tuple(Buffer(**one) for one in values["largest"]),
        account=Account(**counted, collectives=collectives, custom_calls=calls),
    )
