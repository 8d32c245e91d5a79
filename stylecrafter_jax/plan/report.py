"""What a task takes on a topology: from its programs' figures to one JSON object."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from stylecrafter_jax.plan.compiled import Figures, OutOfMemory, compile_figures
from stylecrafter_jax.plan.count import by_scope, count
from stylecrafter_jax.plan.tasks import Program, Task
from stylecrafter_jax.plan.topology import Topology, mesh_of
from stylecrafter_jax.sharding import AXES, bytes_on_a_device, sizes_of

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
        axes: of the mesh of chips that do the task together, all four with their sizes.
        parts: see above.
        wanted: bytes that the compiler could not place, where it gave up.
    """

    task: Task
    topology: Topology
    axes: dict[str, int]
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
        """How many meshes of chips do the task, each for itself."""
        return self.topology.count // math.prod(self.axes.values())

    @property
    def weights_and_state(self) -> int:
        """Bytes that one chip holds of both."""
        return held_bytes(self.task, self.axes)

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
            "mesh": self.axes,
            "copies": self.copies,
            "compiled": all(part.figures is not None for part in self.parts),
            "weights_bytes": sum(self.task.held.values()),
            "state_bytes": self.task.state_bytes,
            "held_bytes": self.weights_and_state,
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
    axes: Mapping[str, int] | None = None,
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
        axes: of the mesh of chips that do the task together, see `mesh_axes`; those of a task of
            generation its own. None is one chip, and the others do the same.
        compiler_options: what the compiler is told.
        compiling: False counts for TPU as well.
        progress: told what is being compiled.

    Raises:
        TopologyError: libtpu is missing or does not know the chip.
        ValueError: the batch or the chips cannot be split so.
    """
    parts: list[Part] = []
    wanted = mesh = None
    axes = {axis: (axes or {}).get(axis, 1) for axis in AXES}
    chips = math.prod(axes.values())
    if compiling and topology.chip.kind == "tpu":
        mesh = mesh_of(topology, axes)
    for program in task.programs:
        progress(program.name)
        if mesh is not None:
            try:
                parts.append(_compiled(program, task, mesh, axes, compiler_options))
                continue
            except OutOfMemory as error:
                wanted = max(wanted or 0.0, error.wanted or 1.001 * topology.chip.hbm_bytes)
        parts.append(_counted(program, task, chips, float(held_bytes(task, axes))))
    return Plan(task=task, topology=topology, axes=axes, parts=parts, wanted=wanted)


def held_bytes(task: Task, axes: Mapping[str, int]) -> int:
    """Returns the bytes of weights and state on one chip of a mesh of such sizes."""
    mesh = sizes_of(axes)
    return bytes_on_a_device(task.weights, mesh, task.layout) + bytes_on_a_device(task.state, mesh)


def _compiled(
    program: Program,
    task: Task,
    mesh: Mesh,
    axes: Mapping[str, int],
    options: dict[str, Any] | None,
) -> Part:
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
        peak=figures.peak + _elsewhere(program, task, axes),
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


def _elsewhere(program: Program, task: Task, axes: Mapping[str, int]) -> float:
    """Returns the bytes of weights that are held while a program runs that is not given them."""
    if task.trains:
        return 0.0
    given = {name for arg in program.args if isinstance(arg, dict) for name in arg}
    others = {name: value for name, value in task.weights.items() if name not in given}
    return float(bytes_on_a_device(others, sizes_of(axes)))


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
