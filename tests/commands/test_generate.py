import errno
import hashlib
import json
import os

import jax
import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax import outputs
from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle, part_of
from stylecrafter_jax.commands import batches
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.media.video import write_frames
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.options import Options
from stylecrafter_jax.request import Request


def silent(step, total):
    pass


def pixels(folder):
    return np.stack([np.array(Image.open(p)) for p in sorted(folder.glob("*.png"))])


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def nothing_made(tmp_path):
    return not any(p.suffix in (".mp4", ".gif", ".png") for p in (tmp_path / "o").rglob("*"))


@pytest.fixture
def entries(tmp_path, style_files):
    """A list of three, with one and several references, beside its style images."""
    for path in style_files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    names = [path.name for path in style_files]
    styles = [names[0], names[1:], names[2]]
    content = [{"prompt": f"entry {i}", "style_path": style} for i, style in enumerate(styles)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    return path


# One result


def test_standard_output_gets_the_path_and_nothing_else(generate, tmp_path, style_files):
    ran = generate("a cat", "--style", style_files[0], "--out", "o/cat.mp4")
    assert ran == (0, ["o/cat.mp4"], [])
    assert files(tmp_path / "o") == ["cat.mp4", "cat.mp4.json"]


def test_standard_error_tells_steps_and_compiling_apart(generate, style_files):
    ran = generate("a cat", "--style", style_files[0], quiet=False)
    text = "\n".join(ran.err)
    assert "2/2" in text and "step" in text
    assert "s, of which compiling" in text and "s a step" in text
    assert len(ran.out) == 1


def test_a_result_is_what_python_gives(generate, small_model, tmp_path, style_files):
    generate("a cat", "--style", *style_files[:2], "--format", "frames", "--out", "o", "--seed", 9)
    frames = small_model("a cat", style_files[:2], steps=2, seed=9, progress=silent)
    np.testing.assert_array_equal(pixels(tmp_path / "o/0000"), frames[0])


def test_the_sidecar_is_enough_to_make_the_result_again(
    generate, small_model, tmp_path, style_files
):
    ran = generate(
        *("a long walk", "--style", *style_files[:2], "--style-weights", 1, 0.5),
        *("--seed", 77, "--index", 3, "--negative", "blur", "--style-weight", 2.5),
        *("--format", "frames", "--out", "o"),
    )
    made = json.loads((tmp_path / "o/0000.json").read_text())["request"]
    given = {k: v for k, v in made["options"].items() if k != "guidance"}
    guidance = made["options"]["guidance"]
    guidance = Guidance(**guidance | {"interval": tuple(guidance["interval"])})
    by_name = {path.name: path for path in style_files}
    styles = [by_name[style["file"]] for style in made["styles"]]
    request = Request(made["prompt"], styles, made["style_weights"], made["index"])
    options = Options(**given, guidance=guidance)
    frames = small_model.generate([request], options, progress=silent)
    assert ran.status == 0
    np.testing.assert_array_equal(pixels(tmp_path / "o/0000"), frames[0])


def test_without_out_every_request_has_a_place_of_its_own(generate, tmp_path, style_files):
    first = generate("A cat!", "--style", style_files[0]).out
    assert len(first) == 1 and first[0].startswith("outputs/a-cat-")
    again = generate("A cat!", "--style", style_files[0], quiet=False)
    assert (again.out, again.err) == (first, ["1 of 1 results are already there"])
    for other in (["A dog"], ["A cat!", "--seed", 2], ["A cat!", "--style-weight", 2]):
        assert generate(*other, "--style", style_files[0]).status == 0
    assert len(files(tmp_path / "outputs")) == 8


@pytest.mark.parametrize("form", ["mp4", "gif", "webp", "frames", "sheet"])
def test_every_video_format_is_written(generate, tmp_path, style_files, form):
    ran = generate("a cat", "--style", style_files[0], "--format", form, "--out", "o")
    path = tmp_path / ran.out[0]
    assert ran.status == 0 and path.exists()
    if form == "sheet":
        assert Image.open(path).size == (4 * 24, 16)
    elif form == "frames":
        assert len(list(path.iterdir())) == 4


def test_a_picture_is_one_frame(generate, tmp_path, style_files):
    ran = generate("a cat", "--style", style_files[0], "--image", "--out", "cat.png")
    assert ran.out == ["cat.png"] and Image.open(tmp_path / "cat.png").size == (16, 16)


def test_samples_differ_and_count_on_from_the_index(generate, tmp_path, style_files):
    common = ["a cat", "--style", style_files[0], "--format", "frames"]
    ran = generate(*common, "--samples", 2, "--out", "o")
    assert ran.out == ["o/0000_0", "o/0000_1"]
    assert np.any(pixels(tmp_path / "o/0000_0") != pixels(tmp_path / "o/0000_1"))
    generate(*common, "--index", 1, "--out", "p")
    np.testing.assert_array_equal(pixels(tmp_path / "o/0000_1"), pixels(tmp_path / "p/0000"))


@pytest.mark.parametrize("kind", ["transparent", "grey", "palette", "turned", "animated"])
def test_odd_style_images_are_used(generate, tmp_path, style_files, kind):
    image, path, options = Image.open(style_files[0]), tmp_path / "style.png", {}
    if kind == "transparent":
        image.putalpha(60)
    elif kind in ("grey", "palette"):
        image = image.convert({"grey": "L", "palette": "P"}[kind])
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        path, options = tmp_path / "style.jpg", {"exif": exif}
    else:
        path = tmp_path / "style.gif"
        options = {"save_all": True, "append_images": [Image.new("RGB", image.size)]}
    image.save(path, **options)
    assert generate("a cat", "--style", path, "--out", "o").status == 0


# Lists


def test_a_list_is_resumed_where_it_stopped_and_each_result_written_once(
    generate, tmp_path, entries
):
    paths = [f"outputs/list/{i:04d}.mp4" for i in range(3)]
    assert generate("--list", entries).out == paths
    contents = {path: (tmp_path / path).read_bytes() for path in paths}
    (tmp_path / paths[1]).unlink()  # as if stopped after its sidecar
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in paths[::2]}
    ran = generate("--list", entries, quiet=False)
    assert sorted(ran.out) == paths and ran.err[0] == "2 of 3 results are already there"
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in times} == times
    assert {path: (tmp_path / path).read_bytes() for path in paths} == contents


