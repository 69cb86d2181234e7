"""Item text from one or several columns, by a template such as `{title}. {body:60}`."""

import re
from collections.abc import Iterable
from string import Formatter

import polars as pl

from halflife.errors import InputError, near, shown

# Scripts that write no spaces: there each character counts as a word.
_DENSE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"\s*[{_DENSE}]|\s*[^\s{_DENSE}]+"


def parse(name: str, template: str) -> list[tuple[str, str, int | None]]:
    """A template as (what stands before, column, most words) for each column, and what stands behind.

    A column is written in braces, perhaps with how many of its words to keep; doubled braces are braces.

    Args:
        name: the setting, for the message.
        template: the text.

    Raises:
        InputError: when it names no column, or a length that is none.

    >>> parse("data.source.text", "{title}. {body:60}")
    [('', 'title', None), ('. ', 'body', 60)]
    """
    example = "write one such as '{title}. {body:60}'"
    if not isinstance(template, str):
        raise InputError(f"{name} must be a template, got {shown(template)}; {example}")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{name} must be a template, got {shown(template)} ({error}); {example}") from None
    pieces: list[tuple[str, str, int | None]] = []
    before = ""
    for literal, column, length, conversion in parts:
        before += literal
        if column is None:
            continue
        if not column or conversion or (length and not re.fullmatch(r"[1-9]\d*", length)):
            raise InputError(
                f"{name} must hold columns in braces, each with how many words to keep or nothing, got "
                f"{template}; {example}"
            )
        pieces.append((before, column, int(length) if length else None))
        before = ""
    if before:
        pieces.append((before, "", None))
    if not any(column for _, column, _ in pieces):
        raise InputError(f"{name} must name a column in braces, got {shown(template)}; {example}")
    return pieces


def columns(name: str, template: str) -> list[str]:
    """The columns that a template names, each once."""
    return list(dict.fromkeys(column for _, column, _ in parse(name, template) if column))


def fill(name: str, template: str, options: Iterable[str] | None = None) -> pl.Expr:
    """The text of each row; an empty column takes what stands before it with it.

    A length counts words, and characters of scripts that write no spaces; the encoder cuts what remains by
    its own tokens (`model.max_tokens`).

    Args:
        name: the setting, for the message.
        template: the text with columns in braces; columns are strings, null where empty.
        options: the columns that there are; None leaves that to the caller.

    Raises:
        InputError: for a malformed template or a column that is not there.

    >>> frame = pl.DataFrame({"title": ["A", "B", ""], "body": ["x y z", None, "x"]})
    >>> frame.select(fill("text", "News: {title}. {body:2}")).to_series().to_list()
    ['News: A. x y', 'News: B', 'x']
    """
    if options is not None:
        known = list(options)
        for column in columns(name, template):
            if column not in known:
                raise InputError(
                    f"{name} must name columns of the items, got {{{column}}}; {near(column, known)}"
                )
    pieces: list[pl.Expr] = []
    so_far: list[pl.Expr] = []  # whether each column before this one is filled
    for before, column, words in parse(name, template):
        if not column:
            pieces.append(pl.when(pl.any_horizontal(so_far)).then(pl.lit(before)).otherwise(pl.lit("")))
            continue
        value = pl.col(column).str.replace_all(r"\s+", " ").str.strip_chars()
        if words is not None:
            value = value.str.extract_all(_WORD).list.head(words).list.join("").str.strip_chars_start()
        filled = value.str.len_bytes().fill_null(0) > 0
        glued = pl.any_horizontal(so_far) & filled if so_far else filled
        pieces += [pl.when(glued).then(pl.lit(before)).otherwise(pl.lit("")), value.fill_null("")]
        so_far.append(filled)
    return pl.concat_str(pieces)
