"""What a task takes on a topology: from its programs' figures to a table and one JSON object."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from stylecrafter_jax.plan.chips import GIB
from stylecrafter_jax.plan.compiled import Figures, OutOfMemory, compile_figures
from stylecrafter_jax.plan.count import by_scope, count
from stylecrafter_jax.plan.tasks import Program, Task
from stylecrafter_jax.plan.topology import Topology, devices, parse
from stylecrafter_jax.sharding import make_mesh

# What a chip's own software keeps for itself of the memory on the data sheet: 16 GiB become 15.75.
KEPT = 0.984


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One program of a task, on one chip, run as often as a unit of the task runs it.

    Attributes:
        name: of the program.
        times: how often.
        flops: operations, all runs together.
        bytes: moved to and from memory, likewise.
        collectives: bytes of messages by kind, likewise.
        estimate: the compiler's seconds, likewise; None where it gave none.
        peak: bytes of memory while it runs, all weights that are held then among them.
        figures: the compiler's; None where nothing was compiled.
        flops_by_part: operations, all runs together, by what they are for.
    """

    name: str
    times: float
    flops: float
    bytes: float
    collectives: dict[str, float]
    estimate: float | None
    peak: float
    figures: Figures | None
    flops_by_part: dict[str, float]

    @property
    def cycles_by_part(self) -> dict[str, float]:
        """The compiler's cycles, all runs together; {} where it tells none."""
        return _scaled({} if self.figures is None else self.figures.cycles, self.times)

    @property
    def bytes_by_part(self) -> dict[str, float]:
        """What moves to and from HBM meanwhile."""
        return _scaled({} if self.figures is None else self.figures.moved, self.times)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A task on a topology.

    Attributes:
        task: see `tasks`.
        topology: see `topology`.
        fsdp: chips that share one copy of the weights.
        parts: see above.
        wanted: bytes that the compiler could not place, where it gave up.
    """

    task: Task
    topology: Topology
    fsdp: int
    parts: list[Part]
    wanted: float | None = None

    @property
    def peak(self) -> float:
        """Bytes of memory that a chip needs."""
        return max(self.wanted or 0.0, max(part.peak for part in self.parts))

    @property
    def fits(self) -> bool:
        return self.peak <= KEPT * self.topology.chip.hbm_bytes

    @property
    def seconds(self) -> float:
        """Seconds of a unit at least: each program as long as its slowest resource is busy."""
        return sum(max(self.bounds(part).values()) for part in self.parts)

    def bounds(self, part: Part) -> dict[str, float]:
        """Returns the seconds that each resource is busy at least."""
        chip = self.topology.chip
        return {
            "compute": part.flops / chip.flops,
            "memory": part.bytes / chip.hbm_bandwidth,
            "links": sum(part.collectives.values()) / chip.link_bandwidth,
        }

    @property
    def rows_per_hour(self) -> float:
        """Videos, pictures or examples of all chips at the roofline."""
        return self.copies * self.task.rows * 3600.0 / self.seconds

    @property
    def copies(self) -> int:
        """How many chips do the task each for itself; training shares one."""
        return 1 if self.task.trains else self.topology.count

    def to_json(self, price: float | None) -> dict[str, Any]:
        """Returns everything as one JSON object; figures are per chip and per unit of the task."""
        chip, flops = self.topology.chip, sum(part.flops for part in self.parts)
        collectives = _summed(part.collectives for part in self.parts)
        estimates = [part.estimate for part in self.parts if part.estimate is not None]
        return {
            "task": self.task.name,
            "unit": self.task.unit,
            "rows": self.task.rows,
            "topology": self.topology.name,
            "chips": self.topology.count,
            "mesh": {"data": self.topology.count // self.fsdp, "fsdp": self.fsdp},
            "compiled": all(part.figures is not None for part in self.parts),
            "weights_bytes": sum(self.task.held.values()),
            "state_bytes": self.task.state,
            "activation_bytes": max((p.figures.temporary if p.figures else 0) for p in self.parts),
            "hbm_peak_bytes": self.peak,
            "hbm_bytes": chip.hbm_bytes,
            "fits": self.fits,
            "flops": flops,
            "bytes_accessed": sum(part.bytes for part in self.parts),
            "collective_bytes": sum(collectives.values()),
            "collective_bytes_by_kind": collectives,
            "compiler_seconds": sum(estimates) if len(estimates) == len(self.parts) else None,
            "roofline_seconds": self.seconds,
            "mfu_bound": flops / chip.flops / self.seconds,
            "flops_by_part": _summed(part.flops_by_part for part in self.parts),
            "cycles_by_part": _summed(part.cycles_by_part for part in self.parts),
            "bytes_by_part": _summed(part.bytes_by_part for part in self.parts),
            f"{self.task.row}s_per_hour": self.rows_per_hour,
            f"price_per_1000_{self.task.row}s": (
                None if price is None else 1000 * price * self.topology.count / self.rows_per_hour
            ),
            "programs": [
                {
                    "name": part.name,
                    "times": part.times,
                    "flops": part.flops,
                    "bytes_accessed": part.bytes,
                    "hbm_peak_bytes": part.peak,
                    "seconds": self.bounds(part),
                    # Of one run, and as compilers count.
                    "compiler": None if part.figures is None else dataclasses.asdict(part.figures),
                }
                for part in self.parts
            ],
        }


def make_plan(
    task: Task,
    topology: Topology,
    *,
    fsdp: int = 1,
    compiler_options: dict[str, Any] | None = None,
    compiling: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Returns what a task takes on a topology.

    TPU programs are compiled for it. Others are counted: weights and state exactly; operations
    exactly; bytes as the operands and results of matrix products and convolutions, as if all else
    were fused into these. Activations are then not known, and not in the peak.

    Args:
        task: what to do.
        topology: where.
        fsdp: chips that share one copy of the weights, when training.
        compiler_options: what the compiler is told.
        compiling: False counts for TPU as well.
        progress: told what is being compiled.

    Raises:
        TopologyError: libtpu is missing or does not know the chip.
        ValueError: the batch or the chips cannot be split so.
    """
    parts: list[Part] = []
    wanted = mesh = None
    chips, fsdp = (topology.count, fsdp) if task.trains else (1, 1)
    if compiling and topology.chip.kind == "tpu":
        mesh = make_mesh(devices(topology)[:chips], fsdp=fsdp)
    for program in task.programs:
        progress(program.name)
        if mesh is not None:
            try:
                parts.append(_compiled(program, task, mesh, compiler_options))
                continue
            except OutOfMemory as error:
                wanted = max(wanted or 0.0, error.wanted or 1.001 * topology.chip.hbm_bytes)
        shared = (sum(task.held.values()) + task.state) / fsdp
        parts.append(_counted(program, task, chips, shared))
    return Plan(
        task=task,
        topology=topology,
        fsdp=fsdp,
        parts=parts,
        wanted=wanted,
    )


