"""Write files for `paretune weigh --data`: the demo's answers as training sets and criteria.

    python examples/weigh_files.py weigh_files

Training sets are answers that end in a sentence, and answers that were cut off at 48 tokens; one
criterion is the shortest answer to questions that no set has, the other the one with most content
words (both as the demo scores them). Prompts are plain text, so that rows are short.
"""

import json
import sys
from pathlib import Path

from paretune.data.demo import DEMO_FILE
from paretune.files import read_objects


def main(folder: Path) -> None:
    answers = read_objects(DEMO_FILE)
    questions = list(dict.fromkeys(answer["prompt"] for answer in answers))
    held_out = set(questions[::3])
    of: dict[str, list[dict[str, object]]] = {question: [] for question in questions}
    for answer in answers:
        of[answer["prompt"]].append(answer)
    files: dict[str, list[dict[str, object]]] = {
        "finished": [a for a in answers if a["prompt"] not in held_out and a["finished"]],
        "cut_off": [a for a in answers if a["prompt"] not in held_out and not a["finished"]],
    }
    for name in ("concise", "informative"):
        files[name] = [max(of[q], key=lambda a: float(str(a[name]))) for q in sorted(held_out)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in files.items():
        lines = [
            {"prompt": f"Question: {a['prompt']}\nAnswer:", "completion": f" {a['response']}"}
            for a in found
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "weigh_files"))
