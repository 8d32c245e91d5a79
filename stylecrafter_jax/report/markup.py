"""HTML in which every text is escaped unless it was made here."""

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | int) -> Markup:
    """Returns an element; children and attributes are escaped, `Markup` children stay.

    Args:
        name: of the element.
        children: what is in it.
        attributes: `class_` is `class`, and `_` within a name stands for `-`.
    """
    given = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{joined(children)}</{name}>")


def empty(name: str, /, **attributes: str | float | int) -> Markup:
    """Returns an element that has no content and no end, such as `img`."""
    return Markup(element(name, **attributes).removesuffix(f"</{name}>"))


def joined(parts: Iterable[str]) -> Markup:
    """Returns texts and HTML in a row."""
    return Markup("".join(x if isinstance(x, Markup) else html.escape(str(x)) for x in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], class_: str = "") -> Markup:
    """Returns a table of a head and rows of cells."""
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", *(element("th", cell) for cell in head))),
            element("tbody", *body),
            class_=class_,
        ),
        class_="wide",
    )
