"""The plain pages: their links lead somewhere, nothing is fetched, and what they count is counted again."""

import re
from pathlib import Path

import pytest

import minar

ROOT = Path(__file__).parent.parent
PAGES = ["CONTRIBUTING.md", *(f"docs/{name}.md" for name in ("faq", "glossary", "nbval", "syllabus"))]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere_and_nothing_is_fetched(name):
    text = read(name)
    links = re.findall(r"\]\(([^)]+)\)", text)
    broken = [link for link in links if not ((ROOT / name).parent / link.split("#")[0]).exists()]
    assert links and not broken
    assert not re.search(r"https?://(?!HOST)", text.replace("git+https://HOST/OWNER/REPO", ""))


@pytest.mark.parametrize("name", PAGES)
def test_lines_are_as_long_as_those_of_code(name):
    long = [line for line in read(name).splitlines() if len(line) > 128 and not line.startswith("|")]
    assert not long


def test_there_are_about_forty_questions():
    assert 25 <= len(re.findall(r"^\*\*.+?[?.]\*\*", read("docs/faq.md"), re.MULTILINE | re.DOTALL)) <= 40


def test_what_is_cited_is_this_version():
    said = dict(re.findall(r"^([\w-]+): (.+)$", read("CITATION.cff"), re.MULTILINE))
    assert said["version"] == minar.__version__ and said["license"] == "MIT" and said["cff-version"] == "1.2.0"


def test_the_example_of_a_small_paper_is_as_small_as_it_says():
    lines = len(read("minar/papers/rar.py").splitlines())
    assert f"[rar.py](minar/papers/rar.py) has {lines} lines" in read("CONTRIBUTING.md")
    for name in ("annealing", "test_annealed_training_ends_in_raster", "test_bad_shares"):
        assert f"def {name}(" in read("tests/test_papers_orders.py") and f"`{name}`" in read("CONTRIBUTING.md")
