import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle, part_of
from stylecrafter_jax.commands import evaluate as command
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.media.video import write_frames
from stylecrafter_jax.metrics.clip_scores import ClipEmbedder
from stylecrafter_jax.metrics.measures import METRICS
from stylecrafter_jax.models.networks import parameter_shapes

FLOW = (
    "def rest(first, second):\n    import numpy as np\n    return np.zeros((*first.shape[:2], 2))\n"
)
VIDEO_METRICS = ["clip_text", "clip_style", "clip_temp", "warping_correct", "warping_evalcrafter"]


@pytest.fixture
def evaluate(run, monkeypatch, tmp_path, small_bundle, small_model):
    """Arguments of `evaluate` -> `Ran`: quiet, CLIP loaded once, a flow that is at rest."""
    monkeypatch.setattr(StyleCrafter, "load", lambda *args, **settings: small_model)
    (tmp_path / "known_flow.py").write_text(FLOW)
    monkeypatch.delitem(sys.modules, "known_flow", raising=False)

    def evaluate(*args, quiet=True, flow="known_flow:rest"):
        common = ["--bundle", small_bundle, "--list", "list.json", "--out", "o"]
        flow = ["--flow", flow] if flow else []
        return run("evaluate", *common, *args, *flow, *["--quiet"] * quiet)

    return evaluate


@pytest.fixture(scope="module", autouse=True)
def one_embedder(small_bundle):
    """Loads the bundle's CLIP, and compiles it, once for all tests."""
    embedder = ClipEmbedder.load(small_bundle)
    patch = pytest.MonkeyPatch()
    patch.setattr(ClipEmbedder, "load", lambda bundle: embedder)
    yield
    patch.undo()


@pytest.fixture
def entries(tmp_path, style_files):
    """A list of two, with one and two references, beside its style images."""
    for path in style_files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    names = [path.name for path in style_files]
    content = [
        {"prompt": "a cat", "style_path": names[0]},
        {"prompt": "a dog", "style_path": names[1:]},
    ]
    (tmp_path / "list.json").write_text(json.dumps(content))


@pytest.fixture
def videos(tmp_path, entries):
    """Finished videos of that list: one at rest, one that gets brighter by 51 levels."""
    texture = np.random.default_rng(0).integers(0, 200, (16, 32, 3), dtype=np.uint8)
    write_frames(np.stack([texture] * 3), tmp_path / "v/0000", fps=8)
    write_frames(np.stack([texture, texture + 51]), tmp_path / "v/0001", fps=8)
    return tmp_path / "v"


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "o/items.jsonl").read_text().splitlines()]


def report(tmp_path):
    return json.loads((tmp_path / "o/metrics.json").read_text())


# Finished videos


def test_finished_videos_have_the_values_that_are_known_of_them(evaluate, videos, tmp_path):
    ran = evaluate("--videos", "v")
    assert ran == (0, ["o/metrics.md", "o/metrics.json", "o/sheet.png"], [])
    still, brighter = [line["scores"] for line in lines(tmp_path)]
    assert list(still) == VIDEO_METRICS
    assert still["clip_temp"] == pytest.approx(1.0, abs=1e-6)
    assert (still["warping_correct"], still["warping_evalcrafter"]) == (0.0, 0.0)
    assert brighter["warping_correct"] == pytest.approx(0.04, rel=1e-5)
    assert brighter["warping_evalcrafter"] == pytest.approx(0.12, rel=1e-5)
    assert brighter["clip_temp"] < 1.0
    assert all(-1 <= s[name] <= 1 for s in (still, brighter) for name in VIDEO_METRICS[:3])
    found = report(tmp_path)["metrics"]
    assert found["warping_correct"]["mean"] == pytest.approx(0.02, rel=1e-5)
    assert (found["warping_correct"]["low"], found["warping_correct"]["prompts"]) == (0.0, 2)
    notes = report(tmp_path)["notes"]
    flow = next(note for name, note in notes.items() if name.startswith("Warping error"))
    assert flow.startswith("known_flow:rest ")
    table = (tmp_path / "o/metrics.md").read_text()
    assert (
        "| CLIP-Text | higher |" in table and "| Warping error (correct) | lower | 0.02 |" in table
    )
    # A row for each video: its references and three frames of 16x32.
    assert Image.open(tmp_path / "o/sheet.png").size == (4 * 32, 2 * 16)


