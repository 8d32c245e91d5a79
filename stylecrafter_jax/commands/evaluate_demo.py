"""`stylecrafter evaluate --demo`: a model of the demo world on styles and prompts it never saw."""

import argparse
from pathlib import Path

from tqdm import tqdm

from stylecrafter_jax import embedded
from stylecrafter_jax.checkpoints.bundle import manifest_hash, read_config
from stylecrafter_jax.commands.arguments import read_mesh
from stylecrafter_jax.commands.generate import make_options
from stylecrafter_jax.commands.interruptible import interruptible
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.jobs import JobError, sha256
from stylecrafter_jax.judges.judging import load_judges
from stylecrafter_jax.metrics.clip_scores import ClipEmbedder
from stylecrafter_jax.metrics.demo import generate_cases, report
from stylecrafter_jax.outputs import versions
from stylecrafter_jax.programs import keep_on_disk
from stylecrafter_jax.world.held_out import cases
from stylecrafter_jax.world.scenes import FRAMES, SIZE

COUNT = 100


def run(args: argparse.Namespace) -> int:
    """Generates, measures, and prints the paths of `metrics.json` and the sheet.

    Raises:
        JobError: an argument is for evaluations of a list, or the model makes other clips than the
            judges know.
    """
    for name in ("list", "videos", "metrics", "flow", "dino", "format"):
        if getattr(args, name) is not None:
            raise JobError(f"--demo brings its own prompts and metrics; leave out --{name}")
    count = COUNT if args.count is None else args.count
    least = min(count, args.batch_size)
    if least < 1:
        raise JobError(f"--count and --batch-size must be at least 1, got {least}")
    bundle: Path = args.bundle or embedded.BUNDLE
    options = make_options(args, read_config(bundle))
    known = (1 if options.image else FRAMES, SIZE, SIZE)
    made = (options.frames, options.height, options.width)
    if made != known:
        raise JobError(f"the judges know frames, height, width {known}; this would make {made}")
    keep_on_disk()
    mesh = read_mesh(args.mesh)
    model = StyleCrafter.load(bundle, dtype=args.dtype, param_dtype=args.param_dtype, mesh=mesh)
    args.out.mkdir(parents=True, exist_ok=True)
    wanted, clips = cases(count, pictures=options.image), []
    drawing = generate_cases(model, wanted, options, batch_size=least)
    with tqdm(total=count, desc="clips", unit="clip", disable=args.quiet) as bar:
        for _ in range(count):
            clips.append(interruptible(lambda _: next(drawing)))
            bar.update()
    notes = {
        "bundle": str(bundle.name),
        "manifest_sha256": manifest_hash(bundle),
        "judges_sha256": sha256(embedded.JUDGES),
        "steps": options.steps,
        "sampler": options.sampler,
        "cache_interval": options.cache_interval,
        "cache_blocks": options.cache_blocks,
        "guidance": str(options.guidance),
        "seed": options.seed,
        "program": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    judges = load_judges(embedded.JUDGES)
    for path in report(args.out, wanted, clips, judges, ClipEmbedder.load(bundle), notes):
        print(path, flush=True)
    return 0
