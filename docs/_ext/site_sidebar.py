"""The sidebar lists the modules only on their own pages: elsewhere they would fill it, and every page's file."""

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", collapse, priority=400)  # the theme asks for its contents at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def collapse(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    contents = context["toctree"]
    context["toctree"] = lambda **options: contents(**(options | {"collapse": True}))
