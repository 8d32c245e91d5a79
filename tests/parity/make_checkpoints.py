"""Writes the four full-size checkpoint files in the original's layout, weights by the parity rule.

`python -m tests.parity.make_checkpoints LISTS OUT`: LISTS is the folder `full_state_dicts` of the
parity data; OUT takes model.ckpt, adapter_v1.pth, temporal_v1_1.pth and
open_clip_pytorch_model.bin, 12 GB together. The numbers are noise: the files are for trying import,
memory and speed at full size.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stylecrafter_jax.checkpoints.torch_files import write_torch
from stylecrafter_jax.config import ScheduleConfig
from stylecrafter_jax.diffusion.schedules import buffers, make_schedule
from tests.parity import weights

FILES = {
    "t2v_model_ckpt.json": "model.ckpt",
    "adapter_v1.json": "adapter_v1.pth",
    "temporal_v1_1.json": "temporal_v1_1.pth",
    "open_clip_vit_h_14.json": "open_clip_pytorch_model.bin",
}


def filled(rows: list, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns a state dict for [name, shape, dtype] rows; schedule tables are the true ones."""
    tables = buffers(make_schedule(ScheduleConfig()))
    return {
        name: tables[name] if name in tables else weights.tensor(prefix + name, tuple(shape))
        for name, shape, _ in tqdm(rows, disable=len(rows) < 100)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lists", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for source, target in FILES.items():
        rows = json.loads((args.lists / source).read_text())
        if isinstance(rows, dict):  # modules, each with a state dict of its own
            content = {name: filled(inner, name + ".") for name, inner in rows.items()}
        else:
            content = filled(rows)
        if target == "model.ckpt":
            content = {"state_dict": content}
        write_torch(args.out / target, content)
        print(f"wrote {args.out / target}", flush=True)


if __name__ == "__main__":
    main()
