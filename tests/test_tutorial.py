"""The tutorial's notebook runs, and what it was saved with is what it puts out.

With PARETUNE_SAVE_TUTORIAL=1 the test saves it with what it puts out today.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def outputs(cells: list[dict[str, Any]], kind: str) -> list[str]:
    """What the code put out of a MIME type, or to a stream."""
    found = [output for cell in cells for output in cell.get("outputs", ())]
    texts = [output.get("data", {}).get(kind) for output in found]
    texts += [output["text"] for output in found if output.get("name") == kind]
    return ["".join(text) for text in texts if text is not None]


def words(cells: list[dict[str, Any]]) -> list[int]:
    """How long the answers are, from one end of the dial to the other."""
    said = "".join(outputs(cells, "stdout"))
    return [len(line.partition(":")[2].split()) for line in said.splitlines()]


def save(notebook: Any) -> None:
    """Keep the outputs, without times, the kernel of the test and bars."""
    import nbformat

    for cell in notebook.cells:
        cell.metadata = {}
        if "outputs" in cell:
            said = "".join(outputs([cell], "stdout"))
            cell.outputs = [each for each in cell.outputs if each["output_type"] != "stream"]
            if said:
                cell.outputs.append(nbformat.v4.new_output("stream", name="stdout", text=said))
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    NOTEBOOK.write_text(f"{text}\n", encoding="utf-8")


def test_it_was_saved_with_its_outputs() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert all(
        cell["outputs"] or cell["source"][-1].endswith(";") for cell in cells if "outputs" in cell
    )
    assert "/tmp" not in text  # nor any other place of the machine it ran on
    assert "Traceback" not in text
    lengths = words(cells)
    assert lengths[0] < 6 < 12 < lengths[-1]


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel", reason="the notebook's kernel is not installed")
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    spec = tmp_path / "share" / "jupyter" / "kernels" / "here" / "kernel.json"
    spec.parent.mkdir(parents=True)  # this Python, whatever kernels the machine has
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="here", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    lengths = words(notebook.cells)
    assert lengths[0] < 6 < 12 < lengths[-1]
    bar = "".join(outputs(notebook.cells, "stderr"))
    assert "| done [" in bar
    (front, frame) = outputs(notebook.cells, "text/html")
    assert "data:image/png" in front
    assert "brief_loss" in frame
    if os.environ.get("PARETUNE_SAVE_TUTORIAL") == "1":
        save(notebook)
