"""Where records come from: what a source is, and which one a path means."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from stylecrafter_jax.data import features
from stylecrafter_jax.data.archives import ARRAY_RECORD, ArrayRecordSource, TarSource
from stylecrafter_jax.data.folders import WEBVID_COLUMNS, FolderSource, WebVidSource
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.data.tables import read_rows
from stylecrafter_jax.data.tfds_source import TfdsSource

TFDS = "tfds:"


@runtime_checkable
class Source(Protocol):
    """Records by number, always the same one for the same number.

    Reading one may raise `BadRecord`; it is then replaced and counted. A source is sent to worker
    processes by pickling, and read by several threads at once.

    Attributes:
        name: what reports call it.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """Returns the item that the stream's transform takes, usually a `Record`."""
        ...

    def id(self, index: int, /) -> str:
        """Returns what a report calls the item, even if it cannot be read."""
        ...


def open_source(
    data: str | Path,
    *,
    captions: str | Path | None = None,
    videos: str | Path | None = None,
    split: str = "train",
    image_feature: str | None = None,
    caption_feature: str | None = None,
) -> Source:
    """Returns the source that a path means.

    | `data` | source |
    | --- | --- |
    | `tfds:NAME`, or a folder with `dataset_info.json` | `TfdsSource` |
    | a folder with `features.json` | `ArrayRecordSource` of `FeatureRecord`s |
    | a CSV file with the columns `videoid` and `name` | `WebVidSource` |
    | another CSV or JSONL file | `FolderSource` of its folder |
    | a `.tar`, or a folder with some | `TarSource` |
    | an ArrayRecord file, or a folder with some | `ArrayRecordSource` |
    | another folder | `FolderSource` |

    Args:
        data: see above.
        captions: the caption table of a folder, if it is not in it.
        videos: the folder of WebVid's clips.
        split: of TensorFlow Datasets.
        image_feature: of TensorFlow Datasets.
        caption_feature: of TensorFlow Datasets.

    Raises:
        DataError: there is no such path, or the source cannot be opened.
    """
    text, path = str(data), Path(data)
    if text.startswith(TFDS) or (path / "dataset_info.json").is_file():
        name = text.removeprefix(TFDS)
        return TfdsSource(name, split, image=image_feature, caption=caption_feature)
    if not path.exists():
        raise DataError(f"there is no file or folder {path}")
    if features.is_features(path):
        return ArrayRecordSource(path, features.from_bytes)
    if path.suffix.lower() in (".csv", ".jsonl"):
        _, first = next(read_rows(path), (0, {}))
        if all(column in first for column in WEBVID_COLUMNS):
            return WebVidSource(path, videos)
        return FolderSource(path.parent, path)
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return TarSource(path)
    shards = path.iterdir() if path.is_dir() else [path]
    if any(ARRAY_RECORD.search(shard.name) for shard in shards):
        return ArrayRecordSource(path)
    if not path.is_dir():
        raise DataError(f"{path} is no folder, table, tar or ArrayRecord file")
    return FolderSource(path, captions)
