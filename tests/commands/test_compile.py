import os
import subprocess
import sys

import pytest


def run(folder, *args):
    """Runs a command in a process of its own, with compiled programs kept in `folder`."""
    own = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    # As `programs.keep_on_disk` sets it where the folder is its own.
    own["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    command = [sys.executable, "-m", "stylecrafter_jax", *map(str, args)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("cached", [[], ["--cache-interval", 2], ["--mesh", "frames=2"]])
def test_what_is_compiled_ahead_is_not_compiled_again(tmp_path, small_bundle, style_files, cached):
    kept = tmp_path / "kept"
    shared = ["--bundle", small_bundle, "--steps", 3, "--sampler", "euler", *cached]
    lines = run(kept, "compile", *shared).splitlines()
    assert lines[-1] == f"kept in {kept}" and any(line.startswith("steps: ") for line in lines)
    ahead = {file.name for file in kept.iterdir() if file.name.endswith("-cache")}
    assert any("advance" in name for name in ahead)
    out = tmp_path / "cat.gif"
    run(kept, "generate", "a cat", "--style", style_files[0], "--out", out, *shared)
    later = {file.name for file in kept.iterdir() if file.name.endswith("-cache")} - ahead
    programs = ("advance", "prepare", "encode", "style_tokens", "style_scale", "vae_decode")
    assert not [name for name in later if any(program in name for program in programs)]
