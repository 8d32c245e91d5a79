"""The lines that a user reads of a plan, and the smallest slice that should do."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from stylecrafter_jax.plan.chips import GIB
from stylecrafter_jax.plan.report import KEPT, Plan, held_bytes
from stylecrafter_jax.plan.tasks import Task
from stylecrafter_jax.plan.topology import Topology, parse
from stylecrafter_jax.sharding import BATCH_AXES, FRAMES, TENSOR


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
    if not task.trains and math.prod(plan.axes.values()) > 1:
        return None
    if not task.trains:
        one = parse(f"{chip.name}:{chip.sizes[0]}")
        return f"{one.name}, one {task.row} or more at a time" if plan.fits else None
    code = max(f.code for f in figures)
    moving = max(f.temporary + f.results for f in figures) * plan.topology.count
    inner = {axis: plan.axes[axis] for axis in (FRAMES, TENSOR)}
    weights = functools.cache(lambda fsdp: held_bytes(task, {**inner, "fsdp": fsdp}))
    for topology, groups, fsdp in _slices(chip.name, chip.sizes, math.prod(inner.values())):
        if task.rows % groups:
            continue
        if code + moving / topology.count + weights(fsdp) <= KEPT * chip.hbm_bytes:
            return f"{topology.name}, {_named({'data': groups // fsdp, 'fsdp': fsdp, **inner})}"
    return None


def _slices(chip: str, sizes: tuple[str, ...], inner: int) -> Iterator[tuple[Topology, int, int]]:
    """Yields slices of so many chips times a whole number of groups, and ways to split these."""
    for size in sizes:
        topology = parse(f"{chip}:{size}")
        groups = topology.count // inner
        if topology.count % inner == 0:
            for power in range(int(math.log2(groups)) + 1):
                yield topology, groups, 2**power


def _named(axes: Mapping[str, int]) -> str:
    return " ".join(f"{axis}={n}" for axis, n in axes.items() if n > 1 or axis in BATCH_AXES)


def table(plan: Plan, price: float | None) -> list[str]:
    """Returns the lines that a user reads."""
    values, chip = plan.to_json(price), plan.topology.chip
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    weights = ", ".join(f"{part} {size / GIB:.2f}" for part, size in plan.task.held.items())
    together = math.prod(plan.axes.values())
    each = "chip" if together == 1 else f"{together} chips"
    lines = [
        f"{plan.task.name} on {plan.topology.name}: {plan.topology.count} x {chip.name}, "
        f"{_named(plan.axes)}, {_several(plan.task)}"
        + (f" on each {each}" if plan.copies > 1 else ""),
        f"  weights, whole     {sum(plan.task.held.values()) / GIB:9.2f} GiB  ({weights})",
    ]
    if plan.task.trains:
        lines.append(f"  trained, average, optimizer, whole {plan.task.state_bytes / GIB:9.2f} GiB")
    lines += [
        f"  both on a chip     {plan.weights_and_state / GIB:9.2f} GiB",
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
