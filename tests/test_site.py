"""The site: it builds without a warning, no link is dead, and no page asks another host for anything.

It reads what is in the repository, so a new lesson, module or page is checked without a word here.
"""

import json
import os
import re
import subprocess
import sys
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest

for module in ("sphinx", "myst_nb", "furo"):
    pytest.importorskip(module, reason="the site needs the extra docs: pip install -e '.[docs]'")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import site_api  # noqa: E402
import site_docstrings  # noqa: E402
import site_links  # noqa: E402
import site_notebooks  # noqa: E402
import site_players  # noqa: E402
import site_sources  # noqa: E402

NOTEBOOKS = [str(path.relative_to(ROOT)) for path in site_sources.lessons() + site_sources.solutions()]
LOADED = ("src", "srcset", "poster", "data")  # attributes that a browser follows by itself
REMOTE = re.compile(r"^\s*(https?:)?//")
LOADS_REMOTE = re.compile(  # in style sheets and scripts
    r"""(?:url\(|@import|fetch\(|import\(|importScripts\(|\.open\(["']\w+["'],|\.src\s*=)\s*["'`]?(?:https?:)?//[\w.]+"""
)


class Page(HTMLParser):
    """What is in a page of the site: its anchors, its links, and what it loads."""

    def __init__(self, path: Path, top: Path):
        super().__init__()
        self.path, self.top = path, top
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.anchors |= {has[key] for key in ("id", "name") if has.get(key)}
        self.loads += [has[key] for key in LOADED if has.get(key)]
        if has.get("href"):
            (self.loads if tag == "link" else self.links).append(has["href"])


