"""A page in a real browser: nothing is fetched, nothing sticks out on a phone, dark is readable."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from halflife.report.__main__ import page_of
from halflife.report.page import write

BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the path")

ASK = """<script>
const boxes = [...document.querySelectorAll("svg")].map(s => s.getBoundingClientRect());
document.title = JSON.stringify({
  fetched: performance.getEntriesByType("resource").map(entry => entry.name),
  wide: document.documentElement.scrollWidth, window: innerWidth,
  pictures: boxes.filter(b => b.width > 100 && b.height > 60 && b.right <= innerWidth).length,
  ink: getComputedStyle(document.querySelector("svg text")).fill,
  page: getComputedStyle(document.body).backgroundColor,
});
</script>"""


def browse(place: Path, url: str, *flags: str) -> str:
    """What the browser makes of a page; it finds no host, and makes no calls of its own."""
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run"]
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={place / 'user'}",
    ]
    done = subprocess.run([*command, *alone, *flags, url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(of: Path, out: Path) -> Path:
    """The page of a run, a multirun or a study; beside it, the same that asks the browser."""
    write(page_of(of), out)
    out.with_name("asked.html").write_text(out.read_text().replace("</body>", ASK + "</body>"))
    return out


@pytest.fixture(scope="module")
def html(multirun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(multirun / "2", tmp_path_factory.mktemp("browser") / "run.html")


def light(color: str) -> float:
    """How light a colour is, 0 to 1."""
    return sum(map(float, color[color.index("(") + 1 : -1].split(",")[:3])) / 765


@pytest.mark.parametrize(("scheme", "dark"), [(1, False), (0, True)])
def test_on_a_phone_nothing_is_fetched_nothing_sticks_out_and_text_stands_out(
    scheme: int, dark: bool, html: Path, tmp_path: Path
) -> None:
    look = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=500,900", "--dump-dom"]
    dom = browse(tmp_path, html.with_name("asked.html").as_uri(), *look)
    found = json.loads(dom.partition("<title>")[2].partition("</title>")[0])
    assert found["fetched"] == []
    assert found["wide"] <= found["window"]
    assert found["pictures"] == 4
    assert (light(found["page"]) < 0.2) == dark
    assert abs(light(found["page"]) - light(found["ink"])) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pictures"), [("multirun", 2), ("study_dir", 4), ("front_dir", 2)])
def test_pages_of_multiruns_and_studies_hold_on_a_phone_too(
    kind: str, pictures: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page = written(request.getfixturevalue(kind), tmp_path / "page.html")
    dom = browse(tmp_path, page.with_name("asked.html").as_uri(), "--window-size=500,900", "--dump-dom")
    found = json.loads(dom.partition("<title>")[2].partition("</title>")[0])
    assert found["fetched"] == []
    assert found["wide"] <= found["window"]
    assert found["pictures"] == pictures
    assert "<script>alert" not in dom, "what users wrote stays text"


@pytest.mark.slow
def test_it_prints(html: Path, tmp_path: Path) -> None:
    printed = tmp_path / "run.pdf"
    browse(tmp_path, html.as_uri(), f"--print-to-pdf={printed}")
    assert printed.read_bytes().startswith(b"%PDF")