def test_what_is_there_already_needs_no_model(generate, monkeypatch, entries):
    done = generate("--list", entries)
    monkeypatch.setattr(StyleCrafter, "load", None)
    assert generate("--list", entries) == done


def test_a_list_with_other_settings_is_refused_before_anything_is_made(generate, tmp_path, entries):
    generate("--list", entries, "--out", "o")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").iterdir()}
    ran = generate("--list", entries, "--out", "o", "--seed", 7)
    assert ran.status == 1 and not ran.out
    assert "o/0000.mp4 is another result: options.seed is 123, wanted 7" in ran.err[0]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "o").iterdir()} == before
    assert generate("--list", entries, "--out", "o", "--seed", 7, "--overwrite").status == 0
    assert json.loads((tmp_path / "o/0002.mp4.json").read_text())["request"]["options"]["seed"] == 7


def test_entry_i_of_a_list_is_its_prompt_alone_with_index_i(
    generate, tmp_path, entries, style_files
):
    generate("--list", entries, "--format", "frames", "--out", "o", "--batch-size", 2)
    common = ["--format", "frames", "--style"]
    generate("entry 0", "--out", "p0", *common, style_files[0])
    generate("entry 1", "--out", "p1", "--index", 1, *common, *style_files[1:])
    generate("entry 2", "--out", "p2", "--index", 2, *common, style_files[2])
    for i in range(3):
        # Programs of another batch size round otherwise: one level of 256, on CPU in float32.
        apart = pixels(tmp_path / f"o/{i:04d}").astype(int) - pixels(tmp_path / f"p{i}/0000")
        assert np.abs(apart).max() <= 1


def test_an_incomplete_batch_compiles_nothing_new(generate, monkeypatch, small_model, entries):
    compiled = []

    def note(*args, **kwargs):
        compiled.append(small_model.programs.compile_seconds)

    monkeypatch.setattr(batches, "write_result", note)
    assert generate("--list", entries, "--batch-size", 2).status == 0
    assert len(compiled) == 3 and len(set(compiled)) == 1


def test_a_bad_image_in_entry_7_is_found_before_anything_is_made(
    generate, monkeypatch, tmp_path, style_files
):
    (tmp_path / "bad.png").write_bytes(style_files[0].read_bytes()[:500])
    styles = [str(style_files[0])] * 7 + ["bad.png"]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"prompt": "a", "style_path": style} for style in styles]))
    monkeypatch.setattr(StyleCrafter, "load", None)
    ran = generate("--list", listed, "--out", "o")
    assert ran.status == 1 and not ran.out and len(ran.err) == 1
    assert f"{listed}, entry 7: style image: cannot read {tmp_path / 'bad.png'}" in ran.err[0]
    assert not (tmp_path / "o").exists()


