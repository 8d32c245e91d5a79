import json
import os

import pytest

from stylecrafter_jax.data.folders import FolderSource, WebVidSource
from stylecrafter_jax.data.records import BadRecord, DataError
from stylecrafter_jax.data.sources import open_source
from tests.data.conftest import numbered_clip, picture


def test_captions_and_styles_beside_pictures_are_found(photos):
    (photos / "sub").mkdir()
    (photos / "sub/cat.png").write_bytes(picture(9, 9, form="PNG"))
    (photos / "sub/cat.txt").write_bytes("\ufeffa cat\n".encode())
    (photos / "sub/cat.style.jpg").write_bytes(picture(8, 8, seed=1))
    (photos / "sub/cat.style1.png").write_bytes(picture(8, 8, seed=2, form="PNG"))
    (photos / "._cat.png").write_bytes(b"hidden")
    source = open_source(photos)
    assert len(source) == 14
    assert [source.id(i) for i in (0, 12, 13)] == ["00.jpg", "12.jpg", "sub/cat.png"]
    record = source[13]
    assert (record.kind, record.caption) == ("image", "a cat")
    assert record.media == picture(9, 9, form="PNG")
    assert record.styles == (picture(8, 8, seed=1), picture(8, 8, seed=2, form="PNG"))
    assert source[4].caption == "a painting of thing 4"


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.csv"])
def test_a_table_gives_captions_styles_and_several_rows_a_file(photos, name):
    rows = [
        {"file_name": "03.jpg", "text": 'three, "quoted"', "style": "01.jpg"},
        {"file_name": "03.jpg", "text": "again", "style": ""},
        {"file_name": "gone.jpg", "text": "gone", "style": ""},
    ]
    if name.endswith("csv"):
        text = 'file_name,text,style\n03.jpg,"three, ""quoted""",01.jpg\n03.jpg,again,\n'
        (photos / name).write_text(text + "gone.jpg,gone,\n")
    else:
        (photos / name).write_text("\n".join(map(json.dumps, rows)))
    (photos / "03.style.jpg").write_bytes(picture(8, 8, seed=1))
    source = FolderSource(photos)
    assert [source[i].caption for i in (0, 1)] == ['three, "quoted"', "again"]
    assert source[0].styles == ((photos / "01.jpg").read_bytes(),)
    assert source[1].styles == (picture(8, 8, seed=1),)
    with pytest.raises(BadRecord, match="missing"):
        source[2]
    # The other eleven have no row: they are there, and refused.
    assert len(source) == 3 + 11
    with pytest.raises(BadRecord, match="no caption"):
        source[3]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (5, "must be a text, got 5"),
        (" ", "empty"),
        (None, "no caption"),
        ("\ud83d", "halves of characters"),
    ],
)
def test_a_wrong_caption_refuses_its_record_only(photos, caption, reason):
    rows = [{"file": "00.jpg", "caption": caption}, {"file": "01.jpg", "caption": "fine"}]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = FolderSource(photos)
    with pytest.raises(BadRecord, match=reason):
        source[0]
    assert source[1].caption == "fine"


def test_an_empty_file_is_refused(photos):
    (photos / "00.jpg").write_bytes(b"")
    with pytest.raises(BadRecord, match="zero bytes"):
        FolderSource(photos)[0]


def test_what_is_wrong_with_a_folder_is_one_line(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures or videos"):
        FolderSource(tmp_path / "empty")
    with pytest.raises(DataError, match="no file or folder"):
        open_source(tmp_path / "none")
    (photos / "07.txt").write_bytes("ein Bär\nzwei Bären\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"07.txt is not UTF-8: byte 0xe4 in line 1"):
        FolderSource(photos)
    for file in photos.glob("*.txt"):
        file.unlink()
    with pytest.raises(DataError, match="none of the 13 files .* has a caption"):
        FolderSource(photos)
    (photos / "captions.jsonl").write_text('{"file": "00.jpg"}')
    (photos / "captions.csv").write_text("file,caption\n")
    with pytest.raises(DataError, match="captions.jsonl and captions.csv"):
        FolderSource(photos)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"file": "00.jpg", "caption": "x"}\n{"file"', "line 2: not JSON"),
        ("[1]", "line 1: wanted an object"),
        ('{"img": "00.jpg"}', "line 1: wanted a file under .*; the row has img"),
    ],
)
def test_a_broken_table_names_the_line(photos, text, reason):
    (photos / "captions.jsonl").write_text(text)
    with pytest.raises(DataError, match=reason):
        FolderSource(photos)


def test_webvid_tables_find_their_clips(tmp_path):
    (tmp_path / "videos/p1").mkdir(parents=True)
    numbered_clip(tmp_path / "videos/p1/11.mp4", 3)
    numbered_clip(tmp_path / "videos/22.mp4", 4)
    table = tmp_path / "results.csv"
    table.write_text(
        "videoid,contentUrl,duration,page_dir,name\n"
        '11,http://a,PT00H00M05S,p1,"Waves, at sunset"\n'
        "22,http://b,PT00H00M05S,p2,Hills\n"
        "33,http://c,PT00H00M05S,p3,Gone\n"
    )
    source = open_source(table)
    assert isinstance(source, WebVidSource)
    assert len(source) == 3
    assert source[0].caption == "Waves, at sunset"
    assert source[0].media == (tmp_path / "videos/p1/11.mp4").read_bytes()
    assert source[1].media == (tmp_path / "videos/22.mp4").read_bytes()
    assert (source.id(2), source[0].kind) == ("33", "video")
    with pytest.raises(BadRecord, match="missing"):
        source[2]


def test_a_name_in_no_known_encoding_can_be_reported(photos):
    name = os.fsdecode(b"caf\xe9.jpg")
    (photos / name).write_bytes(picture(9, 9))
    source = FolderSource(photos)
    ids = [source.id(i) for i in range(len(source))]
    assert "caf\ufffd.jpg" in ids
    with pytest.raises(BadRecord, match="no caption"):
        source[ids.index("caf\ufffd.jpg")]
