"""Links are written for GitHub and Jupyter, as paths in the repository; here they lead to pages of the site.

The files stay as they are: only the text that Sphinx reads is changed.
"""

import json
import os
import re
from pathlib import PurePosixPath

from site_sources import PAGES, ROOT
from sphinx.application import Sphinx

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def setup(app: Sphinx) -> dict:
    app.add_config_value("repository", "", "env")  # "OWNER/NAME" on GitHub
    app.connect("source-read", rewrite)
    return {"parallel_read_safe": True}


def rewrite(app: Sphinx, page: str, source: list[str]) -> None:
    """Change the Markdown that a page is about to be made from."""
    folder, repository = origin(page).parent, app.config.repository
    suffix = app.env.doc2path(page).suffix
    if suffix == ".ipynb":
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relink("".join(cell["source"]), folder, page, repository)
        source[0] = json.dumps(notebook)
    elif suffix == ".md":
        source[0] = relink(source[0], folder, page, repository)


def relink(text: str, folder: PurePosixPath, page: str, repository: str = "") -> str:
    """Markdown written in a folder of the repository, with links that work on a page of the site."""

    def replace(match: re.Match) -> str:
        image, label, target, anchor = match.groups()
        path = PurePosixPath(os.path.normpath(folder / target))
        if ":" in target or path.parts[:1] == ("..",) or not (ROOT / path).exists():
            return match[0]  # another site, or a mistake, about which Sphinx complains
        return f"{image}[{label}]({seen_from(page, path, repository)}{anchor or ''})"

    return LINK.sub(replace, text)


def origin(page: str) -> PurePosixPath:
    """The file in the repository that a page is made from."""
    if page.startswith("notebooks/"):
        return PurePosixPath(page + ".ipynb")
    name = page.removeprefix("more/")
    return PurePosixPath(PAGES[name] if page.startswith("more/") else f"docs/{page}.md")


def seen_from(page: str, path: PurePosixPath, repository: str) -> str:
    """What a page writes to link to a path of the repository: a page, else a file on GitHub, else a download."""
    target = on_site(path)
    if target is None and repository:
        return f"https://github.com/{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
    if target is None and (ROOT / path).is_dir():
        target = "more/start.md"  # a folder without a page: the README names them all
    return os.path.relpath(target or f"../{path}", PurePosixPath(page).parent)


def on_site(path: PurePosixPath) -> str | None:
    """Where docs/ has the page for a path of the repository."""
    copied = {file: f"more/{name}.md" for name, file in PAGES.items() if (ROOT / file).exists()}
    if str(path) in copied or f"{path}/README.md" in copied:
        return copied.get(str(path)) or copied[f"{path}/README.md"]
    if path.parts[0] == "docs":
        return str(path.relative_to("docs")) if len(path.parts) > 1 and path.name != "README.md" else "index.md"
    if path.parts[0] == "notebooks":
        return str(path) if path.suffix == ".ipynb" else "index.md"
    if path.parts[0] == "minar" and (path.suffix == ".py" or (ROOT / path / "__init__.py").exists()):
        return f"api/{'.'.join(path.with_suffix('').parts).removesuffix('.__init__')}.rst"
    return None
