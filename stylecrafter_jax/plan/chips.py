"""What accelerators can do by their data sheets."""

import dataclasses
import re

import jax

GB, GIB, TERA = 1e9, 2.0**30, 1e12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator.

    Attributes:
        name: as in a topology, such as "v5e:4x4".
        kind: "tpu" or "gpu".
        flops: dense bfloat16 operations a second at most.
        hbm_bytes: memory.
        hbm_bandwidth: bytes a second to and from it.
        link_bandwidth: bytes a second to and from other chips, all links and both ways together.
        sizes: slices one can rent, as topologies; () where any number can be had.
        device_kind: regular expression of what JAX calls it.
    """

    name: str
    kind: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    device_kind: str
    sizes: tuple[str, ...] = ()


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


def _chip(name, kind, tflops, memory, bandwidth, links, device_kind, sizes=()) -> Chip:
    """Returns a chip by the numbers of its data sheet: GiB of memory for TPUs, GB for GPUs."""
    return Chip(
        name=name,
        kind=kind,
        flops=tflops * TERA,
        hbm_bytes=memory * (GIB if kind == "tpu" else GB),
        hbm_bandwidth=bandwidth * GB,
        link_bandwidth=links * GB,
        device_kind=device_kind,
        sizes=sizes,
    )


# TPU: cloud documentation, "system architecture" of each version. GPU: NVIDIA's data sheets,
# bfloat16 without sparsity; SXM modules, links over NVLink or, where there is none, PCIe.
CHIPS = {
    chip.name: chip
    for chip in (
        _chip("v4", "tpu", 275, 32, 1228, 300, r"TPU v4$", _CUBES),
        _chip("v5e", "tpu", 197, 16, 819, 200, r"TPU (v5 lite|v5e)$", _FLAT),
        _chip("v5p", "tpu", 459, 95, 2765, 600, r"TPU (v5|v5p)$", _CUBES),
        _chip("v6e", "tpu", 918, 32, 1640, 448, r"TPU (v6 lite|v6e)$", _FLAT),
        _chip("v7x", "tpu", 2307, 192, 7380, 1200, r"TPU ?7x$", _CUBES),
        _chip("a100-40", "gpu", 312, 40, 1555, 600, r"A100.*40GB"),
        _chip("a100-80", "gpu", 312, 80, 2039, 600, r"A100.*80GB"),
        _chip("h100", "gpu", 989, 80, 3350, 900, r"H100"),
        _chip("h200", "gpu", 989, 141, 4800, 900, r"H200"),
        _chip("b200", "gpu", 2250, 180, 8000, 1800, r"B200"),
        _chip("l4", "gpu", 121, 24, 300, 64, r"L4$"),
        _chip("l40s", "gpu", 362, 48, 864, 64, r"L40S"),
        _chip("rtx4090", "gpu", 165, 24, 1008, 64, r"RTX 4090$"),
    )
}


def chip_here() -> Chip | None:
    """Returns the chip of the default device; None where no data sheet here has it."""
    kind = jax.devices()[0].device_kind
    return next((chip for chip in CHIPS.values() if re.search(chip.device_kind, kind)), None)
