"""Texts that people and programs write: lists of prompts, tables, captions, configs, ledgers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylecrafter_jax.commands.convert import read_model
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.data.captions import RULES, flip_is_safe
from stylecrafter_jax.data.folders import FolderSource, WebVidSource
from stylecrafter_jax.data.records import BadRecord, DataError, check_caption
from stylecrafter_jax.data.tables import read_table
from stylecrafter_jax.jobs import JobError, read_list
from stylecrafter_jax.metrics.ledger import Ledger
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import DataConfig, Experiment, override
from stylecrafter_jax.train.metrics_log import read_metrics
from stylecrafter_jax.train.runs import read_run
from tests.data.conftest import picture
from tests.fuzz.laws import bytes_like, fuzzed, nothing_left, read_or_refused
from tests.fuzz.values import JSON, NAMES


def json_bytes(values):
    return values.map(lambda value: json.dumps(value).encode())


def some(fields: dict):
    """Objects with some of the fields of the right kind, and any values."""
    return st.fixed_dictionaries({}, optional={n: v | JSON for n, v in fields.items()}) | JSON


ENTRIES = st.lists(some({"prompt": st.just("a cat"), "style_path": st.just("a.png")}), max_size=3)


def test_lists_of_prompts(tmp_path):
    path = tmp_path / "list.json"
    whole = b'[{"prompt": "a cat", "style_path": ["a.png", "b.png"]}, {"prompt": "b"}]'

    @fuzzed(150)
    @given(bytes_like(whole) | json_bytes(ENTRIES | JSON))
    def law(data):
        path.write_bytes(data)
        found, _ = read_or_refused(lambda: read_list(path), JobError, name=path.name)
        for entry in found or []:
            assert isinstance(entry.prompt, str) and entry.styles

    law()


ROWS = some({"file": st.just("a.jpg"), "caption": st.just("a cat"), "style": st.just("b.jpg")})
JSONL = st.lists(json_bytes(ROWS), max_size=3).map(b"\n".join)
CSV = b'file,caption,style\na.jpg,a cat,b.jpg\nb.jpg,"two\nlines",\n'


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_caption_tables(tmp_path, name):
    path, folder = tmp_path / name, tmp_path / "media"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(picture(12, 20))
    whole = CSV if name.endswith("csv") else b'{"file": "a.jpg", "caption": "a cat"}\n' * 2

    @fuzzed(150)
    @given(bytes_like(whole) | (bytes_like(CSV) if name.endswith("csv") else JSONL))
    def law(data):
        path.write_bytes(data)
        with nothing_left(tmp_path):
            read_or_refused(lambda: read_table(path), DataError, name=path.name)
            source, _ = read_or_refused(lambda: FolderSource(folder, path), DataError)
            for index in range(0 if source is None else len(source)):
                source.id(index).encode("utf-8")
                read_or_refused(lambda index=index: source[index], BadRecord)

    law()


def test_webvid_tables(tmp_path):
    path = tmp_path / "table.csv"
    whole = b"videoid,contentUrl,page_dir,name\n17,x,000_050,a cat\n18,x,,two\n"

    @fuzzed(100)
    @given(bytes_like(whole))
    def law(data):
        path.write_bytes(data)
        source, _ = read_or_refused(lambda: WebVidSource(path), DataError, name=path.name)
        for index in range(0 if source is None else len(source)):
            source.id(index).encode("utf-8")
            read_or_refused(lambda index=index: source[index], BadRecord)

    law()


@fuzzed(200)
@given(JSON | st.text(max_size=200) | st.text("of in a the painting, style-:\n", max_size=300))
def test_captions(tokenizer, value):
    caption, _ = read_or_refused(lambda: check_caption(value), BadRecord)
    if caption is None:
        return
    for rule in RULES.values():
        assert isinstance(rule(caption), str)
    flip_is_safe(caption)
    ids = tokenizer([caption])
    assert ids.shape == (1, tokenizer.context_length) and ids.dtype == np.int32
    assert 0 <= ids.min() and ids.max() < tokenizer.vocab_size


def configs(default):
    """A config's JSON with one value, anywhere in it, replaced."""

    @st.composite
    def strategy(draw):
        values = json.loads(json.dumps(to_dict(default)))
        node, name = values, draw(st.sampled_from(sorted(values)))
        while isinstance(node[name], dict) and node[name] and draw(st.booleans()):
            node = node[name]
            name = draw(st.sampled_from(sorted(node)))
        node[draw(st.just(name) | NAMES)] = draw(JSON)
        return values

    return strategy()


def test_configs_of_models(tmp_path):
    path = tmp_path / "model.json"
    whole = json.dumps(to_dict(ModelConfig())).encode()

    @fuzzed(200)
    @given(bytes_like(whole) | json_bytes(configs(ModelConfig()) | JSON))
    def law(data):
        path.write_bytes(data)
        found, _ = read_or_refused(lambda: read_model(path), ConfigError)
        assert found is None or isinstance(found, ModelConfig)

    law()


SETTINGS = st.sampled_from(
    ["train.steps", "data.drop", "data.stride", "optimizer.learning_rate", "mesh.data", "stage"]
)


@fuzzed(150)
@given(st.builds("{}={}".format, SETTINGS | NAMES, JSON.map(json.dumps) | st.text(max_size=9)))
def test_settings_of_the_command_line(assignment):
    experiment = Experiment(bundle="bundle", stage="stage1", data=DataConfig(images="photos"))
    read_or_refused(lambda: override(experiment, [assignment]), ConfigError)


def test_run_files(tmp_path):
    whole = json.dumps({"experiment": {"stage": "stage1"}, "bundle": {"path": "x"}}).encode()

    @fuzzed(100)
    @given(bytes_like(whole) | json_bytes(JSON))
    def law(data):
        (tmp_path / "run.json").write_bytes(data)
        found, _ = read_or_refused(lambda: read_run(tmp_path), ConfigError, name="run.json")
        assert found is None or {"experiment", "bundle"} <= found.keys()
        (tmp_path / "metrics.jsonl").write_bytes(data + b"\n")
        rows, _ = read_or_refused(lambda: read_metrics(tmp_path), ValueError, name="metrics.jsonl")
        assert rows is None or all(isinstance(row["step"], int) for row in rows)

    law()


def test_ledgers_of_metrics(tmp_path):
    path = tmp_path / "items.jsonl"
    whole = b'{"entry": 0, "scores": {"a": 0.5}, "fingerprints": {"a": "00ff"}}\n' * 2

    @fuzzed(100)
    @given(bytes_like(whole) | json_bytes(JSON).map(lambda data: data + b"\n"))
    def law(data):
        path.write_bytes(data)
        read_or_refused(lambda: Ledger(path), ValueError, name=path.name)

    law()


def test_tokenizers(tmp_path):
    texts = ["a cat sits", "the dog runs over a hill"]
    Tokenizer.train(texts, 540).save(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    whole = path.read_bytes()

    @fuzzed(60)
    @given(bytes_like(whole) | json_bytes(JSON))
    def law(data):
        path.write_bytes(data)
        found, _ = read_or_refused(
            lambda: Tokenizer.load(path.parent), ValueError, name=str(path.parent)
        )
        if found is not None:
            assert found(["a cat"]).shape == (1, 77)

    law()