def _compiled(program: Program, task: Task, mesh: Mesh, options: dict[str, Any] | None) -> Part:
    """Returns a program's figures on a mesh; what else is held while it runs is in its peak."""
    with jax.set_mesh(mesh):
        traced = program.traced(mesh)
        work, once = (count(traced.jaxpr.jaxpr, loops=loops) for loops in (True, False))
        figures = compile_figures(traced.lower(), options, task.label)
    turns = work.flops / once.flops if once.flops else 1.0
    times = program.times
    # A kernel that does not say what it costs is in the count alone.
    flops = max(figures.flops * turns, work.flops / mesh.size)
    return Part(
        name=program.name,
        times=times,
        flops=times * flops,
        bytes=times * figures.bytes_accessed * turns,
        collectives={kind: times * size for kind, size in figures.collectives.items()},
        estimate=None if figures.estimate is None else times * turns * figures.estimate,
        peak=figures.peak + _elsewhere(program, task),
        figures=figures,
        flops_by_part=_by_part(traced, task, times / mesh.size),
    )


def _by_part(traced: Any, task: Task, times: float) -> dict[str, float]:
    works = by_scope(traced.jaxpr.jaxpr, task.label)
    return _scaled({name: work.flops for name, work in works.items()}, times)


def _scaled(amounts: dict[str, float], times: float) -> dict[str, float]:
    return {name: times * amount for name, amount in amounts.items()}


