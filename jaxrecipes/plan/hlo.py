"""Accounts for a compiled program: collectives, matrix products and memory traffic of one step.

The compiler's own `cost_analysis` counts the body of a loop once and knows nothing of the mesh.
Here the optimised program's text is walked from its entry, loops are multiplied out, and every
collective is attributed to mesh axes. All figures are of one device and one execution.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxrecipes.plan.hlo_flops import gemm_call, instruction_flops
from jaxrecipes.plan.hlo_groups import group_axes, parse_groups
from jaxrecipes.plan.hlo_loops import trip_count
from jaxrecipes.plan.hlo_shapes import shape_bytes
from jaxrecipes.plan.hlo_text import Computation, Instruction, Program, read_program, tuple_elements
from jaxrecipes.plan.hlo_traffic import Traffic

COLLECTIVES = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
    "collective-permute",
)
# Custom calls that the compiler itself inserts as notes or to reserve memory: they do no work.
_NOTES = (
    "AllocateBuffer",
    "ConcatBitcast",
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "AssumeGatherIndicesInBound",
    "GatherScatterIndicesBitpacked",
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "annotate_device_placement",
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_OPERATION = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same devices with the same sizes.

    Attributes:
        kind: HLO's name: "all-gather", "reduce-scatter", "all-reduce", "all-to-all",
            "collective-permute", ...
        axes: Mesh axes that it runs over; empty where no mesh was given or no device takes part.
        group_size: Devices that take part together (2 for a permute).
        count: Executions in one step.
        operand_bytes: What one device puts in at one execution.
        result_bytes: What one device gets out at one execution.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    count: int
    operand_bytes: int
    result_bytes: int

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device must send over the network in a step, by the best algorithm.

        A ring sends (n-1)/n of the gathered result for an all-gather, of the operand for a
        reduce-scatter, both for an all-reduce; (n-1)/n of the operand leave for an all-to-all.
        """
        share = (self.group_size - 1) / self.group_size if self.group_size else 0.0
        one = {
            "all-gather": share * self.result_bytes,
            "reduce-scatter": share * self.operand_bytes,
            "all-reduce": 2 * share * self.operand_bytes,
            "all-to-all": share * self.operand_bytes,
            "ragged-all-to-all": share * self.operand_bytes,
        }.get(self.kind, float(self.operand_bytes))
        return one * self.count


@dataclass(frozen=True)
class CustomCall:
    """Calls of one kernel that the compiler cannot see into: its operations are not counted.

    Attributes:
        target: "tpu_custom_call" for a Pallas kernel.
        name: JAX's name of the operation.
        count: Executions in one step.
    """

    target: str
    name: str
    count: int


