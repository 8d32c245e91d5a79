import io
import json
import pickle
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.data.sources import open_source
from stylecrafter_jax.data.tfds_source import TfdsSource
from tests.data.conftest import picture

PICTURES = {picture(20 + i, 30, seed=i, form="PNG"): f"a cat number {i}" for i in range(5)}


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Five pictures."""

    # A name with dots makes TFDS 4.9.10 import importlib_resources, which it does not install.
    __module__ = "tiny"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(names=["big_cat", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, (media, caption) in enumerate(PICTURES.items()):
            yield i, {"image": io.BytesIO(media), "captions": [caption, "b"], "label": i % 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = Tiny(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def test_pictures_come_as_stored_with_the_first_of_several_captions(folder):
    source = pickle.loads(pickle.dumps(open_source(folder)))
    assert isinstance(source, TfdsSource)
    assert (source.name, len(source), source.id(3)) == ("tiny", 5, "train/3")
    records = [source[i] for i in range(5)]
    assert {record.media: record.caption for record in records} == PICTURES


def test_a_class_is_a_caption_and_a_split_a_part(folder):
    source = open_source(f"tfds:{folder}", split="train[:2]", caption_feature="label")
    assert len(source) == 2
    everything = open_source(folder, caption_feature="label")
    captions = sorted(everything[i].caption for i in range(5))
    assert captions == ["big cat"] * 3 + ["dog"] * 2


def test_wrong_names_are_one_line(folder):
    with pytest.raises(DataError, match="no nonsense, the caption in tiny; it has .*captions"):
        open_source(folder, caption_feature="nonsense")
    with pytest.raises(DataError, match="cannot read tiny, split test"):
        open_source(folder, split="test")
    with pytest.raises(DataError, match="has no data set"):
        open_source("tfds:there_is_no_such_data_set")


READ = """
import json, sys
from stylecrafter_jax.data.tfds_source import TfdsSource

source = TfdsSource(sys.argv[1])
media = [len(source[i].media) for i in range(len(source))]
print(json.dumps({"media": media, "tensorflow": "tensorflow" in sys.modules}))
"""


def test_tensorflow_is_not_needed(folder):
    command = [sys.executable, "-c", READ, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert sorted(found["media"]) == sorted(len(media) for media in PICTURES)
    assert not found["tensorflow"]
