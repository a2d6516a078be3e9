"""A hook of mkdocs: the pages that stand at the root of the repository are pages of the site too.

On the site README.md is docs/README.md, so links between the two places lose their first folder.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "infra/README.md", "benchmarks/README.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text with its links as they are on the site."""
    above = "../" * page.file.src_uri.count("/")

    def moved(link: re.Match[str]) -> str:
        target = link[1]
        if page.file.src_uri in OUTSIDE:  # docs/x.md is x.md there
            return f"]({above}{target.removeprefix(above).removeprefix('docs/')}"
        outside = target.removeprefix("../" + above).partition("#")[0]
        return f"]({above}{target.removeprefix('../' + above)}" if outside in OUTSIDE else link[0]

    return re.sub(r"\]\((?!https?:|#)([^)\s]+)", moved, markdown)
