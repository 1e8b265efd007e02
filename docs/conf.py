"""Sphinx builds the site from this folder, the notebooks and the docstrings. README.md beside this file says how."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))  # what this site adds to Sphinx, one idea a file
sys.path.insert(0, str(HERE.parent))  # the minar that stands beside, also if another one is installed
sys.modules.setdefault("rfc3987_syntax", None)  # where it is installed, myst-nb loads it for 3 s and never asks it

# "OWNER/NAME" on GitHub. Unknown, so empty: pages then offer a download and no launch links.
repository = os.environ.get("MINAR_REPOSITORY", "")

project = "minar"
author = "the minar authors"
copyright = "2026, the minar authors. Code and text: MIT"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "site_api",
    "site_course",
    "site_docstrings",
    "site_katex",
    "site_links",
    "site_notebooks",
    "site_players",
    "site_sidebar",
    "site_sources",
]
exclude_patterns = ["README.md", "_*", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]

nb_execution_mode = "off"  # the outputs in the notebooks are the ones to show
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
myst_update_mathjax = False

autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "ignore-module-all": True,  # a package lists its parts, which have pages of their own
    "member-order": "bysource",
    "show-inheritance": True,
}
autodoc_mock_imports = ["triton"]  # some machines lack it, and the pages shall be the same on all
autodoc_use_type_comments = False  # there are none, and looking for them takes a third of the build
autodoc_inherit_docstrings = False  # a `forward` without words of its own would repeat PyTorch's
add_module_names = False
viewcode_follow_imported_members = False
maximum_signature_line_length = 110

html_theme = "furo"
pygments_dark_style = "github-dark"  # the theme's own underlines names
html_title = "minar"
html_static_path = ["_static"]
html_css_files = ["minar.css"]
html_sourcelink_suffix = ""  # so that the download of a notebook is called NAME.ipynb
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = True
