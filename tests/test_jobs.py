import json
import re
from pathlib import Path

import pytest

from stylecrafter_jax.jobs import (
    Entry,
    Job,
    JobError,
    check_entries,
    check_rate,
    format_of,
    job_paths,
    named_after,
    read_list,
)


def listed(tmp_path, content):
    path = tmp_path / "list.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_a_list_mixes_single_and_several_references_relative_to_its_folder(tmp_path):
    path = listed(
        tmp_path,
        [
            {"prompt": "a", "style_path": "single/1.png"},
            {"prompt": "b", "style_path": ["multi/1.jpeg", "/abs/2.jpeg"]},
        ],
    )
    one, two = read_list(path)
    assert one == Entry("a", (tmp_path / "single/1.png",), f"{path}, entry 0")
    assert two.styles == (tmp_path / "multi/1.jpeg", Path("/abs/2.jpeg"))


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    content = json.dumps([{"prompt": "é", "style_path": "a.png"}], ensure_ascii=False)
    assert read_list(listed(tmp_path, b"\xef\xbb\xbf" + content.encode()))[0].prompt == "é"


LISTS = {
    "no JSON": (b"[{", "is no JSON"),
    "no text": (b"\xff\xfe\x00", "is no JSON"),
    "no list": ({"prompt": "a"}, "wanted a list of objects with prompt and style_path"),
    "empty": ([], "wanted a list of objects"),
    "no object": ([{"prompt": "a", "style_path": "b"}, "c"], "entry 1: wanted an object"),
    "no prompt": ([{"style_path": "b"}], "entry 0: prompt must be a text, got None"),
    "no style": ([{"prompt": "a"}], "entry 0: style_path must be a path or a list of paths"),
    "no styles": ([{"prompt": "a", "style_path": []}], "entry 0: style_path must be"),
    "odd styles": ([{"prompt": "a", "style_path": ["b", 3]}], "got ['b', 3]"),
}


@pytest.mark.parametrize("content, message", LISTS.values(), ids=LISTS.keys())
def test_a_wrong_list_is_named_with_its_entry(tmp_path, content, message):
    path = listed(tmp_path, content)
    with pytest.raises(JobError) as caught:
        read_list(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(JobError, match=r"nothing\.json: No such file"):
        read_list(tmp_path / "nothing.json")


def test_every_style_image_is_decoded_once_and_the_bad_one_named(tmp_path, style_files):
    whole = style_files[0].read_bytes()
    half = tmp_path / "half.png"
    half.write_bytes(whole[: len(whole) // 2])  # its header is fine
    good = [Entry("a", (style_files[0],), "list, entry 0")] * 3
    assert list(check_entries(good)) == [style_files[0]]
    with pytest.raises(JobError, match=r"^list, entry 7: style image: .*half\.png"):
        check_entries([*good, Entry("b", (style_files[1], half), "list, entry 7")])


@pytest.mark.parametrize(
    "entry, message",
    [
        (Entry("a", (Path("nowhere.png"),)), "nowhere.png: No such file or directory"),
        (Entry("a", (Path("/"),)), "/: Is a directory"),
        (Entry(" ", ()), "the prompt is empty and there is no style image"),
        (Entry("a \udcff b", ()), "is not valid Unicode"),
    ],
)
def test_an_entry_that_cannot_be_used_is_one_line(entry, message):
    with pytest.raises(JobError) as caught:
        check_entries([entry])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_format_is_the_one_named_or_the_suffix_or_the_usual(tmp_path):
    assert format_of(None, None, False) == "mp4" and format_of(None, None, True) == "png"
    assert format_of(Path("a.GIF"), None, False) == "gif"
    assert format_of(Path("a.png"), None, False) == "sheet"
    assert format_of(Path("a.jpeg"), None, True) == "jpg"
    assert format_of(Path("folder"), "webp", False) == "webp"
    (tmp_path / "runs.v2").mkdir()  # a folder although it looks like a file with a suffix
    assert format_of(tmp_path / "runs.v2", None, False) == "mp4"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, "avi", False), "a video is written as one of mp4, gif, webp, frames, sheet"),
        ((None, "mp4", True), "a picture is written as one of png, jpg, webp, not as mp4"),
        ((Path("a.mov"), None, False), "the suffix of a video is one of .mp4, .gif, .webp, .png"),
        ((Path("a.mp4"), None, True), "the suffix of a picture is one of .png, .jpg, .webp"),
        ((Path("a.gif"), "mp4", False), "a.gif is the name of a gif, but --format is mp4"),
        ((Path("a.mp4"), "frames", False), "a.mp4 is the name of a mp4, but --format is frames"),
    ],
)
def test_a_wrong_format_is_one_line(arguments, message):
    with pytest.raises(JobError, match=re.escape(message)):
        format_of(*arguments)


def test_a_rate_the_format_cannot_hold_is_found_before_generating():
    check_rate("mp4", 60)
    check_rate("frames", 1000)
    with pytest.raises(JobError, match="gif holds 0.01 to 50 frames per second, got 60"):
        check_rate("gif", 60)


def test_results_are_numbered_by_entry_and_sample():
    names = [str(p) for p in job_paths(Path("o"), 2, 2, "mp4", False)]
    assert names == ["o/0000_0.mp4", "o/0000_1.mp4", "o/0001_0.mp4", "o/0001_1.mp4"]
    assert job_paths(Path("o"), 1, 1, "frames", False) == [Path("o/0000")]
    assert job_paths(Path("o/a.mp4"), 1, 1, "mp4", False) == [Path("o/a.mp4")]
    with pytest.raises(JobError, match="names one file but there are 6 results"):
        job_paths(Path("a.mp4"), 3, 2, "mp4", False)


def test_the_same_request_has_the_same_name_and_another_one_another():
    def name(prompt, request):
        job = Job(
            entry=Entry(prompt, ()), index=0, weights=None, path=Path("o/0000.mp4"), form="mp4"
        )
        return named_after(job, request).path

    first = name("A wolf, at night!", {"seed": 1, "steps": 2})
    assert re.fullmatch(r"o/a-wolf-at-night-[0-9a-f]{8}\.mp4", str(first))
    assert first == name("A wolf, at night!", {"steps": 2, "seed": 1})
    assert first != name("A wolf, at night!", {"seed": 2, "steps": 2})
    assert re.fullmatch(r"o/[0-9a-f]{8}\.mp4", str(name("狼", {})))
    assert len(name("word " * 99, {}).name) < 60