def _summed(amounts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Returns the sums by kind, the largest first."""
    total: dict[str, float] = {}
    for each in amounts:
        for kind, amount in each.items():
            total[kind] = total.get(kind, 0.0) + amount
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _elsewhere(program: Program, task: Task) -> float:
    """Returns the bytes of weights that are held while a program runs that is not given them."""
    if task.trains:
        return 0.0
    given = {name.split("/")[0] for arg in program.args if isinstance(arg, dict) for name in arg}
    return float(sum(size for part, size in task.held.items() if part not in given))


def _counted(program: Program, task: Task, chips: int, weights: float) -> Part:
    times, traced = program.times, program.traced()
    work = count(traced.jaxpr.jaxpr).times(1 / chips)
    return Part(
        name=program.name,
        times=times,
        flops=times * work.flops,
        bytes=times * work.bytes,
        collectives={},
        estimate=None,
        peak=weights,
        figures=None,
        flops_by_part=_by_part(traced, task, times / chips),
    )


def _several(task: Task) -> str:
    rows = f"{task.rows} {task.row}" + ("" if task.rows == 1 else "s")
    return f"{rows} a {task.unit}" if task.trains else f"{rows} at a time"


def _shares(values: dict[str, Any]) -> list[str]:
    """Returns the lines of what operations, and the compiler's cycles and bytes, are for."""
    columns = {"operations": "flops", "cycles": "cycles", "bytes": "bytes"}
    found = {title: values[f"{name}_by_part"] for title, name in columns.items()}
    found = {title: amounts for title, amounts in found.items() if amounts}
    lines = [f"    {'share of':30}" + "".join(f" {title:>10}" for title in found)]
    for name in found.get("cycles") or found["operations"]:
        shares = (amounts.get(name, 0.0) / sum(amounts.values()) for amounts in found.values())
        lines.append(f"    {name:30}" + "".join(f" {share:10.1%}" for share in shares))
    return lines


def smallest(plan: Plan) -> str | None:
    """Returns the smallest slice of the same kind of chip, and the mesh on it, that should fit.

    Activations shrink with the rows a chip has, weights and state with the chips that share them.
    None if no slice fits, or nothing was compiled.
    """
    figures = [part.figures for part in plan.parts if part.figures is not None]
    chip, task = plan.topology.chip, plan.task
    if not figures:
        return None
    if not task.trains:
        one = parse(f"{chip.name}:{chip.sizes[0]}")
        return f"{one.name}, one {task.row} or more at a time" if plan.fits else None
    code = max(f.code for f in figures)
    moving = max(f.temporary + f.results for f in figures) * plan.topology.count
    weights = float(sum(task.held.values()) + task.state)
    for topology, fsdp in _slices(chip.name, chip.sizes):
        if task.rows % topology.count:
            continue
        if code + moving / topology.count + weights / fsdp <= KEPT * chip.hbm_bytes:
            return f"{topology.name}, data={topology.count // fsdp} fsdp={fsdp}"
    return None


def _slices(chip: str, sizes: tuple[str, ...]) -> Iterator[tuple[Topology, int]]:
    for size in sizes:
        topology = parse(f"{chip}:{size}")
        for power in range(int(math.log2(topology.count)) + 1):
            yield topology, 2**power


def table(plan: Plan, price: float | None) -> list[str]:
    """Returns the lines that a user reads."""
    values, chip = plan.to_json(price), plan.topology.chip
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    weights = ", ".join(f"{part} {size / GIB:.2f}" for part, size in plan.task.held.items())
    lines = [
        f"{plan.task.name} on {plan.topology.name}: {plan.topology.count} x {chip.name}, "
        f"data={values['mesh']['data']} fsdp={plan.fsdp}, {_several(plan.task)}"
        + (" on each chip" if plan.copies > 1 else ""),
        f"  weights, whole     {sum(plan.task.held.values()) / GIB:9.2f} GiB  ({weights})",
    ]
    if plan.task.state:
        lines.append(f"  trained, average, optimizer, whole {plan.task.state / GIB:9.2f} GiB")
    lines += [
        f"  peak memory        {plan.peak / GIB:9.2f} GiB of {chip.hbm_bytes / GIB:.2f}: {verdict}",
        f"  per chip and {plan.task.unit}:",
        f"    {'program':30} {'times':>7} {'peak GiB':>9} {'TFLOP':>9} {'GB moved':>9} "
        f"{'GB sent':>8} {'seconds at least':>17}",
    ]
    for part in plan.parts:
        bounds = plan.bounds(part)
        slowest = max(bounds, key=lambda name: bounds[name])
        lines.append(
            f"    {part.name:30} {part.times:7g} {part.peak / GIB:9.2f} {part.flops / 1e12:9.2f} "
            f"{part.bytes / 1e9:9.1f} {sum(part.collectives.values()) / 1e9:8.2f} "
            f"{bounds[slowest]:10.3f} {slowest}"
        )
    lines += _shares(values)
    lines.append(
        f"  at the roofline    {plan.seconds:9.3f} s, {100 * values['mfu_bound']:.0f} % of the "
        f"chip's operations; {plan.rows_per_hour:.0f} {plan.task.row}s an hour"
    )
    if values["compiler_seconds"] is not None:
        lines.append(f"  compiler's estimate {values['compiler_seconds']:8.3f} s")
    if values["collective_bytes"]:
        kinds = values["collective_bytes_by_kind"].items()
        sent = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in kinds)
        lines.append(f"  messages, GB       {sent}")
    if price is not None:
        cost = values[f"price_per_1000_{plan.task.row}s"]
        lines.append(f"  price at the roofline, per 1,000 {plan.task.row}s: {cost:.2f}")
    if not values["compiled"]:
        lines.append("  counted, not compiled: activations are not in the peak")
    advice = smallest(plan)
    if advice is not None:
        lines.append(f"  smallest that should fit: {advice}")
    return lines
