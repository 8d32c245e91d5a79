import pytest

from stylecrafter_jax.data.records import BadRecord, Record, from_bytes, to_bytes

RECORD = Record(
    kind="video", media=b"\x00\x01media", caption="ein Bär, 熊", id="a/b.mp4", styles=(b"s1", b"")
)


def test_a_record_survives_its_bytes():
    assert from_bytes(to_bytes(RECORD)) == RECORD


def test_the_bytes_are_the_documented_ones():
    record = Record(kind="image", media=b"M", caption="c", id="i", styles=(b"SS",))
    header = b'{"version":1,"kind":"image","caption":"c","id":"i","sizes":[1,2]}'
    assert to_bytes(record) == b"SCRD" + bytes([len(header), 0, 0, 0]) + header + b"MSS"


def test_every_cut_is_noticed():
    data = to_bytes(RECORD)
    for end in range(len(data)):
        with pytest.raises(BadRecord):
            from_bytes(data[:end])
    with pytest.raises(BadRecord, match="bytes"):
        from_bytes(data + b"x")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"SCRD", b"XXXX", "not a record"),
        (b'"version":1', b'"version":2', "version 2"),
        (b'"kind":"video"', b'"kind":"sound"', "sound"),
        (b'"sizes":[', b'"sizes":{', "damaged"),
    ],
)
def test_a_wrong_header_is_one_line_with_the_reason(old, new, reason):
    data = to_bytes(RECORD)
    assert old in data
    with pytest.raises(BadRecord, match=reason):
        from_bytes(data.replace(old, new))
