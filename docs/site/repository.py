"""Takes pages from elsewhere in the repository into the site, and follows links out of docs/.

A link to a page of the site leads there. A link to another file of the repository becomes the file's name, as the site
does not hold it. A link to nothing is a warning, which fails a strict build.
"""

from __future__ import annotations

import logging
import os.path
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "splitload/bundle/FORMAT.md": "format.md",
    "results/README.md": "results.md",
    "results/experiments.md": "experiments.md",
}  # where they lie, and what they are called in the site
_LOG = logging.getLogger("mkdocs.hooks.repository")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that lie elsewhere."""
    for place, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave docs/ into links of the site, or into the names of files."""
    places = {name: place for place, name in PAGES.items()}
    uri = page.file.src_uri
    source = places.get(uri, f"docs/{uri}")

    def follow(match: re.Match[str]) -> str:
        sign, text, target, anchor = match.groups()
        place = os.path.normpath(os.path.join(os.path.dirname(source), target))  # noqa: PTH118, PTH120
        name = PAGES.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else None)
        if name is not None and files.get_file_from_path(name) is not None:
            here = os.path.dirname(uri) or "."  # noqa: PTH120
            return f"{sign}[{text}]({os.path.relpath(name, here)}{anchor or ''})"
        if not (ROOT / place).exists():
            _LOG.warning("'%s' links to '%s', which is not there", source, target)
        return f"`{place}`" if text.strip("`/") == place else f"{text} (`{place}`)"

    return _LINK.sub(follow, markdown)