def test_what_is_measured_with_the_same_settings_is_not_measured_again(
    evaluate, videos, tmp_path, monkeypatch
):
    assert evaluate("--videos", "v", "--metrics", "clip_text,warping_correct").status == 0
    first, before = lines(tmp_path), report(tmp_path)
    calls = []
    scores = command._scores

    def count(item, measures, known):
        calls.append((item.path.name, sorted(known)))
        return scores(item, measures, known)

    monkeypatch.setattr(command, "_scores", count)
    ran = evaluate("--videos", "v", "--metrics", "clip_text,warping_correct", quiet=False)
    assert ran.err[-1] == "2 of 2 videos are already measured"
    assert calls == [] and lines(tmp_path) == first and report(tmp_path) == before
    # One more metric: the others' values are kept.
    assert evaluate("--videos", "v", "--metrics", "clip_temp,clip_text,warping_correct").status == 0
    known = ["clip_text", "warping_correct"]
    assert calls == [("0000", known), ("0001", known)]
    assert lines(tmp_path)[2]["scores"]["clip_text"] == first[0]["scores"]["clip_text"]
    # Another video in its place, another flow: what they decide is measured anew.
    del calls[:]
    Image.new("RGB", (32, 16)).save(videos / "0001/00001.png")
    assert evaluate("--videos", "v", "--metrics", "clip_text,warping_correct").status == 0
    assert calls == [("0001", [])]
    (tmp_path / "known_flow.py").write_text(FLOW + "\n")
    assert evaluate("--videos", "v", "--metrics", "clip_text,warping_correct").status == 0
    assert calls[1:] == [("0000", ["clip_text"]), ("0001", ["clip_text"])]


def test_a_stop_between_two_videos_loses_nothing(evaluate, videos, tmp_path, monkeypatch):
    scores = command._scores

    def stop(item, measures, known):
        if item.path.name == "0001":
            raise KeyboardInterrupt
        return scores(item, measures, known)

    monkeypatch.setattr(command, "_scores", stop)
    ran = evaluate("--videos", "v")
    assert ran.status == 130 and len(lines(tmp_path)) == 1
    assert not (tmp_path / "o/metrics.json").exists()
    monkeypatch.setattr(command, "_scores", scores)
    assert evaluate("--videos", "v").status == 0
    stopped, rows = report(tmp_path), lines(tmp_path)
    assert len(rows) == 2
    assert evaluate("--videos", "v", "--out", "whole").status == 0
    assert json.loads((tmp_path / "whole/metrics.json").read_text()) == stopped


def test_dino_style_is_measured_by_the_users_function(evaluate, videos, tmp_path):
    (tmp_path / "my_dino.py").write_text(
        "def embed(images):\n    return images.mean(axis=(1, 2))\n"
    )
    sys.modules.pop("my_dino", None)
    ran = evaluate("--videos", "v", "--metrics", "dino_style", "--dino", "my_dino:embed", flow=None)
    assert ran.status == 0
    assert [list(line["scores"]) for line in lines(tmp_path)] == [["dino_style"]] * 2
    assert 0.9 < report(tmp_path)["metrics"]["dino_style"]["mean"] <= 1.0
    assert report(tmp_path)["notes"]["DINO-Style"].startswith("my_dino:embed ")


def test_pictures_are_measured_by_what_one_frame_allows(evaluate, videos, tmp_path):
    for i in range(2):
        Image.new("RGB", (16, 16), (60 * i, 90, 0)).save(tmp_path / f"v/{i:04d}.png")
        for file in (tmp_path / f"v/{i:04d}").iterdir():
            file.unlink()
        (tmp_path / f"v/{i:04d}").rmdir()
    assert evaluate("--videos", "v", flow=None).status == 0
    assert list(report(tmp_path)["metrics"]) == ["clip_text", "clip_style"]
    ran = evaluate("--videos", "v", "--metrics", "clip_temp", flow=None)
    assert ran.err == [
        "stylecrafter: error: clip_temp compares adjacent frames, and a picture has one"
    ]


# Generated videos


