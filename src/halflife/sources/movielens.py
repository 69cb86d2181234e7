"""MovieLens: star ratings of films, with the second they were given."""

from pathlib import Path

import polars as pl

from halflife.errors import InputError, choice, number
from halflife.sources.download import Remote
from halflife.sources.text_files import Rule, filled, scan_csv, scan_tsv
from halflife.tables import DAY_S, Tables

UNKNOWN_MOVIE = "ratings of movies not in movies.csv"
SHORT_SPAN = "ratings of users whose ratings span less than min_span_days"
LOW_RATING = "ratings below min_rating"
SHORT_USERS = "users whose ratings span less than min_span_days"

# Titles are catalogued as "Matrix, The (1999)" and "Postman, The (Postino, Il) (1994)".
_ARTICLES = "The|A|An|Le|La|Les|L'|Un|Une|Una|Il|Lo|I|Gli|El|Los|Las|Der|Die|Das|Ein|Eine|Det|Den|En|De|Het"
_NO_GENRE = "(no genres listed)"
_GENRES_100K = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *(
        "Fantasy",
        "Film-Noir",
        "Horror",
        "Musical",
        "Mystery",
        "Romance",
        "Sci-Fi",
        "Thriller",
        "War",
        "Western",
    ),
]
"""The flags of u.item, in the order of u.genre."""

EDITIONS: dict[str, tuple[str, str | None]] = {
    "latest-small": ("ml-latest-small", None),
    "latest": ("ml-latest", None),
    "100k": ("ml-100k", "0e33842e24a9c977be4e0107933c0723"),
    "1m": ("ml-1m", "c4d9eecfca2ab87c1945afe126590906"),
    "10m": ("ml-10M100K", "ce571fd55effeba0271552578f2648bd"),
    "20m": ("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3"),
    "25m": ("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada"),
    "32m": ("ml-32m", "d472be332d4daa821edc399621853b57"),
}
"""Edition → the folder in its archive, and the archive's MD5 where it is fixed."""


def read(files: list[Path], min_rating: float = 4.0, min_span_days: float = 7.0) -> Tables:
    """MovieLens of any size, as the films a user liked: 100K, 1M, 10M, 20M, 25M, 32M, latest, latest-small.

    The log holds the second of every rating, but a rating is not a viewing: many users rate a life's films in
    one sitting, and a kernel fitted on them measures minutes of typing. It holds no impressions: negatives
    are sampled.

    Args:
        files: the paths of one edition: ratings.csv and movies.csv (or .csv.gz), of 1M and 10M ratings.dat
            and movies.dat, of 100K u.data and u.item. Others are left alone.
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
    ratings_file, movies_file = _edition(files)
    ratings = _ratings(ratings_file)
    movies = _as_items(_movies(movies_file))

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


def _edition(files: list[Path]) -> tuple[Path, Path]:
    """The ratings and the movies of one edition, by the names of its files."""
    names = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}
    found = [file for file in files if file.name.removesuffix(".gz") in names]
    if len(found) != 1:
        got = ", ".join(str(file) for file in found or files) or "no files"
        raise InputError(
            f"data.files must hold one ratings.csv, ratings.dat or u.data, got {got}; name one edition"
        )
    wanted = names[found[0].name.removesuffix(".gz")]
    movies = [file for file in files if file.name.removesuffix(".gz") == wanted]
    if len(movies) != 1:
        got = ", ".join(str(file) for file in movies or files)
        raise InputError(
            f"data.files must hold one {wanted} beside {found[0].name}, got {got}; name one MovieLens folder"
        )
    return found[0], movies[0]


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
    names = ["userId", "movieId", "rating", "timestamp"]
    if file.name.startswith("u.data"):
        rows = scan_tsv(file, names, rules)
    elif file.name.startswith("ratings.dat"):
        rows = scan_tsv(file, names, rules, separator="::")
    else:
        rows = scan_csv(file, names, rules)
    return rows.select(user_id="userId", item_id="movieId", value=stars, timestamp_s=seconds)


def _movies(file: Path) -> pl.LazyFrame:
    """Every film: `movieId, title, genres`, genres with | between them."""
    rules = [
        filled("movieId"),
        Rule("movieId", pl.col("movieId").is_first_distinct(), "be listed once", "remove the second line"),
        filled("title"),
    ]
    names = ["movieId", "title", "genres"]
    if file.name.startswith("movies.csv"):
        return scan_csv(file, names, [*rules, filled("genres")])
    if file.name.startswith("movies.dat"):
        return scan_tsv(file, names, [*rules, filled("genres")], separator="::", encoding=_encoding(file))
    flags = [Rule(genre, pl.col(genre).is_in(["0", "1"]), "be 0 or 1") for genre in _GENRES_100K]
    names = ["movieId", "title", "released", "video", "url", *_GENRES_100K]
    rows = scan_tsv(file, names, [*rules, *flags], separator="|", encoding=_encoding(file))
    named = (pl.when(pl.col(g) == "1").then(pl.lit(g)) for g in _GENRES_100K if g != "unknown")
    genres = pl.concat_str(*named, separator="|", ignore_nulls=True)
    return rows.select(
        "movieId", "title", genres=pl.when(genres == "").then(pl.lit(_NO_GENRE)).otherwise(genres)
    )


def _encoding(file: Path) -> str:
    """UTF-8 where the bytes are; 100K and 1M, of 1998 and 2003, are ISO 8859-1."""
    try:
        file.read_bytes().decode("utf-8")
    except (UnicodeDecodeError, OSError):
        return "iso-8859-1"
    return "utf-8"


def _as_items(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The catalogue as items: the title as a reader would write it, and the genres in words."""
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


def remote(edition: str) -> list[Remote]:
    """The archive of an edition, with the MD5 that GroupLens publishes; of a latest one, which changes, as it
    is told beside the archive on the day.

    Args:
        edition: one of EDITIONS.
    """
    name, md5 = EDITIONS[choice("data.remote.edition", edition, EDITIONS)]
    url = f"https://files.grouplens.org/datasets/movielens/ml-{edition}.zip"
    return [Remote(url, f"{url}.md5" if md5 is None else f"md5:{md5}", unpacks=name)]
