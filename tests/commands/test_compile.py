import os
import subprocess
import sys

import pytest

# What `generate` runs; beside these it moves arrays, and draws its noise.
PROGRAMS = {
    "encode",
    "encode_text",
    "style_tokens",
    "style_scale",
    "prepare",
    "advance",
    "vae_decode",
}


def run(folder, *args):
    """Runs a command in a process of its own, with compiled programs kept in `folder`."""
    own = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    # All are kept: what compiles in a moment may take longer on a busy machine the next time.
    own["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "stylecrafter_jax", *map(str, args)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kept_files(folder):
    return {file.name for file in folder.iterdir() if file.name.endswith("-cache")}


@pytest.mark.slow
@pytest.mark.parametrize("cached", [[], ["--cache-interval", 2], ["--mesh", "frames=2"]])
def test_what_is_compiled_ahead_is_not_compiled_again(tmp_path, small_bundle, style_files, cached):
    kept = tmp_path / "kept"
    shared = ["--bundle", small_bundle, "--steps", 3, "--sampler", "euler", *cached]
    lines = run(kept, "compile", *shared).splitlines()
    assert lines[-1] == f"kept in {kept}" and any(line.startswith("steps: ") for line in lines)
    ahead = kept_files(kept)
    assert PROGRAMS <= {name.partition("-")[0].removeprefix("jit_") for name in ahead}
    out = tmp_path / "cat.gif"
    run(kept, "generate", "a cat", "--style", style_files[0], "--out", out, *shared)
    later = kept_files(kept) - ahead
    assert not [name for name in later if any(program in name for program in PROGRAMS)]
