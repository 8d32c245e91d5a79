"""Captions without the words for the medium: the style comes from the reference, not the text."""

import re
from collections.abc import Callable

# The order matters to `released`: "photo" hides "photograph", as in the original.
RELEASED_MEDIA = (
    *("painting", "drawing", "mural", "artwork", "view", "portrait", "photo", "photograph"),
    *("watercolor", "illustration", "picture", "digital art"),
)
_MEDIUM = f"(?:{'|'.join(RELEASED_MEDIA)})"
RELEASED_RULES = tuple(
    re.compile(rule)
    for rule in (
        rf"^((a )?(\w+\s+)*{_MEDIUM} of )+",
        rf"in (a )?(\w+\s+)*{_MEDIUM}\s?",
        r"^(?:painting|photograph|digital art|black and white photograph) - ",
    )
)

# Words that name a medium in any caption.
MEDIA = (
    *("painting", "drawing", "mural", "fresco", "artwork", "art work", "digital art", "pixel art"),
    *("line art", "concept art", "clip art", "fan art", "photo", "photograph", "snapshot"),
    *("picture", "image", "illustration", "sketch", "watercolou?r", "portrait", "engraving"),
    *("etching", "lithograph", "woodcut", "linocut", "print", "poster", "cartoon", "comic"),
    *("render", "rendering", "collage", "mosaic", "tapestry", "pastel", "gouache"),
)
# Words that name a medium only as a tag of their own, such as ", oil on canvas".
TAGS = (
    *("(?:oil|acrylic|ink|gouache|pastel|watercolou?r)(?: and \\w+)? on (?:canvas|paper|board)",),
    *("(?:oil|watercolou?r|acrylic)s?", "ink wash", "photography", "abstract art", "pop art"),
    *("art", "3d", "anime", "ukiyo-e", "impressionism", "cubism", "surrealism", "pointillism"),
)
# No word between an article and a medium is one of these: "a man with a painting of a dog".
_NOT_A_MODIFIER = (
    r"(?!(?:an?|the|of|in|on|at|by|to|with|from|for|and|or|near|next|under|over|is|are|has|who|that"
    r"|this|which|front|his|her|their|its)\b)"
    # Nor a verb: "a man holding a painting of a dog".
    r"(?!(?!stunning|striking|charming|amazing|interesting)\w+ing\b)"
)
_MODIFIERS = rf"(?:black and white\s+|black-and-white\s+|{_NOT_A_MODIFIER}[\w'’-]+\s+){{0,4}}?"
_ANY = rf"(?:{'|'.join(MEDIA)})s?"
_END = r"(?=\s*(?:[,.;:!]|$))"
_ARTICLE = r"(?:(?:an?|the|this|some)\s+)"
_LOOKS = r"(?:of|showing|depicting|that shows|which shows)"
CLEAN_RULES = tuple(
    re.compile(rule, re.IGNORECASE)
    for rule in (
        rf"^(?:(?:this|it|there) is\s+)?(?:{_ARTICLE}?{_MODIFIERS}{_ANY}\s+{_LOOKS}\s+)+",
        rf"^{_ARTICLE}?{_MODIFIERS}{_ANY}\s*(?:[:–—]|\s-)\s+",
        r",?\s*\bin the style of\b[^,.;:!]*",
        rf",?\s*\bin\s+{_ARTICLE}?{_MODIFIERS}{_ANY}(?:\s+style)?{_END}",
        rf",?\s*\bin\s+{_ARTICLE}?(?:{_NOT_A_MODIFIER}[\w'’-]+\s+){{1,3}}?style{_END}",
        rf",\s*{_ARTICLE}?{_MODIFIERS}(?:{_ANY}|{'|'.join(TAGS)})(?:\s+style)?{_END}",
    )
)
_MIRRORED = re.compile(
    r"\b(?:left|right|text|words?|letters?|letters|writing|written|sign|signs|logo|numbers?|digits?"
    r"|says|saying|reads|reading|clock|map|maps|poster|clockwise|handed)\b",
    re.IGNORECASE,
)


def released(caption: str) -> str:
    """Returns a caption as the released SDXL trainer cleaned it, its mistakes included.

    Lower case only; greedy up to the last "painting of" that words and spaces lead to; "in a ...
    painting" may begin inside a word; spaces may be left at the end.

    Source: StyleCrafter-SDXL, dataset.py, preprocess.
    """
    for rule in RELEASED_RULES:
        caption = rule.sub("", caption)
    return caption


def clean(caption: str) -> str:
    """Returns a caption without phrases for its medium or style.

    Only whole words go, in any case: a leading "a watercolour painting of", again and again; a
    heading "painting: "; "in a ... painting", "in ... style" at the end of a clause; "in the style
    of ..."; tags between commas such as ", oil on canvas". A medium that is part of the content
    stays ("a man holding a painting of a dog"). Nothing else changes but white space, and where
    nothing would be left, the caption stays as it was.
    """
    caption = " ".join(caption.split())
    text = caption
    while True:
        shorter = text
        for rule in CLEAN_RULES:
            shorter = rule.sub("", shorter)
        shorter = " ".join(shorter.split()).strip(" ,;:")
        if shorter == text:
            break
        text = shorter
    return text if re.search(r"\w", text) else caption


def flip_is_safe(caption: str) -> bool:
    """Returns whether a mirrored picture still fits: no sides, writing or clocks are mentioned."""
    return _MIRRORED.search(caption) is None


RULES: dict[str, Callable[[str], str]] = {"clean": clean, "released": released, "none": str.strip}
