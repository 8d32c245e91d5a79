import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from stylecrafter_jax.tokenizer import Tokenizer

LONG = " ".join(f"word{i}" for i in range(60))
PROMPTS = [
    "A knight's CASTLE, 3 o'clock!",
    "日本 🌃 naïve",
    "<start_of_text> x <end_of_text>",
    LONG,
]


@pytest.fixture(scope="module")
def clip():
    return Tokenizer.load()


def ids(tokenizer, prompt):
    """The ids between start and end."""
    row = tokenizer([prompt])[0].tolist()
    assert row[0] == tokenizer.start
    return row[1 : len(row) - row[::-1].index(tokenizer.end) - 1]


def write_pair(folder, vocab, merges):
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def letters(*more):
    return {name: i for i, name in enumerate(["<|startoftext|>", "<|endoftext|>", *more])}


def test_known_prompts_have_the_ids_of_openai_clip(clip):
    np.testing.assert_array_equal(
        clip(["a photo of a cat", "hello world!"])[:, :8],
        [[49406, 320, 1125, 539, 320, 2368, 49407, 0], [49406, 3306, 1002, 256, 49407, 0, 0, 0]],
    )
    assert clip.vocab_size == 49408


def test_ids_are_int32_padded_with_zero_to_the_context_length(clip):
    row = clip(["", "a cat"])
    assert row.shape == (2, 77) and row.dtype == np.int32
    assert row[0].tolist() == [49406, 49407] + [0] * 75
    assert clip([]).shape == (0, 77)


@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        ("A CAT", "a cat"),
        ("  a\t\n cat\u3000", "a cat"),
        ("Tom &amp;amp; Jerry &lt;3", "tom & jerry <3"),
        ("donâ€™t", "don't"),
        ("\uff21 cat", "a cat"),
        ("2024", "2 0 2 4"),
        ("cat!!", "cat !!"),
    ],
)
def test_prompts_that_clean_to_the_same_text_have_the_same_ids(clip, prompt, same):
    assert ids(clip, prompt) == ids(clip, same)


def test_markers_become_special_ids_where_a_word_may_begin(clip):
    assert ids(clip, "cat<end_of_text>") == [*ids(clip, "cat"), 49407]
    assert ids(clip, "<start_of_text><END_OF_TEXT>") == [49406, 49407]
    glued = ids(clip, "!<end_of_text>")
    assert 49407 not in glued and glued == ids(clip, "!< end _ of _ text >")


def test_long_prompt_is_cut_with_the_end_token_last(clip):
    row = clip([LONG])[0]
    assert row[-1] == 49407 and 0 not in row
    untouched = Tokenizer.load(context_length=1000)([LONG])[0]
    np.testing.assert_array_equal(row[:-1], untouched[:76])


def test_lost_text_is_what_the_ids_leave_out(clip):
    lost = clip.lost_text(LONG)
    kept = LONG.removesuffix(lost)
    assert lost and kept + lost == LONG
    assert ids(clip, kept) == clip([LONG])[0, 1:-1].tolist()


@pytest.mark.parametrize("words", [1, 74, 75])
def test_nothing_is_lost_of_a_prompt_that_fits(clip, words):
    assert clip.lost_text("cat " * words) is None
    assert clip.lost_text("cat " * 75 + "<end_of_text> Dog") == "<end_of_text> dog"


def test_saved_tokenizer_loads_with_the_same_ids(clip, tmp_path):
    clip.save(tmp_path / "tokenizer")
    again = Tokenizer.load(tmp_path / "tokenizer", context_length=20)
    np.testing.assert_array_equal(again(PROMPTS)[:, :-1], clip(PROMPTS)[:, :19])
    assert [f.name for f in (tmp_path / "tokenizer").iterdir()] == ["tokenizer.json"]


def test_save_that_fails_leaves_the_old_file(clip, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        clip.save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_text() == "old"


def test_vocabulary_and_merges_of_a_folder_give_its_own_ids(tmp_path):
    vocab = letters("c", "a", "t</w>", "ca", "cat</w>", "a</w>")
    write_pair(tmp_path, vocab, ["c a", "ca t</w>"])
    tokenizer = Tokenizer.load(tmp_path, context_length=6)
    assert tokenizer.vocab_size == 8
    assert tokenizer(["a Cat"]).tolist() == [[0, vocab["a</w>"], vocab["cat</w>"], 1, 0, 0]]


def test_hugging_face_file_keeps_its_own_words_and_drops_its_padding(tmp_path):
    backend = tokenizers.Tokenizer(
        models.WordLevel(letters("red", "cat", "?") | {"12": 5}, unk_token="?")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.enable_padding(length=50)
    backend.enable_truncation(1)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path, context_length=8)
    assert tokenizer(["red Cat 12 dog"]).tolist() == [[0, 2, 3, 5, 4, 1, 0, 0]]


def test_empty_folder_means_the_embedded_tokenizer(clip, tmp_path):
    np.testing.assert_array_equal(Tokenizer.load(tmp_path)(PROMPTS), clip(PROMPTS))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "cannot read the tokenizer in"),
        ({"vocab.json": "[", "merges.txt": "\n"}, "cannot read the tokenizer in"),
        ({"vocab.json": "{}", "merges.txt": "\na b c\n"}, "cannot read the tokenizer in"),
        ({"vocab.json": "{}"}, "has vocab.json but no merges.txt"),
        ({"merges.txt": "\n"}, "has merges.txt but no vocab.json"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "\n"}, "neither <|startoftext|> nor <start_of"),
    ],
)
def test_broken_folder_is_one_line_that_names_it(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        Tokenizer.load(tmp_path)
    assert message in str(error.value) and str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_arguments_are_named(clip, tmp_path):
    with pytest.raises(ValueError, match="context_length must be at least 2, got 1"):
        Tokenizer.load(context_length=1)
    with pytest.raises(ValueError, match="missing does not exist"):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(TypeError, match="list of texts"):
        clip("a cat")
