"""Online Retail: what the customers of a UK gift wholesaler bought, to the minute."""

import re
from pathlib import Path

import polars as pl

from halflife.errors import InputError
from halflife.sources.text_files import Rule, filled, scan_csv
from halflife.tables import Tables

NO_CUSTOMER = "rows without a customer"
CANCELLED = "cancellations and returns"
NO_GOODS = "rows whose code is no goods (postage, fees, discounts, vouchers)"
MERGED = "rows merged into another of the same customer, item and minute"

_COLUMNS = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "CustomerID"]


def read(files: list[Path], goods_code: str = r"^\d{5}[A-Z]{0,2}$") -> Tables:
    """UCI Online Retail: every invoice line of 2010-12-01 to 2011-12-09, as purchases.

    The log holds the minute of every purchase, and whole baskets at that minute: the items of one are not
    each other's history. It holds no impressions (negatives are sampled), no categories, and a customer on
    three rows of four. Customers are often shops that buy the same item again and again.

    Args:
        files: the paths; those named online_retail*.csv or .csv.gz are read, others are left alone.
        goods_code: regular expression that a code of real goods matches, on the code in upper case (85123a
            and 85123A are one item). A rule rather than a list, since POST, M, BANK CHARGES or gift_0001_40
            share only that they are no goods.

    Returns:
        Lazy tables; a dropped row is counted once, under the first reason that holds. An item's text is its
        most frequent description among the rows kept, since stock notes ("damaged", "?") stand on rows nobody
        bought.

    Raises:
        InputError: for a malformed file, named with its line, or a goods_code that is no regular expression.

    Licence: CC BY 4.0.
    Source: Chen, Sain & Guo, Data mining for the online retail industry (J. Database Marketing 2012);
    UCI Machine Learning Repository, doi:10.24432/C5BW33.
    """
    _check_pattern(goods_code)
    chosen = [f for f in files if f.name.startswith("online_retail") and f.name.endswith((".csv", ".csv.gz"))]
    if not chosen:
        got = ", ".join(str(file) for file in files) or "no files"
        raise InputError(f"data.files must hold online_retail*.csv or .csv.gz, got {got}; correct data.files")
    reasoned = pl.concat([_rows(file) for file in sorted(chosen)]).with_columns(
        reason=pl.when(pl.col("user_id") == "")
        .then(pl.lit(NO_CUSTOMER))
        .when(pl.col("invoice").str.starts_with("C") | (pl.col("quantity") <= 0))
        .then(pl.lit(CANCELLED))
        .when(~pl.col("item_id").str.contains(goods_code))
        .then(pl.lit(NO_GOODS))
    )
    sold = reasoned.filter(pl.col("reason").is_null())
    events = (
        sold.group_by("user_id", "item_id", "timestamp_s")
        .agg(value=pl.col("quantity").sum().cast(pl.Float32))
        .select("user_id", "item_id", "timestamp_s", kind=pl.lit("purchase"), value="value")
    )
    # Two plans, not one of both: a plan that scanned the rows for both would keep them all in memory.
    counts = reasoned.group_by("reason").len().collect(engine="streaming")
    kept = events.select(pl.len()).collect(engine="streaming")
    rows = dict(counts.rows())
    dropped = {reason: rows.get(reason, 0) for reason in (NO_CUSTOMER, CANCELLED, NO_GOODS)}
    dropped[MERGED] = rows.get(None, 0) - kept.item()
    return Tables(items=_items(sold), events=events, impressions=None, has_click_times=True, dropped=dropped)


def _check_pattern(goods_code: str) -> None:
    """Refuse a pattern that Python or Polars cannot compile (Polars knows no look-around)."""
    try:
        re.compile(goods_code)
        pl.select(pl.lit("").str.contains(goods_code))
    except (re.error, TypeError, pl.exceptions.PolarsError):
        raise InputError(
            f"data.source.goods_code must be a regular expression without look-around, got {goods_code!r}; "
            r"give one such as ^\d{5}"
        ) from None


def _rows(file: Path) -> pl.LazyFrame:
    """Every row of one file, typed; `user_id` is "" where the log names no customer."""
    quantity = pl.col("Quantity").cast(pl.Int64, strict=False)
    local = pl.col("InvoiceDate").str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ms", strict=False)
    customer = pl.col("CustomerID").str.strip_chars().str.strip_suffix(".0")  # spreadsheets print 17850.0
    rules = [
        filled("InvoiceNo"),
        filled("StockCode"),
        Rule("Quantity", quantity.is_not_null(), "be a whole number"),
        Rule("InvoiceDate", local.is_not_null(), "be a time such as 2010-12-01 08:26:00"),
        Rule("CustomerID", customer.str.contains(r"^\d*$"), "be a whole number or empty"),
    ]
    rows = scan_csv(file, _COLUMNS, rules)
    minute = local.dt.truncate("1m")
    london = minute.dt.replace_time_zone("Europe/London", ambiguous="earliest", non_existent="null")
    # A minute that the spring change skips was written by a clock still on winter time, which is UTC.
    utc = pl.coalesce(london.dt.convert_time_zone("UTC"), minute.dt.replace_time_zone("UTC"))
    return rows.select(
        invoice="InvoiceNo",
        item_id=pl.col("StockCode").str.strip_chars().str.to_uppercase(),
        description="Description",
        quantity=quantity,
        timestamp_s=utc.dt.epoch("s").cast(pl.Int64),
        user_id=customer,
    )


def _items(sold: pl.LazyFrame) -> pl.LazyFrame:
    """One row an item; its text is the description used most, the first by alphabet among equals."""
    text = (
        pl.col("description")
        .str.replace_all(r"\s+", " ")
        .str.strip_chars()
        .str.to_titlecase()
        .str.replace_all(r"'S\b", "'s")  # title case writes Children'S, I'M, Don'T
        .str.replace_all(r"'M\b", "'m")
        .str.replace_all(r"'T\b", "'t")
    )
    votes = sold.select("item_id", text=text).group_by("item_id", "text").agg(votes=pl.len())
    # An empty description loses to any other, and its item is called by its code.
    best = (
        pl.col("text").sort_by(pl.col("text") == "", -pl.col("votes").cast(pl.Int64), pl.col("text")).first()
    )
    return (
        votes.group_by("item_id")
        .agg(text=best)
        .select(
            "item_id",
            text=pl.when(pl.col("text") == "").then(pl.format("Item {}", "item_id")).otherwise("text"),
            category=pl.lit("unknown"),
            published_s=pl.lit(None, dtype=pl.Int64),
        )
    )
