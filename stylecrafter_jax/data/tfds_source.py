"""TensorFlow Datasets as a random-access source, read without TensorFlow."""

from pathlib import Path
from typing import Any

from stylecrafter_jax.data.records import BadRecord, DataError, Record, check_caption, check_media
from stylecrafter_jax.foreign import reason

CAPTION_FEATURES = ("caption", "captions", "text", "label")


class TfdsSource:
    """A prepared data set of TensorFlow Datasets in its array_record format.

    Pictures are read encoded, as they were stored. A caption is a text, the first of several
    texts, or the name of a class. Only pictures are supported: a `Video` feature holds separate
    frames without a rate.

    Args:
        data: the folder of a version (the one with `dataset_info.json`), or a name such as
            `oxford_flowers102`, looked up in TFDS's own data folder.
        split: such as `train`, or `train[:10%]`.
        image: the feature with the picture; the only `Image` feature if not given.
        caption: the feature with the caption; `caption`, `captions`, `text` or `label` if not
            given.

    Raises:
        DataError: the data set is not prepared in this format, or lacks split or features.
    """

    def __init__(
        self,
        data: str | Path,
        split: str = "train",
        *,
        image: str | None = None,
        caption: str | None = None,
    ):
        import tensorflow_datasets as tfds  # here, since it takes a second and few runs need it

        try:
            folder = Path(data)
            prepared = (folder / "dataset_info.json").is_file()
            builder: Any = (
                tfds.builder_from_directory(folder) if prepared else tfds.builder(str(data))
            )
        except Exception as error:  # it raises many kinds, some of them not even ValueErrors
            raise DataError(
                f"TensorFlow Datasets has no data set {data}: {reason(error)}"
            ) from error
        features: Any = builder.info.features
        self.name = builder.info.name
        self._split = split
        images = [name for name, f in features.items() if isinstance(f, tfds.features.Image)]
        captions = [name for name in CAPTION_FEATURES if name in features]
        self._image = _choose(image, images, features, f"picture in {self.name}")
        self._caption = _choose(caption, captions[:1], features, f"caption in {self.name}")
        self._classes = getattr(features[self._caption], "names", None)
        try:
            decoders = {self._image: tfds.decode.SkipDecoding()}
            self._rows: Any = builder.as_data_source(split=split, decoders=decoders)
        except Exception as error:
            raise DataError(
                f"cannot read {self.name}, split {split}: {reason(error)}; prepare it with "
                f"`tfds build {self.name} --file_format=array_record`"
            ) from error
        if not len(self._rows):
            raise DataError(f"{self.name}, split {split}, is empty")

    def __len__(self) -> int:
        return len(self._rows)

    def id(self, index: int) -> str:
        return f"{self._split}/{index}"

    def __getitem__(self, index: int) -> Record:
        try:
            row = self._rows[index]
        except Exception as error:  # whatever the reader raises on a damaged shard
            raise BadRecord(f"cannot read the shard: {reason(error)}") from error
        return Record(
            kind="image",
            media=check_media(row[self._image]),
            caption=check_caption(self._text(row[self._caption])),
            id=self.id(index),
        )

    def _text(self, value: Any) -> Any:
        if self._classes is not None:
            return self._classes[value].replace("_", " ")
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadRecord(f"the caption is not UTF-8 (byte {error.start})") from error
        return value


def _choose(name: str | None, found: list[str], features: Any, what: str) -> str:
    if name is None and len(found) == 1:
        return found[0]
    if name is None or name not in features:
        known = ", ".join(features)
        problem = "say which feature is the" if name is None else f"there is no {name}, the"
        raise DataError(f"{problem} {what}; it has {known}")
    return name
