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


def _tpu(name, tflops, gib, bandwidth, links, sizes, device_kind) -> Chip:
    return Chip(
        name=name,
        kind="tpu",
        flops=tflops * TERA,
        hbm_bytes=gib * GIB,
        hbm_bandwidth=bandwidth * GB,
        link_bandwidth=links * GB,
        sizes=sizes,
        device_kind=device_kind,
    )


def _gpu(name, tflops, gb, bandwidth, links, device_kind) -> Chip:
    return Chip(
        name=name,
        kind="gpu",
        flops=tflops * TERA,
        hbm_bytes=gb * GB,
        hbm_bandwidth=bandwidth * GB,
        link_bandwidth=links * GB,
        device_kind=device_kind,
    )


# TPU: cloud documentation, "system architecture" of each version. GPU: NVIDIA's data sheets,
# bfloat16 without sparsity; SXM modules, links over NVLink or, where there is none, PCIe.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", 275, 32, 1228, 300, _CUBES, r"TPU v4$"),
        _tpu("v5e", 197, 16, 819, 200, _FLAT, r"TPU (v5 lite|v5e)$"),
        _tpu("v5p", 459, 95, 2765, 600, _CUBES, r"TPU (v5|v5p)$"),
        _tpu("v6e", 918, 32, 1640, 448, _FLAT, r"TPU (v6 lite|v6e)$"),
        _tpu("v7x", 2307, 192, 7380, 1200, _CUBES, r"TPU ?7x$"),
        _gpu("a100-40", 312, 40, 1555, 600, r"A100.*40GB"),
        _gpu("a100-80", 312, 80, 2039, 600, r"A100.*80GB"),
        _gpu("h100", 989, 80, 3350, 900, r"H100"),
        _gpu("h200", 989, 141, 4800, 900, r"H200"),
        _gpu("b200", 2250, 180, 8000, 1800, r"B200"),
        _gpu("l4", 121, 24, 300, 64, r"L4$"),
        _gpu("l40s", 362, 48, 864, 64, r"L40S"),
        _gpu("rtx4090", 165, 24, 1008, 64, r"RTX 4090$"),
    )
}


def chip_here() -> Chip | None:
    """Returns the chip of the default device; None where no data sheet here has it."""
    kind = jax.devices()[0].device_kind
    return next((chip for chip in CHIPS.values() if re.search(chip.device_kind, kind)), None)
