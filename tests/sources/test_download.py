"""Downloads from a server of the test's own: cut, resumed, checked, refused."""

import gzip
import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from halflife.sources import amazon, download, kuairand, movielens
from halflife.sources.download import Remote, fetch

from .conftest import composed

BODY = hashlib.sha256(b"seed").digest() * 5000  # 160 kB


class Site:
    """Files by path; `cut` bytes are sent of each answer, `ranges` says whether a start is heeded."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges = True
        self.asked: list[str] = []
        self.url = ""


@pytest.fixture
def site() -> Iterator[Site]:
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            here.asked.append(wanted)
            body = here.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = int(wanted[6:-1]) if wanted and here.ranges else 0
            if start and start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:][: here.cut])

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    here.url = f"http://127.0.0.1:{server.server_port}"
    yield here
    server.shutdown()
    server.server_close()


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_download_goes_on_where_each_cut_left_it(site, tmp_path):
    site.files["/a.bin"], site.cut = BODY, 50_000
    fetch([Remote(f"{site.url}/a.bin", md5(BODY))], tmp_path / "new")
    assert (tmp_path / "new" / "a.bin").read_bytes() == BODY
    assert site.asked == ["", "bytes=50000-", "bytes=100000-", "bytes=150000-"]
    assert names(tmp_path / "new") == ["a.bin"]
    fetch([Remote(f"{site.url}/a.bin", md5(BODY))], tmp_path / "new")
    assert len(site.asked) == 4, "what is there is not fetched again"


def test_what_is_cut_again_and_again_is_no_file_and_the_next_run_goes_on(site, tmp_path, refused):
    site.files["/a.bin"], site.cut = BODY, 10
    remote = Remote(f"{site.url}/a.bin", md5(BODY))
    message = refused(lambda: fetch([remote], tmp_path))
    assert f"got 50 of {len(BODY)} bytes; run again" in message
    assert not (tmp_path / "a.bin").exists()
    site.cut = None
    fetch([remote], tmp_path)
    assert site.asked[-1] == "bytes=50-"
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_server_that_heeds_no_start_is_read_anew(site, tmp_path):
    site.files["/a.bin"], site.ranges = BODY, False
    (tmp_path / "a.bin.part").write_bytes(b"x" * 70)
    fetch([Remote(f"{site.url}/a.bin", md5(BODY))], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("before", [b"", BODY + b"more", b"x" * 99])
def test_another_checksum_is_refused_and_nothing_stays(before, site, tmp_path, refused):
    site.files["/a.bin"] = BODY[:-1] + b"?"
    if before:
        (tmp_path / "a.bin.part").write_bytes(before)
    message = refused(lambda: fetch([Remote(f"{site.url}/a.bin", md5(BODY))], tmp_path))
    assert f"must have the checksum {md5(BODY)}, got " in message
    assert [n for n in names(tmp_path) if n.startswith("a.bin")] == []


def test_a_publisher_tells_its_checksum_as_text_or_json(site, tmp_path, refused):
    site.files |= {
        "/a.bin": BODY,
        "/a.bin.md5": f"{md5(BODY)[4:]}  a.bin\n".encode(),
        "/api": f'{{"key": "a.bin", "checksum": "{md5(BODY)}"}}'.encode(),
        "/none": b"<html>not here</html>",
    }
    for told in ("a.bin.md5", "api"):
        fetch([Remote(f"{site.url}/a.bin", f"{site.url}/{told}")], tmp_path / told)
        assert names(tmp_path / told) == ["a.bin"]
    wrong = Remote(f"{site.url}/a.bin", f"{site.url}/none")
    assert "must tell an MD5 checksum" in refused(lambda: fetch([wrong], tmp_path / "none"))
    assert not (tmp_path / "none" / "a.bin").exists()


def test_a_gzip_file_without_checksum_is_read_through(site, tmp_path, refused):
    whole = gzip.compress(BODY)
    site.files["/a.jsonl.gz"] = whole
    fetch([Remote(f"{site.url}/a.jsonl.gz", None)], tmp_path / "good")
    assert gzip.decompress((tmp_path / "good" / "a.jsonl.gz").read_bytes()) == BODY
    site.files["/a.jsonl.gz"] = whole[:-9]
    message = refused(lambda: fetch([Remote(f"{site.url}/a.jsonl.gz", None)], tmp_path / "bad"))
    assert "undamaged gzip" in message
    assert not (tmp_path / "bad" / "a.jsonl.gz").exists()


def test_a_file_that_is_not_there_and_a_host_that_is_none_are_named(site, tmp_path, refused):
    missing = Remote(f"{site.url}/none.zip", None)
    assert "got HTTP 404" in refused(lambda: fetch([missing], tmp_path))
    nobody = Remote("http://127.0.0.1:9/a.zip", None)
    assert "must reach http://127.0.0.1:9/a.zip" in refused(lambda: fetch([nobody], tmp_path))
    (tmp_path / "file").write_text("")
    assert "must be a folder that can be written" in refused(lambda: fetch([missing], tmp_path / "file"))


RATINGS = "userId,movieId,rating,timestamp\n" + "".join(
    f"{u},{m},5.0,{1_000_000_000 + 864_000 * m + u}\n" for u in range(9) for m in range(9)
)


def archive(folder: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr(f"{folder}/ratings.csv", RATINGS)
        movies = "".join(f"{m},Film {m},Drama\n" for m in range(9))
        zipped.writestr(f"{folder}/movies.csv", f"movieId,title,genres\n{movies}")
    return out.getvalue()


def test_data_download_true_fetches_unpacks_and_reads(site, tmp_path, refused):
    site.files["/ml.zip"] = archive("ml-latest-small")
    cfg = OmegaConf.merge(
        OmegaConf.create({"cache_dir": str(tmp_path / "cache"), "seed": 1}),
        {"data": OmegaConf.to_container(composed("movielens"), resolve=False)},
        {"data": {"root": str(tmp_path / "log"), "download": True, "split": {"val": 0.2, "test": 0.2}}},
    )
    data = instantiate(cfg.data)
    data.remote = [Remote(f"{site.url}/ml.zip", md5(site.files["/ml.zip"]), unpacks="ml-latest-small")]
    assert data.store.about["events"] == 81
    assert names(tmp_path / "log") == ["ml-latest-small"]
    wrong = [Remote(f"{site.url}/ml.zip", None, unpacks="ml-other")]
    assert "must hold the folder ml-other" in refused(lambda: fetch(wrong, tmp_path / "other"))
    assert names(tmp_path / "other") in ([], [".download.lock"])


@pytest.mark.parametrize("name", ["mind", "ebnerd", "adressa"])
def test_a_log_whose_licence_must_be_accepted_says_what_to_put_where(name, tmp_path):
    cfg = OmegaConf.merge(
        OmegaConf.create({"cache_dir": str(tmp_path), "seed": 1}),
        {"data": OmegaConf.to_container(composed(name), resolve=False)},
        {"data": {"root": str(tmp_path), "download": True}},
    )
    must = "data.download must be false for this log, got true; .* https://.* set data.root to the folder"
    with pytest.raises(InstantiationException, match=must):
        instantiate(cfg.data)


def test_every_publisher_has_well_formed_addresses_and_checksums(refused):
    remotes = [r for edition in movielens.EDITIONS for r in movielens.remote(edition)]
    remotes += kuairand.remote("1K") + amazon.remote(["Books"])
    assert len({r.url for r in remotes}) == len(remotes) == 11
    for remote in remotes:
        assert re.fullmatch(r"https://[\w.]+(/[\w.-]+)+\.(zip|tar\.gz|jsonl\.gz)", remote.url)
        assert remote.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|https://.*", remote.checksum)
    assert "did you mean" in refused(lambda: movielens.remote("latest-smal"))
    assert download.TRIES > 1