def test_a_list_is_generated_measured_and_not_generated_again(
    evaluate, generate, entries, tmp_path, monkeypatch, small_model
):
    ran = evaluate("--steps", 2, "--format", "frames", "--samples", 2)
    paths = [f"o/videos/{i:04d}_{j}" for i in range(2) for j in range(2)]
    assert ran == (0, [*paths, "o/metrics.md", "o/metrics.json", "o/sheet.png"], [])
    assert [line["entry"] for line in lines(tmp_path)] == [0, 0, 1, 1]
    found = report(tmp_path)["metrics"]["clip_style"]
    assert (found["prompts"], found["videos"], found["missing"]) == (2, 4, 0)
    before = report(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("generated again")

    monkeypatch.setattr(small_model, "generate", refuse)
    ran = evaluate("--steps", 2, "--format", "frames", "--samples", 2)
    assert ran.status == 0 and ran.out[:4] == paths
    assert report(tmp_path) == before and len(lines(tmp_path)) == 4
    # The same files, taken as finished videos, have the same values.
    assert evaluate("--videos", "o/videos", "--samples", 2, "--out", "p").status == 0
    again = json.loads((tmp_path / "p/metrics.json").read_text())
    assert again["metrics"] == before["metrics"]
    ran = evaluate("--steps", 1, "--format", "frames", "--samples", 2)
    assert ran.status == 1 and "is another result: options.steps is 2, wanted 1" in ran.err[0]


def test_pictures_are_generated_and_measured(evaluate, entries, tmp_path):
    ran = evaluate("--image", "--steps", 2, flow=None)
    assert ran.status == 0 and ran.out[:2] == ["o/videos/0000.png", "o/videos/0001.png"]
    assert list(report(tmp_path)["metrics"]) == ["clip_text", "clip_style"]


def test_the_flow_is_opencvs_unless_another_is_named(evaluate, videos, tmp_path):
    pytest.importorskip("cv2", reason="the metrics extra is not installed")
    assert evaluate("--videos", "v", "--metrics", "warping_correct", flow=None).status == 0
    assert report(tmp_path)["notes"]["Warping error (correct)"].startswith("OpenCV ")
    assert lines(tmp_path)[0]["scores"] == {"warping_correct": 0.0}


def test_the_help_names_every_metric(run, capfd):
    with pytest.raises(SystemExit):
        run("evaluate", "--help")
    text = capfd.readouterr().out
    assert all(f"\n  {name} " in text for name in METRICS)


# Mistakes

MISTAKES = {
    "an unknown metric": (["--metrics", "fid"], "unknown metric 'fid'; there are clip_text, clip"),
    "a metric twice": (["--metrics", "clip_text,clip_text"], "wanted each metric once"),
    "no metric": (["--metrics", ""], "unknown metric ''"),
    "dino without a function": (["--metrics", "dino_style"], "dino_style needs --dino"),
    "a function without dino": (
        ["--metrics", "clip_text", "--dino", "math:sqrt"],
        "--dino is for dino_style",
    ),
    "a flow without a warping error": (
        ["--metrics", "clip_text", "--flow", "math:sqrt"],
        "--flow is for the warping error",
    ),
    "no such flow": (["--flow", "nothing_here:f"], "cannot import nothing_here"),
    "a metric of many frames": (
        ["--image", "--metrics", "clip_text,warping_correct"],
        "warping_correct compares adjacent frames",
    ),
    "options of finished videos": (["--videos", "v", "--steps", "3"], "leave out --steps"),
    "guidance of finished videos": (["--videos", "v", "--negative", "x"], "leave out --negative"),
    "no folder": (["--videos", "nothing"], "there is no folder nothing"),
    "too few videos": (["--videos", "v", "--samples", "2"], "v has no video named 0000_0, 0000_1"),
    "no samples": (["--videos", "v", "--samples", "0"], "--samples must be at least 1, got 0"),
    "no list": (["--list", "absent.json"], "cannot read the list absent.json"),
    "no bundle": (["--bundle", "v"], "v is no bundle"),
}


@pytest.mark.parametrize("args, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_before_anything_is_made(
    evaluate, videos, tmp_path, monkeypatch, args, message
):
    monkeypatch.setattr(StyleCrafter, "load", None)
    flow = None if "--flow" in args or "--metrics" in args else "known_flow:rest"
    ran = evaluate(*args, flow=flow)
    assert ran.status == 1 and ran.out == [] and len(ran.err) == 1, ran
    assert ran.err[0].startswith("stylecrafter: error: ") and message in ran.err[0]
    assert not (tmp_path / "o").exists()


def test_without_opencv_it_says_what_to_install(evaluate, videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    ran = evaluate("--videos", "v", flow=None)
    assert ran.status == 1 and len(ran.err) == 1
    assert "the warping error needs OpenCV: pip install 'stylecrafter_jax[metrics]'" in ran.err[0]
    assert evaluate("--videos", "v", "--metrics", "clip_text", flow=None).status == 0


def test_a_video_that_cannot_be_measured_is_named(evaluate, videos, tmp_path):
    (videos / "0000/00001.png").unlink()
    (videos / "0000/00002.png").unlink()
    ran = evaluate("--videos", "v")
    assert ran.err == [
        "stylecrafter: error: v/0000 has one frame, and clip_temp compares adjacent ones"
    ]
    (videos / "0000/00000.png").write_bytes(b"no picture")
    ran = evaluate("--videos", "v")
    assert ran.status == 1 and "cannot read v/0000/00000.png" in ran.err[0] and len(ran.err) == 1


def test_a_bundle_without_clip_cannot_measure_it(run, tmp_path, videos, small_bundle):
    config, params = load_bundle(small_bundle, expected=parameter_shapes)
    with BundleWriter(tmp_path / "base", config) as writer:
        for name, value in params.items():
            if part_of(name) != "image_encoder":
                writer.add(name, jax.device_get(value))
    common = ["--list", "list.json", "--out", "o", "--videos", "v", "--metrics", "clip_text"]
    ran = run("evaluate", "--bundle", "base", *common)
    assert ran.err == ["stylecrafter: error: base cannot measure CLIP: it has no image_encoder"]
