"""User ids replaced by keyed hashes before anything is written."""

import hashlib
import os
from dataclasses import replace

import polars as pl

from halflife.errors import InputError
from halflife.tables import Tables

VARIABLE = "HALFLIFE_PSEUDONYM_KEY"
SHORTEST = 16  # characters: a shorter key can be guessed


def key_of_environment() -> bytes:
    """The key, from the environment alone; it is never written anywhere.

    Raises:
        InputError: where it is missing or too short.
    """
    given = os.environ.get(VARIABLE, "")
    if len(given) < SHORTEST:
        raise InputError(
            f"{VARIABLE} must be at least {SHORTEST} characters for data.pseudonymize=true, got "
            f"{len(given)}; set it in the environment, for example to the output of `openssl rand -hex 32`, "
            "and keep it: another key gives other pseudonyms"
        )
    return hashlib.blake2b(given.encode()).digest()


def pseudonym(user_id: str, key: bytes) -> str:
    """32 hexadecimal digits of keyed BLAKE2b.

    Source: Aumasson et al., BLAKE2 (RFC 7693), keyed hashing in place of HMAC.

    >>> pseudonym("U1", b"k") == pseudonym("U1", b"k") != pseudonym("U1", b"other")
    True
    """
    return hashlib.blake2b(user_id.encode(), key=key, digest_size=16).hexdigest()


def pseudonymize(log: Tables, key: bytes) -> Tables:
    """The same log under pseudonyms, replaced as its rows stream by."""

    def hashed(ids: pl.Series) -> pl.Series:
        names = ids.cast(pl.String)
        words = names.unique().drop_nulls().to_list()
        return names.replace_strict(
            words, [pseudonym(w, key) for w in words], default=None, return_dtype=pl.String
        )

    def under(frame: pl.LazyFrame | pl.DataFrame) -> pl.LazyFrame:
        user = pl.col("user_id").map_batches(hashed, return_dtype=pl.String, is_elementwise=True)
        return frame.lazy().with_columns(user)

    shown = None if log.impressions is None else under(log.impressions)
    return replace(log, events=under(log.events), impressions=shown, pseudonymous=True)
