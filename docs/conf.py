"""Configure Sphinx: ``make docs`` builds the pages, and executes every code block in them."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_extensions"), str(DOCS.parent)]
matplotlib.use("agg")

from publication import REPOSITORY, SITE, source_address  # noqa: E402

from tracetorch import __version__  # noqa: E402

project = "traceTorch"
author = "the traceTorch authors"
version = release = __version__
copyright = author  # noqa: A001  Sphinx's name

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
    "playground",
    "executed",
    "notebooks",
    "names",
    "pictures",
    "publication",
    "versions",
    "sphinx.ext.linkcode",
]
linkcode_resolve = source_address
exclude_patterns = ["_build", "_extensions", "_templates", "**/.ipynb_checkpoints"]

# Pages are MyST Markdown; those with a `kernelspec` are executed. A failing block is a warning with
# its traceback, and fails a build with -W: an exception in a parallel build is reported without it.
# What a page printed is kept for as long as its code, and every file that it opened, are the same.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(DOCS.parent / "build/notebooks" / f"torch-{torch.__version__}")
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # else pages load a script from a network
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables that a block computes
suppress_warnings = ["mystnb.unknown_mime_type"]

# Every reference must name something that a page documents, but for names of other packages.
nitpicky = True
nitpick_ignore_regex = [
    (
        "py:class",
        r"(collections|contextlib|matplotlib|nir|numpy|os|pathlib|torch)\..*",
    ),
    ("py:class", r"Tensor"),
    ("py:class", r"tracetorch(\.\w+){2,}\.(Call|Edge\w*|Event(Dataset|Source)|InlinePage|Layer)"),
    ("py:class", r"tracetorch(\.\w+){2,}\.(Layout|Places|Plan|Real|Restarts|Span|Stateful|Unset)"),
    ("py:class", r"tracetorch\.cell\.(Cell|Constraint|StateKind|StepLayer)"),
    ("py:class", r"tracetorch\.fuse\.ir\.graph\.Line"),
]
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# what overrides a method of PyTorch without a text of its own has none here
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_param = False  # an entry may describe several arguments
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape", "Reference"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_baseurl = SITE
html_theme = "furo"
html_title = f"traceTorch {version}"
pygments_dark_style = "github-dark"
html_static_path = ["_static", "../media/demo.png"]
html_favicon = "_static/favicon.svg"
html_css_files = ["custom.css"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_math_renderer = "mathml"
html_theme_options = {
    "navigation_with_keys": True,
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}
html_copy_source = False
html_show_sourcelink = False
