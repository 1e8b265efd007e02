"""Formulas are drawn in the browser by the KaTeX of this site, which only pages with a formula load."""

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict:
    app.config.mathjax_path = "katex/katex.min.js"  # Sphinx leaves the formulas as TeX and loads this script
    app.connect("html-page-context", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_files(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    if 'class="math' in context.get("body", ""):
        app.add_css_file("katex/katex.min.css")
        app.add_js_file("katex/init.js")
