"""MovieLens: star ratings of films, with the second they were given."""

from pathlib import Path

import polars as pl

from halflife.errors import InputError, number
from halflife.sources.text_files import Rule, filled, scan_csv
from halflife.tables import DAY_S, Tables

UNKNOWN_MOVIE = "ratings of movies not in movies.csv"
SHORT_SPAN = "ratings of users whose ratings span less than min_span_days"
LOW_RATING = "ratings below min_rating"
SHORT_USERS = "users whose ratings span less than min_span_days"

# Titles are catalogued as "Matrix, The (1999)" and "Postman, The (Postino, Il) (1994)".
_ARTICLES = "The|A|An|Le|La|Les|L'|Un|Une|Una|Il|Lo|I|Gli|El|Los|Las|Der|Die|Das|Ein|Eine|Det|Den|En|De|Het"
_NO_GENRE = "(no genres listed)"


def read(files: list[Path], min_rating: float = 4.0, min_span_days: float = 7.0) -> Tables:
    """MovieLens (latest-small, 25M, 32M): ratings.csv and movies.csv, as the films a user liked.

    The log holds the second of every rating, but a rating is not a viewing: many users rate a life's films in
    one sitting, and a kernel fitted on them measures minutes of typing. It holds no impressions: negatives
    are sampled.

    Args:
        files: the paths; those named ratings.csv and movies.csv (or .csv.gz) are read, others are left alone.
        min_rating: a rating is an event from this many stars up, in [0, 5].
        min_span_days: a user counts when all their ratings, liked or not, span this many days, >= 0.

    Returns:
        Lazy tables; a dropped rating is counted once, under the first reason that holds.

    Raises:
        InputError: for a malformed file, named with its line, or a setting out of range.

    Licence: GroupLens terms, non-commercial, redistribution under the same terms (README.txt of the
    download).
    Source: Harper & Konstan, The MovieLens Datasets: History and Context (ACM TiiS 2015).
    """
    min_rating = number("data.source.min_rating", min_rating, "stars", at_least=0, at_most=5)
    min_span_days = number("data.source.min_span_days", min_span_days, "days", at_least=0)
    movies = _movies(_named(files, "movies.csv"))
    ratings = _ratings(_named(files, "ratings.csv"))

    span_s = pl.col("timestamp_s").max() - pl.col("timestamp_s").min()
    # One row a user, collected: a plan that scanned the ratings twice would keep them all in memory.
    users = ratings.group_by("user_id").agg(long=span_s >= min_span_days * DAY_S).collect(engine="streaming")
    known = movies.select("item_id", known=pl.lit(True))
    reasoned = (
        ratings.join(users.lazy(), on="user_id", how="left")
        .join(known, on="item_id", how="left")
        .with_columns(
            reason=pl.when(pl.col("known").is_null())
            .then(pl.lit(UNKNOWN_MOVIE))
            .when(~pl.col("long"))
            .then(pl.lit(SHORT_SPAN))
            .when(pl.col("value") < min_rating)
            .then(pl.lit(LOW_RATING))
        )
    )
    counts = reasoned.group_by("reason").len().collect(engine="streaming")
    dropped = dict.fromkeys([UNKNOWN_MOVIE, SHORT_SPAN, LOW_RATING], 0)
    dropped |= {reason: rows for reason, rows in counts.rows() if reason is not None}
    events = reasoned.filter(pl.col("reason").is_null()).select(
        "user_id", "item_id", "timestamp_s", kind=pl.lit("rating"), value=pl.col("value").cast(pl.Float32)
    )
    return Tables(
        items=movies,
        events=events,
        impressions=None,
        has_click_times=True,
        dropped=dropped | {SHORT_USERS: int((~users["long"]).sum())},
    )


def _named(files: list[Path], name: str) -> Path:
    """The one file of this name."""
    found = [file for file in files if file.name in (name, f"{name}.gz")]
    if len(found) != 1:
        got = ", ".join(str(file) for file in found or files) or "no files"
        raise InputError(f"data.files must hold one {name}, got {got}; name one MovieLens folder")
    return found[0]


def _ratings(file: Path) -> pl.LazyFrame:
    """Every rating: `user_id, item_id, value, timestamp_s`."""
    stars = pl.col("rating").cast(pl.Float64, strict=False)
    seconds = pl.col("timestamp").cast(pl.Int64, strict=False)
    rules = [
        filled("userId"),
        filled("movieId"),
        Rule("rating", stars.is_between(0, 5), "be a number from 0 to 5 (stars)"),
        Rule("timestamp", seconds >= 0, "be a whole number of at least 0 (Unix seconds)"),
    ]
    rows = scan_csv(file, ["userId", "movieId", "rating", "timestamp"], rules)
    return rows.select(user_id="userId", item_id="movieId", value=stars, timestamp_s=seconds)


def _movies(file: Path) -> pl.LazyFrame:
    """The catalogue as items: the title as a reader would write it, and the genres in words."""
    rules = [
        filled("movieId"),
        Rule("movieId", pl.col("movieId").is_first_distinct(), "be listed once", "remove the second line"),
        filled("title"),
        filled("genres"),
    ]
    rows = scan_csv(file, ["movieId", "title", "genres"], rules)
    title = (
        pl.col("title")
        .str.strip_chars()
        .str.replace(rf"^([^()]+), ({_ARTICLES})( \(|$)", "$2 $1$3")
        .str.replace_all(rf"\((a\.k\.a\. )?([^()]+), ({_ARTICLES})\)", "($1$3 $2)")
        .str.replace_all(r"(^|\(|a\.k\.a\. )L' ", "${1}L'")
    )
    genres = pl.col("genres").replace(_NO_GENRE, None).str.split("|")
    return rows.select(
        item_id="movieId",
        text=pl.concat_str(title, genres.list.join(", "), separator=". ", ignore_nulls=True),
        category=genres.list.first().fill_null("unknown"),
        published_s=pl.lit(None, dtype=pl.Int64),
    )
