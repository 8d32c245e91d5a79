"""What a compiled program takes: memory, operations, bytes, messages between chips."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax

from stylecrafter_jax.programs import out_of_memory

# Without the searches that take nine tenths of the compiler's time for TPU; memory stays as it is.
QUICK = {"exec_time_optimization_effort": -1.0}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
WIDTHS |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_FAST_MEMORY = "S(1)"  # in an array's layout: it lies on the chip
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.+?) [\w\-]+\((.*?)\)(?:, |$)")
_NAME = re.compile(r"%([\w.\-]+)")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ALONE = re.compile(r"replica_groups=(\{\{\d+\}(,\{\d+\})*\}|\[\d+,1\]<=)")  # a device with itself
_WHILE = re.compile(r"\bwhile\(.*?body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPERATION = re.compile(r'op_name="([^"]*)"')
_USED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")


class OutOfMemory(RuntimeError):
    """A program does not fit; `wanted` and `given` are bytes, where the compiler told them."""

    def __init__(self, wanted: float | None, given: float | None):
        super().__init__(f"the program takes {wanted} bytes of {given}")
        self.wanted, self.given = wanted, given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one program on one device, run once.

    Attributes:
        arguments: bytes of what it is given, weights among them.
        results: bytes of what it returns and did not take from its arguments.
        temporary: bytes at most in use between them.
        code: bytes of the program itself.
        flops: operations by the compiler's count, which takes a loop's body once.
        bytes_accessed: bytes to and from memory, counted likewise.
        collectives: bytes of results of each kind of message; loops of known length in full.
        estimate: the compiler's own estimate of seconds, likewise for one turn of loops; or None.
        cycles: the cycles that it expects by what they are for, which are more than the estimate
            allows for; loops of known length in full. Compilers for TPU tell them.
        moved: bytes of operands and results in HBM of what takes cycles, by what it is for.
    """

    arguments: int
    results: int
    temporary: int
    code: int
    flops: float
    bytes_accessed: float
    collectives: dict[str, float]
    estimate: float | None
    cycles: dict[str, float]
    moved: dict[str, float]

    @property
    def peak(self) -> int:
        """Bytes of memory at most."""
        return self.arguments + self.results + self.temporary + self.code


def compile_figures(
    lowered: Any, options: dict[str, Any] | None, label: Callable[[str], str] = lambda path: "all"
) -> Figures:
    """Returns the figures of a lowered program.

    Args:
        lowered: what `jax.jit(f).lower(...)` returns.
        options: what the compiler is told.
        label: what an operation is for, by the names of the modules it is done in.

    Raises:
        OutOfMemory: the compiler found that it cannot fit.
    """
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])", str(error))
        if used is None:
            raise OutOfMemory(None, None) from error
        unit = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
        wanted, given = (float(used[i]) * unit[used[i + 1]] for i in (1, 3))
        raise OutOfMemory(wanted, given) from error
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    return Figures(
        arguments=memory.argument_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        collectives=collective_bytes(text),
        estimate=_seconds(cost),
        cycles=cycles_by_label(text, label),
        moved=bytes_by_label(text, label),
    )


def _seconds(cost: dict[str, float]) -> float | None:
    """Returns the compiler's estimate, if it is one.

    Where copies run beside the computation libtpu takes whole seconds off (values such as -998 ms
    appear); such an estimate tells nothing.
    """
    seconds = cost.get("optimal_seconds", 0.0)
    return seconds if seconds > 0.0 else None


def collective_bytes(text: str) -> dict[str, float]:
    """Returns the bytes that each kind of message between devices brings to one of them.

    Args:
        text: an optimised program, as `compiled.as_text()` writes it.
    """

    def measure(line: str) -> tuple[str, float] | None:
        message = None if _ALONE.search(line) else _COLLECTIVE.search(line)
        return message and (message[2], _size(message[1], last=bool(message[3])))

    return _total(text, measure)


def cycles_by_label(text: str, label: Callable[[str], str]) -> dict[str, float]:
    """Returns the cycles that the compiler expects, by what `label` makes of operations' names."""

    def measure(line: str) -> tuple[str, float] | None:
        cycles = _CYCLES.search(line)
        return cycles and (_labelled(line, label), float(cycles[1]))

    return _total(text, measure)


def bytes_by_label(text: str, label: Callable[[str], str]) -> dict[str, float]:
    """Returns the bytes to and from HBM, by what `label` makes of operations' names.

    They are those of operands and results of every instruction whose cycles are told. A slice of a
    large array counts as the whole of it.
    """
    sizes: dict[str, float] = {}

    def measure(line: str) -> tuple[str, float] | None:
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            return None
        name, shape, operands = instruction.groups()
        sizes[name] = _size(shape, slow=True)
        if not _CYCLES.search(line):
            return None
        read = sum(sizes.get(operand, 0.0) for operand in _NAME.findall(operands))
        return _labelled(line, label), sizes[name] + read

    return _total(text, measure)


def _labelled(line: str, label: Callable[[str], str]) -> str:
    name = _OPERATION.search(line)
    return label(name[1] if name else "")


def _total(text: str, measure: Callable[[str], tuple[str, float] | None]) -> dict[str, float]:
    """Returns sums by kind over an optimised program; loops of known length count in full.

    Args:
        text: the program.
        measure: of an instruction, what counts: (kind, amount); or None.
    """
    found: dict[str, dict[str, float]] = {}
    calls: dict[str, list[tuple[str, float]]] = {}
    current = entry = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = header[1]
            entry = current if line.startswith("ENTRY") else entry
            found[current], calls[current] = {}, []
            continue
        if not current:
            continue
        counted = measure(line)
        if counted:
            kind, amount = counted
            found[current][kind] = found[current].get(kind, 0.0) + amount
        loop = _WHILE.search(line)
        if loop:
            trips = _TRIPS.search(line)
            calls[current].append((loop[1], float(trips[1]) if trips else 1.0))
        calls[current] += [(name, 1.0) for name in _USED.findall(line)]
    total: dict[str, float] = {}

    def add(name: str, times: float) -> None:
        for kind, amount in found.get(name, {}).items():
            total[kind] = total.get(kind, 0.0) + times * amount
        for inner, more in calls.get(name, []):
            add(inner, times * more)

    add(entry, 1.0)
    return total


def _size(shape: str, *, last: bool = False, slow: bool = False) -> float:
    """Returns the bytes of a shape.

    Args:
        shape: of one array, or of several.
        last: of a started message, those of the result, which is its last half.
        slow: leave out what does not lie in HBM.
    """
    sizes = []
    for kind, sides, layout in _ARRAY.findall(shape):
        if kind not in WIDTHS or (slow and _FAST_MEMORY in layout):
            continue
        size = float(WIDTHS[kind])
        for side in sides.split(",") if sides else ():
            size *= int(side)
        sizes.append(size)
    if last and len(sizes) > 1:
        sizes = sizes[len(sizes) // 2 :]
    return float(sum(sizes))
