"""Our UNet and a PyTorch one of the same size, on the same inputs and threads of this machine.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/peer_torch.py [OUT] [--frames 16] [--height 40] [--width 64] [--rounds 2]

The peer is diffusers' `UNetMotionModel` (AnimateDiff's), with VideoCrafter's widths, heads and
context: residual blocks, spatial transformers with text, temporal transformers. It differs in
detail: its temporal transformers stand at the narrowest level too, and have sinusoidal instead of
relative positions. Both are asked for one video without style, in float32, with random weights.
The sides take turns, each in a process of its own, so that its peak memory (resident, weights and
compiling included) is its own. Operations are those of matrix products and convolutions.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parent / "results" / "peer_torch.json"
WIDTHS, HEADS, CONTEXT, TOKENS = (320, 640, 1280, 1280), (5, 10, 20, 20), 1024, 77


def main() -> None:
    """Runs both sides in turn, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    for name, value in {"frames": 16, "height": 40, "width": 64, "rounds": 2, "runs": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--side", choices=("jax", "torch"))
    args = parser.parse_args()
    shape = (args.frames, args.height, args.width)
    if args.side:
        print(json.dumps(SIDES[args.side](shape, args.runs)))
        return
    found: dict[str, list[dict[str, Any]]] = {"torch": [], "jax": []}
    for _ in range(args.rounds):
        for side, results in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(side, results[-1], flush=True)
    seconds = {s: statistics.median(t for r in rs for t in r["seconds"]) for s, rs in found.items()}
    memory = {side: max(r["peak_bytes"] for r in results) for side, results in found.items()}
    content = {
        "command": " ".join(["python", "benchmarks/peer_torch.py", *sys.argv[1:]]),
        "latents": shape,
        "threads": os.cpu_count(),
        "median_seconds": seconds,
        "peak_bytes": memory,
        "flops": {side: results[0]["flops"] for side, results in found.items()},
        "first_seconds": {side: results[0]["first"] for side, results in found.items()},
        "time_ratio": seconds["jax"] / seconds["torch"],
        "memory_ratio": memory["jax"] / memory["torch"],
    }
    print(json.dumps(content, indent=1))
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def inputs(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns latents (f h w c) and text tokens (l d)."""
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(size, np.float32) for size in ((*shape, 4), (TOKENS, CONTEXT)))


def timed(call, runs: int) -> dict[str, Any]:
    """Returns the seconds of the first call and of the others, and the process's peak memory."""
    seconds = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        out = call()
        seconds.append(time.perf_counter() - begun)
        assert np.isfinite(out).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"first": seconds[0], "seconds": seconds[1:], "peak_bytes": peak}


def run_torch(shape: tuple[int, int, int], runs: int) -> dict[str, Any]:
    """Times the peer."""
    import torch
    from diffusers import UNetMotionModel
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = UNetMotionModel(
            sample_size=shape[1],
            block_out_channels=WIDTHS,
            cross_attention_dim=CONTEXT,
            num_attention_heads=HEADS,
            motion_num_attention_heads=HEADS,
            motion_max_seq_length=32,
            use_motion_mid_block=True,
        )
    x, text = (torch.from_numpy(a)[None] for a in inputs(shape))
    x, t = x.permute(0, 4, 1, 2, 3), torch.tensor(500)
    text = text.repeat_interleave(shape[0], dim=0)  # as diffusers' pipelines do
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            model(x.to("meta"), t.to("meta"), text.to("meta"))
        model = model.to_empty(device="cpu").eval()
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
        for name, buffer in model.named_buffers():
            assert name.endswith("pe"), name
            buffer.zero_()
        return {
            **timed(lambda: model(x, t, text).sample.numpy(), runs),
            "flops": counter.get_total_flops(),
        }


def run_jax(shape: tuple[int, int, int], runs: int) -> dict[str, Any]:
    """Times ours."""
    import jax
    import jax.numpy as jnp

    from stylecrafter_jax.config import ModelConfig
    from stylecrafter_jax.models.networks import networks, parameter_shapes
    from stylecrafter_jax.plan.count import count

    config, rng = ModelConfig(), np.random.default_rng(1)
    nets = networks(config)
    params = {
        name: jnp.asarray(np.float32(0.02) * rng.standard_normal(kind.shape, np.float32))
        for name, kind in parameter_shapes(config).items()
        if name.startswith("unet/") and "_style/" not in name
    }
    x, text = (jnp.asarray(a)[None] for a in inputs(shape))
    traced = jax.jit(lambda *args: nets.unet(*args)).trace(params, x, jnp.full((1,), 500.0), text)
    work, program = count(traced.jaxpr.jaxpr), traced.lower().compile()
    call = lambda: np.asarray(program(params, x, jnp.full((1,), 500.0), text))  # noqa: E731
    return {**timed(call, runs), "flops": work.flops}


SIDES = {"torch": run_torch, "jax": run_jax}

if __name__ == "__main__":
    main()