# Mistakes

MISTAKES = {
    "no prompt": ([], "there is neither a prompt nor a --list"),
    "prompt after style": (["--style", "STYLE", "a cat"], "it comes before --style"),
    "prompt and list": (["a cat", "--list", "l.json"], "leave out the prompt"),
    "style and list": (["--list", "l.json", "--style", "STYLE"], "leave out --style"),
    "no list": (["--list", "l.json"], "cannot read the list l.json: No such file or directory"),
    "no image": (["a", "--style", "no.png"], "cannot read no.png: No such file or directory"),
    "a folder": (["a", "--style", "."], "style image: cannot read .: Is a directory"),
    "no picture": (["a", "--style", "text.txt"], "text.txt: not an image of a known format"),
    "1x1": (["a", "--style", "dot.png"], "dot.png has 1x1 pixels, wanted at least 8 on a side"),
    "20000x20000": (["a", "--style", "huge.png"], "huge.png: Image size (400000000 pixels)"),
    "empty": ([" "], "the prompt is empty and there is no style image"),
    "size": (["a", "--width", 31], "width must be a positive multiple of 2, got 31"),
    "size 0": (["a", "--height", 0], "height must be a positive multiple of 2, got 0"),
    "frames": (["a", "--frames", 5], "frames must be between 1 and 4, the model's temporal length"),
    "sampler": (["a", "--sampler", "dpm"], "sampler must be one of ddim, dpmsolver++"),
    "eta": (["a", "--sampler", "unipc", "--eta", 1], "unipc adds no noise, so it takes no eta"),
    "guidance": (["a", "--guidance", "nan"], "guidance: text must be finite, got nan"),
    "interval": (["a", "--guidance-interval", 1, 0], "interval must rise within [0, 1]"),
    "weights": (["a", "--style", "STYLE", "--style-weights", 1, 2], "2 style weights for 1 style"),
    "no styles": (["a", "--style-weights", 1], "1 style weights for 0 style images"),
    "seed": (["a", "--seed", -1], "seed must be between 0 and 4294967295, got -1"),
    "index": (["a", "--index", -1], "index must be between 0 and 4294967295, got -1"),
    "samples": (["a", "--samples", 0], "--samples must be at least 1, got 0"),
    "batch": (["a", "--batch-size", 0], "--batch-size must be at least 1, got 0"),
    "format": (["a", "--format", "avi"], "a video is written as one of mp4, gif, webp, frames"),
    "suffix": (["a", "--out", "a.mov"], "a.mov: the suffix of a video is one of .mp4, .gif"),
    "both": (["a", "--out", "a.gif", "--format", "mp4"], "a.gif is the name of a gif, but"),
    "one file": (["a", "--out", "a.mp4", "--samples", 2], "names one file but there are 2"),
    "rate": (["a", "--format", "gif", "--fps", 99], "gif holds 0.01 to 50 frames per second"),
    "no folder": (["a", "--out", "/dev/full"], "cannot make the folder /dev/full: File exists"),
    "strength": (["a", "--strength", 0.5], "--strength needs --start"),
    "start": (["a", "--start", "no.mp4"], "cannot read no.mp4: No such file or directory"),
    "start size": (["a", "--start", "STYLE"], "starting from a picture needs a square size"),
    "no text": (["a \udcff"], "is not valid Unicode"),
}


@pytest.mark.parametrize("args, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_before_the_model_is_loaded(
    generate, monkeypatch, tmp_path, style_files, args, message
):
    (tmp_path / "text.txt").write_text("no picture")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    if "huge.png" in args:
        Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    monkeypatch.setattr(StyleCrafter, "load", None)
    ran = generate(*(style_files[0] if arg == "STYLE" else arg for arg in args))
    assert ran.status == 1 and ran.out == [] and len(ran.err) == 1
    assert ran.err[0].startswith("stylecrafter: error: ") and message in ran.err[0]
    assert not (tmp_path / "outputs").exists()