class Site:
    """All pages below a folder."""

    def __init__(self, top: Path):
        self.top = top.resolve()

    @cached_property
    def pages(self) -> dict[Path, Page]:
        return {path: Page(path, self.top) for path in sorted(self.top.rglob("*.html"))}

    @cached_property
    def files(self) -> set[str]:
        return {str(path) for path in self.top.rglob("*") if path.is_file()}

    def dead(self) -> list[str]:
        """Links and loads that lead nowhere within the site."""
        return [
            f"{page.path.relative_to(self.top)}: {target}"
            for page in self.pages.values()
            for target in page.links + page.loads
            if not self._leads_somewhere(page, target)
        ]

    def remote(self) -> list[str]:
        """What a browser would ask other hosts for without a click."""
        found = [
            f"{page.path.relative_to(self.top)}: {target}"
            for page in self.pages.values()
            for target in page.loads
            if REMOTE.match(target)
        ]
        for path in (path for path in self.top.rglob("*") if path.suffix in (".html", ".css", ".js")):
            text = path.read_text(encoding="utf-8")
            code = text if path.suffix != ".html" else "\n".join(re.findall(r"<(?:style|script)\b.*?</", text, re.S))
            found += [f"{path.relative_to(self.top)}: {match[0]}" for match in LOADS_REMOTE.finditer(code)]
        return found

    def _leads_somewhere(self, page: Page, target: str) -> bool:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            return True
        path = os.path.normpath(page.path.parent / unquote(parts.path)) if parts.path else str(page.path)
        if not path.endswith(".html") or not parts.fragment:
            return path in self.files
        return path in self.files and unquote(parts.fragment) in self.pages[Path(path)].anchors


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The one command of docs/README.md, into another folder."""
    out = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Site(out)


def test_no_link_is_dead(site):
    assert len(site.pages) > len(NOTEBOOKS) + len(site_api.modules())
    assert not site.dead()


def test_nothing_is_asked_of_another_host(site):
    assert not site.remote()


def test_every_notebook_is_there_with_its_outputs(site):
    front = site.pages[site.top / "index.html"]
    for name in NOTEBOOKS:
        page = site.pages[(site.top / name).with_suffix(".html")]
        cells = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
        pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
        assert sum("_images/" in load for load in page.loads) >= (pictures > 0), f"{name} shows no picture"
        assert str(PurePosixPath(name).with_suffix(".html")) in front.links, f"{name} is not in the contents"


def test_a_download_is_the_notebook_itself(site):
    for name in NOTEBOOKS:
        page = site.pages[(site.top / name).with_suffix(".html")]
        (download,) = [link for link in page.links if link.endswith(f"_sources/{name}")]
        assert (page.path.parent / download).read_bytes() == (ROOT / name).read_bytes()


def test_every_module_is_there(site):
    for name in site_api.modules():
        assert f"module-{name}" in site.pages[site.top / "api" / f"{name}.html"].anchors


def test_no_formula_stays_as_it_was_typed(site):
    for page in site.pages.values():
        if "_modules" not in page.path.parts:  # the code of a module may hold anything
            prose = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page.path.read_text(encoding="utf-8"), flags=re.S)
            assert not re.search(r"\$[^$<>]+\$", prose), f"{page.path.relative_to(site.top)} has a raw formula"


# The checks above must be able to fail -------------------------------------------------------------------------------


def planted(tmp_path, html, **files):
    (tmp_path / "index.html").write_text(f"<body id=here>{html}</body>")
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return Site(tmp_path)


@pytest.mark.parametrize("html", ["<a href='gone.html'>", "<a href='#gone'>", "<img src='gone.png'>"])
def test_a_dead_link_is_found(tmp_path, html):
    assert not planted(tmp_path, "<a href='#here'><a href='index.html#here'><a href='https://example.org'>").dead()
    assert planted(tmp_path, html).dead()


@pytest.mark.parametrize(
    "html",
    [
        "<script src='https://example.org/a.js'></script>",
        "<link rel='stylesheet' href='//example.org/a.css'>",
        "<iframe src='http://example.org'></iframe>",
        "<style>p { background: url(https://example.org/a.png) }</style>",
        "<script>fetch('https://example.org/a.json')</script>",
    ],
)
def test_a_request_to_another_host_is_found(tmp_path, html):
    assert not planted(tmp_path, "<a href='https://example.org'>", a_js="fetch('b.json')").remote()
    assert planted(tmp_path, html).remote()


def test_a_request_is_found_in_files_beside_the_page(tmp_path):
    assert planted(tmp_path, "", a_css="@import 'https://example.org/b.css';").remote()
    assert planted(tmp_path, "", a_js="import('https://example.org/b.js')").remote()


# The parts that make the site ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "seen"),
    [
        ("03_gpt.ipynb#the-shift", "03_gpt.ipynb#the-shift"),
        ("../minar/plan.py", "../api/minar.plan.rst"),
        ("../minar/papers", "../api/minar.papers.rst"),
        ("../data/README.md", "../more/data.md"),
        ("../README.md", "../more/start.md"),
        ("../docs/index.md", "../index.md"),
        ("solutions/02_solutions.ipynb", "solutions/02_solutions.ipynb"),
        ("../LICENSE", "../../LICENSE"),  # no page: Sphinx makes a download of it
        ("../tests", "../more/start.md"),
        ("https://example.org/a.py", "https://example.org/a.py"),
        ("gone.ipynb", "gone.ipynb"),  # stays wrong, so that Sphinx complains
    ],
)
def test_links_of_the_repository_lead_to_the_site(link, seen):
    text = site_links.relink(f"See [that]({link}).", PurePosixPath("notebooks"), "notebooks/02_vqvae")
    assert text == f"See [that]({seen})."


def test_a_file_without_a_page_is_on_github_if_that_is_known():
    text = site_links.relink("[x](../LICENSE) [y](../tests)", PurePosixPath("docs"), "faq", "some/where")
    assert (
        text
        == "[x](https://github.com/some/where/blob/main/LICENSE) [y](https://github.com/some/where/tree/main/tests)"
    )


def test_launch_links_need_to_know_the_repository():
    assert site_notebooks.launch_links("notebooks/02_vqvae", "") == {}
    links = site_notebooks.launch_links("notebooks/02_vqvae", "some/where")
    assert "https://github.com/some/where/blob/main/notebooks/02_vqvae.ipynb" in links.values()
    assert len(links) == 2


def test_docstrings_survive():
    text = ["`plan` takes 2 ** n |x|, copy_ and *all* of $p$:", "", "    a = b * c", "", "    d", "", "Then `f(*x)`."]
    first = r"\ :py:obj:`plan`\  takes 2 \*\* n \|x\|, copy\_ and \ *all*\  of \ :math:`p`\ :"
    code = ["", ".. code-block:: python", "", "    a = b * c", "    ", "    d", "", ""]
    assert site_docstrings.to_rst(text) == [first, "", *code, r"Then \ ``f(*x)``\ ."]


def test_the_player_shows_real_plans():
    data = json.loads(re.search(r"const MINAR = (.*);", site_players.script(), re.S)[1])
    assert data["plans"]["raster"]["steps"] == list(range(64))
    for name, plan in data["plans"].items():
        assert len(plan["steps"]) == sum(side**2 for side in plan["sides"]), name
        assert [plan["steps"].count(step) for step in range(len(plan["sizes"]))] == plan["sizes"], name
