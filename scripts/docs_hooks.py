"""Hooks of MkDocs: pages that are made while the documentation is built.

`index.md` is the README, so that both say the same; the reference is made from the code.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PICTURE = re.compile(r"<picture>.*?</picture>", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file in docs/ holds."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import docs_reference

    made = {
        "index.md": index(),
        "contributing.md": from_root(ROOT / "CONTRIBUTING.md"),
        "changelog.md": from_root(ROOT / "CHANGELOG.md"),
        **docs_reference.pages(),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def index() -> str:
    """The README as a page: the picture by the page's own light or dark face."""
    return PICTURE.sub(_picture, from_root(ROOT / "README.md"))


def from_root(path: Path) -> str:
    """A file of the root as a page of docs/."""
    text = path.read_text(encoding="utf-8").replace("](docs/", "](")
    return text.replace("](CONTRIBUTING.md", "](contributing.md").replace(
        "](CHANGELOG.md", "](changelog.md"
    )


def _picture(found: re.Match[str]) -> str:
    dark = re.search(r'srcset="docs/([^"]+)"', found[0])
    light = re.search(r'src="docs/([^"]+)"', found[0])
    words = re.search(r'alt="([^"]+)"', found[0])
    if dark is None or light is None or words is None:
        raise ValueError("the README's <picture> needs srcset, src (below docs/) and alt")
    return f"![{words[1]}]({light[1]}#only-light)\n![{words[1]}]({dark[1]}#only-dark)"
