import base64
import io
import json
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from stylecrafter_jax.report.facts import read_facts
from stylecrafter_jax.report.page import page
from stylecrafter_jax.report.pictures import data_uri, evenly
from stylecrafter_jax.train.events import note
from tests.report.conftest import SCRIPT

VOID = ("meta", "img")


class Reader(HTMLParser):
    """Reads a page; fails where an element is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text(finished_run):
    return page(read_facts(finished_run))


@pytest.fixture(scope="module")
def read(text):
    return Reader(text)


def test_the_page_needs_nothing_else_and_stays_small(text, read):
    names = {name for name, _ in read.tags}
    assert not names & {"script", "link", "iframe", "object", "base"}
    for _, attributes in read.tags:
        assert not {"srcset", "href", "onload", "onerror"} & attributes.keys()
        assert attributes.get("src", "data:").startswith("data:image/jpeg;base64,"[:5])
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert len(text) < 3_500_000


def test_foreign_texts_are_shown_as_they_are_and_are_no_elements(read):
    whole = "\n".join(data for _, data in read.texts)
    for words in ("pictures", "a cat ", "gone ", "id ", "no picture ", "own<"):
        assert words + SCRIPT in whole, words
    assert 'my "run" & more' in whole
    assert not read.all("script")


def cells(read):
    return [data for tag, data in read.texts if tag in ("td", "b", "dd", "li", "p")]


def test_numbers_shown_are_those_of_the_files(finished_run, read):
    shown = cells(read)
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "grad_norm", "seconds", "scale/middle_block.1"):
        assert f"{rows[-1][name]:.4g}" in shown
    assert {"7.125", "3.25"} <= set(shown)  # the last of each quarter, whatever line it is on
    experiment = json.loads((finished_run / "run.json").read_text())["experiment"]
    assert str(experiment["train"]["save_every"]) in shown and "60 of 60" in shown
    assert {"20", "0.125", "best", "40", "0.75", "newest"} <= set(shown)
    assert {"33", f"8.jpg, {SCRIPT}", "44", "9.5", "30 s"} <= set(shown)
    assert any("1 different records refused" in line for line in shown)
    assert "1 skipped, the last at step 33; finite since" in shown
    assert "1, the last at step 44" in shown


def test_curves_have_a_point_for_each_line(read):
    lines = [tag["points"].split() for tag in read.all("polyline") if tag["class"] != "raw"]
    assert max(map(len, lines)) == 30
    assert {15, 30} <= set(map(len, lines))
    marks = [tag for tag in read.all("line") if tag.get("class") == "mark"]
    assert len(marks) == len(read.all("svg"))  # one resume, in each drawing


def test_settings_that_are_no_defaults_are_bold(read):
    bold = {data for tag, data in read.texts if tag == "b"}
    assert {"stage", "train.steps", "samples.every", "data.images", "train.log_every"} <= bold
    assert not {"train.save_every", "data.flip", "samples.seed"} & bold


def test_both_environments_and_the_stop_between_are_there(read):
    whole = cells(read)
    assert whole.count("from step") == 2 and "cpu" in whole
    assert '{"data": 2, "fsdp": 1}' in whole
    assert "lost_process" in whole and "no time" in whole


def test_kills_leave_no_word_and_are_counted(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "events.jsonl").unlink()
    for event in ("started", "resumed", "not_saved", "resumed", "stopped", "resumed", "finished"):
        note(run, event, 1)
    texts = [data for _, data in Reader(page(read_facts(run))).texts]
    assert "2: killed, or the host was lost" in texts
    told = [data for _, data in Reader(page(read_facts(finished_run))).texts]
    assert "ended without a word" not in told


def test_samples_are_chosen_evenly_and_made_smaller(read):
    images = read.all("img")
    captions = [data for tag, data in read.texts if tag == "figcaption" and "step " in data]
    assert captions[0] == "step 20" and captions[-1] == "step 400" and len(images) == 8
    picture = Image.open(io.BytesIO(base64.b64decode(images[-1]["src"].split(",")[1])))
    assert picture.size == (1400, 23)
    assert abs(picture.getpixel((700, 10))[0] - 400 % 250) <= 3


def test_a_sample_that_cannot_be_read_is_named(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for path in (run / "samples").glob("*.png"):
        if path.name not in ("step_000020.png", "step_000040.png"):
            path.unlink()
    again = Reader(page(read_facts(run)))
    assert len(again.all("img")) == 1
    assert ("p", "step_000040.png cannot be read") in again.texts


def test_a_picture_that_compresses_badly_is_made_smaller(tmp_path):
    noise = Image.effect_noise((900, 900), 90.0)
    noise.save(tmp_path / "noise.png")
    assert len(data_uri(tmp_path / "noise.png", 40_000)) < 41_000


def test_items_are_chosen_evenly_with_both_ends():
    assert evenly([*range(10)], 4) == [0, 3, 6, 9]
    assert evenly([1, 2], 4) == [1, 2]


def test_a_run_that_has_only_begun_has_a_page(tmp_path, finished_run):
    (tmp_path / "run.json").write_text((finished_run / "run.json").read_text())
    words = " ".join(data for _, data in Reader(page(read_facts(tmp_path))).texts)
    for expected in ("0 of 60", "No metrics", "No samples", "There is none", "has no events"):
        assert expected in words
