"""Hooks of MkDocs: pages that are made while the documentation is built.

`index.md` is the README, so that both say the same; the reference is made from the code, and the
tutorial from its notebook, with the outputs it was saved with.
"""

from __future__ import annotations

import json
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
        "tutorial.md": notebook(ROOT / "docs" / "tutorial.ipynb"),
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


def notebook(path: Path) -> str:
    """A notebook as a page: its words, its code, and what that put out when it was saved."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    head, _, rest = "\n\n".join(part for part in parts if part).partition("\n")
    return f"{head}\n\n[The notebook]({path.name}), to be run.\n{rest}\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":  # bars are not worth a reader's time
        text = "".join(output["text"])
        return f"```text\n{text.rstrip()}\n```" if output["name"] == "stdout" else ""
    data = output.get("data", {})
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        return re.sub(r"\n\s*", "\n", html)  # indented, Markdown would show it as code
    if "image/png" in data:
        return f"![](data:image/png;base64,{''.join(data['image/png']).strip()})"
    return f"```text\n{''.join(data.get('text/plain', '')).rstrip()}\n```"


def _picture(found: re.Match[str]) -> str:
    dark = re.search(r'srcset="docs/([^"]+)"', found[0])
    light = re.search(r'src="docs/([^"]+)"', found[0])
    words = re.search(r'alt="([^"]+)"', found[0])
    if dark is None or light is None or words is None:
        raise ValueError("the README's <picture> needs srcset, src (below docs/) and alt")
    return f"![{words[1]}]({light[1]}#only-light)\n![{words[1]}]({dark[1]}#only-dark)"