def test_without_a_bundle_the_embedded_model_draws_and_says_so(run, tmp_path):
    ran = run("generate", "a cat", "--image", "--steps", "1", "--out", tmp_path / "cat.png")
    assert ran.status == 0 and Image.open(tmp_path / "cat.png").size == (64, 64)
    assert "embedded demo model" in ran.err[0] and "stylecrafter convert import" in ran.err[0]


def test_a_folder_that_is_no_bundle_is_refused(run, tmp_path):
    ran = run("generate", "a cat", "--bundle", tmp_path)
    assert ran.err == [f"stylecrafter: error: {tmp_path} is no bundle: config.json is missing"]


def test_a_base_model_with_a_style_image_is_refused_unloaded(
    run, monkeypatch, tmp_path, small_bundle, style_files
):
    config, params = load_bundle(small_bundle, expected=parameter_shapes)
    with BundleWriter(tmp_path / "base", config) as writer:
        for name, value in params.items():
            if part_of(name) != "adapter":
                writer.add(name, value)
    monkeypatch.setattr(StyleCrafter, "load", None)
    ran = run("generate", "a", "--style", style_files[0], "--bundle", tmp_path / "base")
    assert ran.status == 1 and "this model has no style adapter" in ran.err[0]


def test_a_prompt_that_is_too_long_is_said_to_be_cut_and_where(generate, entries, style_files):
    # Each of these words is one token, and 75 fit.
    prompt = " ".join(["cat"] * 75 + ["dog", "bird"])
    ran = generate(prompt, "--style", style_files[0], "--negative", prompt)
    end = "is longer than 75 tokens; the model will not see 'dog bird'"
    assert ran.status == 0
    assert ran.err == [
        f"stylecrafter: warning: {name} {end}" for name in ("the prompt", "the negative prompt")
    ]
    content = json.loads(entries.read_text())
    content[1]["prompt"] = prompt
    entries.write_text(json.dumps(content))
    ran = generate("--list", entries)
    assert ran.err == [f"stylecrafter: warning: {entries}, entry 1: the prompt {end}"]


def test_an_empty_prompt_leaves_it_to_the_style_images_and_says_so(generate, style_files):
    ran = generate("", "--style", style_files[0])
    assert ran.status == 0 and len(ran.out) == 1
    assert ran.err == [
        "stylecrafter: warning: the prompt is empty; only the style images say what to show"
    ]


def test_a_full_disk_keeps_what_is_finished_and_leaves_no_half_file(
    generate, monkeypatch, tmp_path, entries
):
    write_frames = outputs.write_frames

    def fill(frames, path, *, fps):
        if path.name.startswith("0001"):
            path.write_bytes(b"half a")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_frames(frames, path, fps=fps)

    monkeypatch.setattr(outputs, "write_frames", fill)
    ran = generate("--list", entries, "--out", "o", "--batch-size", 3)
    assert ran.status == 1 and ran.out == ["o/0000.mp4"]
    assert ran.err == ["stylecrafter: error: cannot write o/0001.mp4: No space left on device"]
    assert files(tmp_path / "o") == ["0000.mp4", "0000.mp4.json"]
    monkeypatch.undo()


def test_too_little_memory_is_one_line_that_helps(generate, monkeypatch, small_model):
    def full(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 GiB")

    monkeypatch.setattr(small_model, "generate", full)
    ran = generate("a cat")
    assert ran.status == 1 and len(ran.err) == 1
    assert "memory is too small" in ran.err[0] and "--batch-size" in ran.err[0]


def test_a_video_to_start_from_is_read_checked_and_recorded(generate, tmp_path, style_files):
    common = ["a cat", "--style", style_files[0], "--strength", 0.5, "--start"]
    clips = {
        "dark": np.zeros((4, 16, 24, 3), np.uint8),
        "short": np.zeros((3, 16, 24, 3), np.uint8),
    }
    for name, clip in clips.items():
        write_frames(clip, tmp_path / f"{name}.mp4", fps=8)
    ran = generate(*common, "dark.mp4", "--out", "o")
    assert ran.status == 0 and ran.err == []
    model = json.loads((tmp_path / "o/0000.mp4.json").read_text())["request"]["model"]
    assert model["start"] == hashlib.sha256((tmp_path / "dark.mp4").read_bytes()).hexdigest()
    ran = generate(*common, "short.mp4", "--out", "p")
    assert ran.err == [
        "stylecrafter: error: short.mp4 has frames, height, width (3, 16, 24); "
        "wanted at least (4, 16, 24)"
    ]
