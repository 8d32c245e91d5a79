"""What fewer steps, and steps that keep the inner part of the UNet, cost in latents.

    python benchmarks/few_steps.py [OUT] [--bundle DIR] [--count 8] [--batch-size 4]

Prompts and references of the demo world that no training saw, with the model's own guidance by text
and style. Two errors, both |latents - others| / |others|, mean over the clips:

    steps   against DPM-Solver++ in 50 steps, the whole UNet at each. Not smaller where steps are
            more: a plan of n steps begins at timestep 1000 - 1000 / n + 1, as if that were noise.
    kept    against the same sampler in as many steps, the whole UNet at each.

Beside them the operations of a sample by the model measured and by the full-size one, each as a
share of that model's 50 steps.
"""

import argparse
from pathlib import Path

import numpy as np

from stylecrafter_jax import embedded
from stylecrafter_jax.checkpoints.bundle import manifest_hash
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.files import write_json
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.options import Options
from stylecrafter_jax.plan.tasks import generation
from stylecrafter_jax.request import Request
from stylecrafter_jax.world.held_out import cases, references

OUT = Path(__file__).parent / "results" / "few_steps.json"
TRUTH = {"sampler": "dpmsolver++", "steps": 50}
SETTINGS = [
    {"sampler": "ddim", "eta": 0.0, "steps": 50},
    {"sampler": "unipc", "steps": 25},
    *({"sampler": "dpmsolver++", "steps": n} for n in (10, 15, 20, 25, 30)),
    *(
        {"sampler": "dpmsolver++", "steps": 25, "cache_interval": k, "cache_blocks": blocks}
        for k in (2, 3)
        for blocks in (1, 2)
    ),
    {"sampler": "dpmsolver++", "steps": 50, "cache_interval": 2, "cache_blocks": 2},
    {"sampler": "unipc", "steps": 25, "cache_interval": 2, "cache_blocks": 2},
]


def main() -> None:
    """Samples, compares, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    parser.add_argument("--bundle", type=Path, default=embedded.BUNDLE)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    model, pictures = StyleCrafter.load(args.bundle), references()
    requests = [
        Request(case.prompt, (pictures[case.style],), None, i)
        for i, case in enumerate(cases(args.count))
    ]

    def latents(settings) -> np.ndarray:
        options, found = Options(**settings).resolved(model.config), []
        for first in range(0, args.count, args.batch_size):
            batch = requests[first : first + args.batch_size]
            condition = model.encode(batch, options)
            found.append(np.asarray(model.sample(condition, batch, options)))
        return np.concatenate(found)

    truth = latents(TRUTH)
    usual = {name: flops(config, {}) for name, config in models(model).items()}
    rows, whole = [], {}
    for settings in SETTINGS:
        found, plan = latents(settings), (settings["sampler"], settings["steps"])
        row = {**settings, "steps_error": error(found, truth)}
        if "cache_interval" in settings:
            row["kept_error"] = error(found, whole[plan] if plan in whole else truth)
        else:
            whole[plan] = found
        shares = {n: flops(c, settings) / usual[n] for n, c in models(model).items()}
        rows.append({**row, "flops": shares})
        print(rows[-1], flush=True)
    note = {"manifest_sha256": manifest_hash(args.bundle), "count": args.count, "truth": TRUTH}
    write_json(args.out, {"command": "python benchmarks/few_steps.py", **note, "settings": rows})


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the mean relative error of the clips."""
    rows = ((found - wanted).reshape(len(wanted), -1), wanted.reshape(len(wanted), -1))
    apart, norms = (np.linalg.norm(row, axis=1) for row in rows)
    return float((apart / norms).mean())


def models(model: StyleCrafter) -> dict[str, ModelConfig]:
    """Returns the model measured and the full-size one."""
    return {"measured": model.config, "full_size": ModelConfig()}


def flops(config: ModelConfig, settings) -> float:
    """Returns the operations of a sample; the model's 50 steps where `settings` is empty."""
    options = Options(**({"sampler": "ddim", "steps": 50} | settings)).resolved(config)
    return generation(config, options).flops


if __name__ == "__main__":
    main()
