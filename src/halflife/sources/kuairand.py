"""KuaiRand: which short videos a user was shown, which they played, and which were shown at random."""

from pathlib import Path

import polars as pl

from halflife.errors import InputError, choice, flag
from halflife.sources.download import Remote
from halflife.sources.text_files import Rule, filled, scan_csv
from halflife.tables import Tables

REPEATED = "rows of the same user, video and moment"
UNKNOWN_VIDEO = "shows of videos not in video_features_basic"

SIGNALS = ["is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward"]
_LOG = ["user_id", "video_id", "time_ms", "play_time_ms", "is_rand"]


def read(files: list[Path], label: str, random_alone: bool) -> Tables:
    """KuaiRand Pure, 1K or 27K: one impression of one video a row, with twelve answers of the user.

    The log holds the millisecond of every show, also those that were not played, and says which were put in
    at random: labels and negatives are real. It holds no text at all (tags are numbers): use
    model=id_embedding or topics. In Pure, only videos of the random pool are left, so histories have holes;
    the publisher advises 1K or 27K for anything sequential. Times are Unix milliseconds.

    Args:
        files: the paths; those named log_*.csv and video_features_basic_*.csv are read, no others.
        label: the answer that counts as a click: one of SIGNALS.
        random_alone: make impressions of the shows at random alone, which no recommender chose; what the
            standard feed showed still makes the history.

    Returns:
        Lazy tables; a show is an impression of one candidate, so metrics within an impression do not exist,
        and AUC over all of them does. An event's value is the seconds played.

    Raises:
        InputError: for a malformed file, named with its line.

    Licence: CC BY-SA 4.0.
    Source: Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset (CIKM 2022).
    """
    label = choice("data.source.label", label, SIGNALS)
    random_alone = flag("data.source.random_alone", random_alone)
    logs = sorted(f for f in files if f.name.startswith("log_") and ".csv" in f.suffixes)
    videos = sorted(f for f in files if f.name.startswith("video_features_basic_") and ".csv" in f.suffixes)
    if not logs or not videos:
        got = ", ".join(str(f) for f in files) or "no files"
        raise InputError(
            f"data.files must hold log_*.csv and video_features_basic_*.csv, got {got}; point data.root at "
            "the unpacked folder"
        )
    items = pl.concat([_videos(file) for file in videos]).unique("item_id", keep="first", maintain_order=True)
    # the random log and the standard one may both hold a show
    shows = pl.concat([_shows(file, label) for file in logs])
    once = shows.group_by("user_id", "item_id", "time_ms").agg(
        pl.col("played_s").max(), pl.col("label").max(), pl.col("random").max(), pl.len()
    )
    known = once.join(items.select("item_id"), on="item_id", how="semi")
    counts = pl.collect_all(
        [once.select(pl.col("len").sum(), rows=pl.len()), known.select(rows=pl.len())], engine="streaming"
    )
    rows, distinct, kept = counts[0]["len"].item() or 0, counts[0]["rows"].item(), counts[1]["rows"].item()
    moment = pl.col("time_ms") // 1000
    clicked = known.filter(pl.col("label") == 1)
    asked = known.filter(pl.col("random") == 1) if random_alone else known
    return Tables(
        items=items,
        events=clicked.select(
            "user_id", "item_id", timestamp_s=moment, kind=pl.lit(label.removeprefix("is_")), value="played_s"
        ),
        impressions=asked.select(
            pl.format("{}-{}-{}", "user_id", "item_id", "time_ms").alias("impression_id"),
            "user_id",
            timestamp_s=moment,
            candidates=pl.concat_list("item_id"),
            labels=pl.concat_list("label"),
        ),
        has_click_times=True,
        has_dwell=True,
        dropped={REPEATED: rows - distinct, UNKNOWN_VIDEO: distinct - kept},
    )


def _shows(file: Path, label: str) -> pl.LazyFrame:
    """Every row of one log."""
    answer = pl.col(label).cast(pl.Int8, strict=False)
    random = pl.col("is_rand").cast(pl.Int8, strict=False)
    millis = pl.col("time_ms").cast(pl.Int64, strict=False)
    played = pl.col("play_time_ms").cast(pl.Float64, strict=False)
    rules = [
        filled("user_id"),
        filled("video_id"),
        Rule("time_ms", millis.is_between(10**11, 10**14), "be a whole number (Unix milliseconds)"),
        Rule("play_time_ms", played >= 0, "be a number of at least 0 (milliseconds)"),
        Rule("is_rand", random.is_in([0, 1]), "be 0 or 1"),
        Rule(label, answer.is_in([0, 1]), "be 0 or 1"),
    ]
    rows = scan_csv(file, [*_LOG, label], rules)
    return rows.select(
        "user_id",
        item_id="video_id",
        time_ms=millis,
        played_s=(played / 1000).cast(pl.Float32),
        label=answer,
        random=random,
    )


def _videos(file: Path) -> pl.LazyFrame:
    """The catalogue; its first tag is the category, and the only words are the video's type and tags."""
    rows = scan_csv(file, ["video_id", "video_type", "upload_dt", "tag"], [filled("video_id")])
    tags = pl.col("tag").str.split(",").list.eval(pl.element().str.strip_chars())
    first = tags.list.first()
    uploaded = pl.col("upload_dt").str.to_datetime("%Y-%m-%d", strict=False, time_unit="ms")
    return rows.select(
        item_id="video_id",
        text=pl.concat_str(pl.col("video_type"), tags.list.join(" "), separator=" ").str.strip_chars_end(),
        category=pl.when(first.str.len_bytes() > 0).then(pl.lit("tag ") + first).otherwise(pl.lit("unknown")),
        published_s=uploaded.dt.epoch("s").cast(pl.Int64),
    )


def remote(version: str) -> list[Remote]:
    """The archive of a version on Zenodo, which tells its MD5.

    Args:
        version: Pure, 1K or 27K.
    """
    version = choice("data.remote.version", version, ["Pure", "1K", "27K"])
    name = f"KuaiRand-{version}.tar.gz"
    record = "records/10439422/files"
    return [
        Remote(
            f"https://zenodo.org/{record}/{name}",
            f"https://zenodo.org/api/{record}/{name}",
            unpacks=f"KuaiRand-{version}",
        )
    ]
