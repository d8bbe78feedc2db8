"""The documentation site: `make site` builds it into `build/site`."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from _site import code_pages, command_help, links, study_keys  # noqa: E402

from latentwire.version import __version__  # noqa: E402

project, author, release = "LatentWire", "the LatentWire authors", __version__
copyright = "the LatentWire authors; Apache-2.0"
html_title = "LatentWire"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_site", "_static"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
default_role = "code"
python_use_unqualified_type_names = True
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

smartquotes = False

pygments_dark_style = "github-dark"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f5e9c", "color-brand-content": "#0f5e9c"},
    "dark_css_variables": {"color-brand-primary": "#6cb6ff", "color-brand-content": "#6cb6ff"},
}

GENERATED = {
    "reference/study-keys": lambda: study_keys.page("study"),
    "reference/stage-keys": lambda: study_keys.page("stages"),
    "reference/wire-keys": lambda: study_keys.page("wires"),
    "reference/objective-keys": lambda: study_keys.page("objectives"),
    "reference/commands": command_help.page,
    "reference/wires": code_pages.wire_kinds,
    "reference/python": code_pages.public_names,
    "reference/examples": code_pages.examples,
}
"""Pages that end with what the code says: there is nothing to keep in step by hand."""
ELSEWHERE = {page.relative_to(DOCS).with_suffix("").as_posix(): file for file, page in links.MOVED.items()}
"""Pages that show a document of the repository's root."""


def _write(app, docname, source):
    """Complete a page as it is read; nothing generated is written into the source tree."""
    page = DOCS / f"{docname}.md"
    origin = ELSEWHERE.get(docname, page)
    if docname.startswith("project/"):
        source[0] = origin.read_text(encoding="utf-8")
    source[0] = links.relink(source[0], origin if docname.startswith("project/") else page, page)
    if docname in GENERATED:
        source[0] = f"{source[0].rstrip()}\n\n{GENERATED[docname]()}\n"
    if docname == "index":
        source[0] = source[0].replace("<!-- other how-to pages -->", _others(source[0]))


def _others(index):
    """Documents of `docs/` and `docs/how-to/` that the front page does not list: a new one needs no entry."""
    there = [*DOCS.glob("how-to/*.md"), *DOCS.glob("*.md")]
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in sorted(there) if path.stem != "index"]
    return "\n".join(page for page in pages if f"\n{page}\n" not in index)


def setup(app):
    app.connect("source-read", _write)
    app.connect("autodoc-process-docstring", code_pages.fenced, priority=100)