@dataclass(frozen=True)
class Account:
    """What one execution of a program does on one device.

    Attributes:
        matmul_flops: Operations of all matrix products that the compiler sees, two a multiply-add.
            Kernels in `custom_calls` come on top.
        hbm_bytes: Bytes that instructions read from and write to device memory: every operand and
            result of every executed instruction, slices by their own size, what the compiler keeps
            in the TPU's vector memory left out. An upper estimate where fused kernels read an
            operand only once, a lower one where they read it more often.
        collectives: By kind, axes and size, largest traffic first.
        custom_calls: Kernels, by name.
        unknown_loops: Loops whose rounds are not constant: they count as one round.
    """

    matmul_flops: int
    hbm_bytes: int
    collectives: tuple[Collective, ...]
    custom_calls: tuple[CustomCall, ...]
    unknown_loops: int

    def sent_bytes(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Sums `Collective.sent_bytes` by (kind, axes)."""
        totals: dict[tuple[str, tuple[str, ...]], float] = {}
        for one in self.collectives:
            key = (one.kind, one.axes)
            totals[key] = totals.get(key, 0.0) + one.sent_bytes
        return totals


def account(hlo_text: str, mesh: Mapping[str, int] | None = None) -> Account:
    """Walks a compiled program.

    Args:
        hlo_text: `compiled.as_text()`, for a TPU, GPU or CPU.
        mesh: Axis sizes of the mesh that the program was compiled for (`mesh.shape`): names the
            axes of collectives.

    Returns:
        The account of one execution on one device.

    Raises:
        ValueError: The text is not a whole HLO module, or names devices outside the mesh.
    """
    program = read_program(hlo_text)
    walk = _Walk(program, mesh, Traffic(program), _started_channels(program))
    total = walk.computation(program.entry)
    collectives = (replace(one, count=count) for one, count in total.collectives.items())
    return Account(
        matmul_flops=total.flops,
        hbm_bytes=total.hbm_bytes,
        collectives=tuple(sorted(collectives, key=lambda one: (-one.sent_bytes, one.kind))),
        custom_calls=tuple(
            CustomCall(target, name, count)
            for (target, name), count in sorted(total.custom_calls.items())
        ),
        unknown_loops=total.unknown_loops,
    )


@dataclass
class _Total:
    flops: int = 0
    hbm_bytes: int = 0
    unknown_loops: int = 0
    collectives: Counter[Collective] = field(default_factory=Counter)
    custom_calls: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, other: _Total, times: int = 1) -> None:
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        self.unknown_loops += other.unknown_loops
        for collective, count in other.collectives.items():
            self.collectives[collective] += times * count
        for kernel, count in other.custom_calls.items():
            self.custom_calls[kernel] += times * count


@dataclass
class _Walk:
    """Adds up computations from the entry down; each is added up once and remembered."""

    program: Program
    mesh: Mapping[str, int] | None
    traffic: Traffic
    started_channels: set[str]
    known: dict[str, _Total] = field(default_factory=dict)

    def computation(self, name: str) -> _Total:
        if name not in self.known:
            self.known[name] = total = _Total()
            computation = self.program.computations.get(name)
            if computation is not None:
                for instruction in computation.instructions.values():
                    self.instruction(total, computation, instruction)
        return self.known[name]

    def instruction(
        self, total: _Total, computation: Computation, instruction: Instruction
    ) -> None:
        opcode = instruction.opcode
        if opcode == "while":
            rounds = trip_count(self.program, computation, instruction)
            total.unknown_loops += rounds is None
            total.add(self.computation(instruction.called("body") or ""), rounds or 1)
            return
        if opcode == "conditional":
            branches = [self.computation(name) for name in _branches(instruction)]
            total.add(max(branches, key=lambda one: (one.flops, one.hbm_bytes)))
            return
        if opcode in ("call", "async-start") and (inner := _callee(instruction)):
            total.add(self.computation(inner))
            return
        total.hbm_bytes += self.traffic.instruction(computation, instruction)
        if opcode == "fusion":
            inner = self.computation(_callee(instruction) or "")
            # What a fusion computes inside does not travel to memory and back.
            total.add(replace(inner, hbm_bytes=0))
        kind = opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self.collective(total, computation, instruction, kind)
        elif opcode == "custom-call" and not gemm_call(instruction):
            target = _TARGET.search(instruction.rest)
            if target and target[1] not in _NOTES:
                total.custom_calls[target[1], _kernel_name(instruction)] += 1
        total.flops += instruction_flops(computation, instruction)

    def collective(
        self, total: _Total, computation: Computation, instruction: Instruction, kind: str
    ) -> None:
        # The TPU's asynchronous collectives stand in every fusion they run beside, on one channel;
        # the fusion that starts them counts.
        channel = _CHANNEL.search(instruction.rest)
        if channel and channel[1] in self.started_channels and not _starts(computation):
            return
        permute = kind == "collective-permute"
        written = instruction.attribute("source_target_pairs" if permute else "replica_groups")
        groups = parse_groups(written or "", self.program.partitions)
        if permute:
            groups = tuple(pair for pair in groups if pair[0] != pair[1])
        size = max((len(group) for group in groups), default=1)
        if size < 2:
            return
        count = len(instruction.operands())
        operand = sum(shape_bytes(computation.operand_type(instruction, i)) for i in range(count))
        result = shape_bytes(instruction.type)
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            # The state of a collective that is under way holds its operands beside its results.
            elements = tuple_elements(instruction.type)
            result = shape_bytes(elements[1]) if len(elements) > 1 else result
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            # The TPU keeps only its part of the sum and sends accordingly.
            kind, result = "reduce-scatter", operand // size
        axes = group_axes(groups, self.mesh) if self.mesh else ()
        total.collectives[Collective(kind, axes, size, 1, operand, result)] += 1


def _started_channels(program: Program) -> set[str]:
    return {
        channel
        for computation in program.computations.values()
        if _starts(computation)
        for instruction in computation.instructions.values()
        for channel in _CHANNEL.findall(instruction.rest)
    }


def _starts(computation: Computation) -> bool:
    return any(
        one.opcode == "custom-call" and 'custom_call_target="AsyncCollectiveStart"' in one.rest
        for one in computation.instructions.values()
    )


def _callee(instruction: Instruction) -> str | None:
    return instruction.called("calls") or instruction.called("to_apply")


def _branches(instruction: Instruction) -> list[str]:
    listed = instruction.attribute("branch_computations")
    if listed:
        return re.findall(r"[\w.\-]+", listed)
    names = (instruction.called("true_computation"), instruction.called("false_computation"))
    return [name for name in names if name]


def _kernel_name(instruction: Instruction) -> str:
    operation = _OPERATION.search(instruction.rest)
    return operation[1].rsplit("/", 1)[-1] if operation else instruction.name.split(".")[0]
