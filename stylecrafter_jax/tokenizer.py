"""Prompts to token ids: CLIP's byte-pair tokenizer, from the embedded merges or a folder."""

import dataclasses
import gzip
import html
import importlib.resources
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models, pre_tokenizers, trainers

START = ("<|startoftext|>", "<start_of_text>")
END = ("<|endoftext|>", "<end_of_text>")
MARKER = re.compile("<(start|end)_of_text>")
# The file lists more merges than CLIP was trained with: 49408 = 2 * 256 bytes + merges + 2 markers.
MERGES = 49408 - 2 * 256 - 2
# Text is lower-cased before, and the original ignores case, which lets a long s pass for an s.
WORDS = r"'(?:[sſtmd]|re|ve|ll)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Turns prompts into token ids of a fixed length, equal to those of `open_clip.tokenize`.

    A prompt is repaired by ftfy, HTML-unescaped twice, its white space collapsed, lower-cased,
    cut into words and the words into byte pairs. `<start_of_text>` and `<end_of_text>` in a
    prompt become the special ids.

    Attributes:
        backend: words and byte pairs; adds no special tokens, neither cuts nor pads.
        start: id before every prompt.
        end: id after every prompt; also the last one of a prompt that was cut.
        context_length: number of ids per prompt, start and end included.

    Source: open_clip, src/open_clip/tokenizer.py, SimpleTokenizer.
    """

    backend: tokenizers.Tokenizer
    start: int
    end: int
    context_length: int = 77

    def __post_init__(self):
        if self.context_length < 2:
            raise ValueError(f"context_length must be at least 2, got {self.context_length}")

    @classmethod
    def load(cls, folder: Path | None = None, context_length: int = 77) -> "Tokenizer":
        """Returns the tokenizer of a folder, or CLIP's where the folder has none.

        Args:
            folder: may hold Hugging Face's `tokenizer.json`, or `vocab.json` and `merges.txt`;
                the first wins.
            context_length: number of ids per prompt.

        Raises:
            ValueError: the folder does not exist, a file in it is broken, the other one of a pair
                is missing, or its vocabulary has no start or end token.
        """
        source, backend = "the embedded tokenizer", None
        if folder is not None:
            if not folder.is_dir():
                raise ValueError(f"the tokenizer folder {folder} does not exist")
            source, backend = str(folder), _from_folder(folder)
        backend = backend or _embedded()
        start, end = (_special(backend, names, source) for names in (START, END))
        return cls(backend, start, end, context_length)

    @classmethod
    def in_bundle(cls, bundle: str | Path, context_length: int) -> "Tokenizer":
        """Returns the tokenizer of a bundle; of one that brings none, the embedded merges."""
        folder = Path(bundle) / "tokenizer"
        return cls.load(folder if folder.is_dir() else None, context_length)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, context_length: int = 77) -> "Tokenizer":
        """Returns a tokenizer of CLIP's kind whose byte pairs are those most frequent in `texts`.

        Args:
            texts: captions.
            vocab_size: at most so many ids: 512 of bytes, two markers, the rest of pairs.
            context_length: number of ids per prompt.

        Raises:
            ValueError: `vocab_size` leaves no room for pairs.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [*alphabet, *(symbol + "</w>" for symbol in alphabet)]
        markers = [START[1], END[1]]
        room = vocab_size - len(words) - len(markers)
        if room < 1:
            least = vocab_size - room + 1
            raise ValueError(f"vocab_size must be at least {least}, got {vocab_size}")
        learned = _byte_pairs({word: i for i, word in enumerate(words)}, [])
        trainer = trainers.BpeTrainer(  # which knows no symbol at the end of a word beforehand
            vocab_size=vocab_size,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        )
        learned.train_from_iterator((_clean(text) for text in texts), trainer)
        pairs = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]][:room]
        vocab = [*words, *("".join(pair) for pair in pairs), *markers]
        backend = _byte_pairs({word: i for i, word in enumerate(vocab)}, pairs)
        return cls(backend, len(vocab) - 2, len(vocab) - 1, context_length)

    @property
    def vocab_size(self) -> int:
        """The largest id plus one: the rows that the text encoder's embedding must have."""
        return 1 + max(self.backend.get_vocab().values())

    def __call__(self, prompts: Sequence[str]) -> Int32[np.ndarray, "b l"]:
        """Returns the ids of each prompt, padded with 0 to `context_length`."""
        if isinstance(prompts, str):
            raise TypeError(f"prompts must be a list of texts, got the text {prompts!r}")
        ids = np.zeros((len(prompts), self.context_length), np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            tokens = [self.start, *(token for token, _ in self._encode(_clean(prompt)))]
            tokens = [*tokens[: self.context_length - 1], self.end]
            row[: len(tokens)] = tokens
        return ids

    def lost_text(self, prompt: str) -> str | None:
        """Returns the end of a prompt that does not fit, or None if all of it fits.

        It is the cleaned text, lower-case as the model would read it, from the first token that
        was cut; this may be in the middle of a word.
        """
        text = _clean(prompt)
        cut = self._encode(text)[self.context_length - 2 :]
        return text[cut[0][1] :] if cut else None

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, which `load` reads back, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            file = Path(partial) / "tokenizer.json"
            file.write_text(self.backend.to_str(), encoding="utf-8")
            os.replace(file, folder / file.name)

    def _encode(self, text: str) -> list[tuple[int, int]]:
        """Returns (id, position in the text) of every token of a cleaned prompt."""
        tokens, end = [], 0
        for marker in (*_markers(text), None):
            piece = text[end : marker.start() if marker else None]
            found = self.backend.encode(piece, add_special_tokens=False)
            tokens += [(i, end + at) for i, (at, _) in zip(found.ids, found.offsets, strict=True)]
            if marker:
                special = self.start if marker[1] == "start" else self.end
                tokens.append((special, marker.start()))
                end = marker.end()
        return tokens


def _clean(prompt: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split()).lower()


def _markers(text: str) -> list[re.Match[str]]:
    """Returns the markers in a text, without those whose "<" belongs to punctuation before it."""
    markers, end = [], 0
    for marker in MARKER.finditer(text):
        before = text[end : marker.start()][-1:]
        if not before or before == " " or unicodedata.category(before)[0] in "LN":
            markers.append(marker)
            end = marker.end()
    return markers


def _byte_pairs(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Returns CLIP's tokenizer over a vocabulary; a symbol it lacks becomes the end token."""
    unknown = next((name for name in END if name in vocab), None)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token=unknown, end_of_word_suffix="</w>")
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def _merges(text: str) -> list[tuple[str, str]]:
    """Returns the pairs of a merges file, whose first line is a comment."""
    pairs = []
    for line in text.split("\n")[1:]:
        if line.strip():
            left, right = line.split()
            pairs.append((left, right))
    return pairs


def _embedded() -> tokenizers.Tokenizer:
    asset = importlib.resources.files("stylecrafter_jax") / "assets/bpe_simple_vocab_16e6.txt.gz"
    merges = _merges(gzip.decompress(asset.read_bytes()).decode("utf-8"))[:MERGES]
    # Sorted, the byte symbols come as CLIP numbers them: printable bytes first, then the others.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges)]
    vocab = {word: i for i, word in enumerate([*words, "<start_of_text>", "<end_of_text>"])}
    return _byte_pairs(vocab, merges)


def _from_folder(folder: Path) -> tokenizers.Tokenizer | None:
    whole, vocab, merges = (folder / n for n in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.exists() and vocab.exists() != merges.exists():
        found, lost = (vocab, merges) if vocab.exists() else (merges, vocab)
        raise ValueError(f"{folder} has {found.name} but no {lost.name}")
    try:
        if whole.exists():
            backend = tokenizers.Tokenizer.from_file(str(whole))
            backend.no_truncation()
            backend.no_padding()
            return backend
        if vocab.exists():
            words = json.loads(vocab.read_text(encoding="utf-8"))
            return _byte_pairs(words, _merges(merges.read_text(encoding="utf-8")))
    except Exception as error:  # the tokenizers library raises plain Exception on a broken file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read the tokenizer in {folder}: {reason}") from error
    return None


def _special(backend: tokenizers.Tokenizer, names: tuple[str, ...], source: str) -> int:
    """Returns the id of the first of the names that the vocabulary has."""
    for name in names:
        found = backend.token_to_id(name)
        if found is not None:
            return found
    raise ValueError(f"{source}: the vocabulary has neither {' nor '.join(names)}")
