"""Win rates of AlpacaEval 2.0 by paretune and by alpaca_eval, on the same verdicts and tables.

    python benchmarks/alpaca_eval_parity.py --judged judged*.jsonl.gz \\
        --instructions instructions_805.jsonl --baseline gpt4_1106_preview_outputs.json

The judged rows have `id` (row of the 805 instructions), `model`, `output` and `p_win_vs_gpt4`. The
regression table is synthetic, since the original is on the hub only; both sides read the same file.
Needs alpaca_eval 0.6.6 with scikit-learn below 1.10 and pandas.
"""

import argparse
import gzip
import json
import sys
import tempfile
import types
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from paretune.evaluation.alpaca_eval import read_annotations, read_instructions, win_rate
from paretune.evaluation.length_control import length_controlled, read_difficulties, read_gamed

# alpaca_eval imports a module that setuptools no longer has, for uses that are not reached here.
sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))
from alpaca_eval.metrics import glm_winrate  # noqa: E402

BASELINE = "gpt4_1106_preview"


def synthetic_tables(folder: Path, n: int, seed: int = 0) -> tuple[Path, Path]:
    """``df_gamed.csv`` and ``instruction_difficulty.csv`` of n instructions."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    rows = []
    for model, shift in (("concise", 1.0), ("verbose", -1.0)):
        lengths = rng.normal(shift, 0.7, size=n)
        scores = -0.8 * np.tanh(lengths) + 0.3 * difficulty + rng.normal(size=n)
        rows.append(
            pd.DataFrame(
                {
                    "index": range(n),
                    "model": f"{BASELINE}_{model}",
                    "preference": 1 / (1 + np.exp(-2 * scores)),
                    "std_delta_len": lengths,
                    "instruction_difficulty": difficulty,
                    "not_gamed_baseline": False,
                }
            )
        )
    gamed, table = folder / "df_gamed.csv", folder / "instruction_difficulty.csv"
    pd.concat(rows).to_csv(gamed, index=False)
    pd.DataFrame({"instruction_difficulty": difficulty}).to_csv(table)
    return gamed, table


def theirs(annotations: list[dict[str, Any]], gamed: Path, formula: str) -> dict[str, float]:
    """alpaca_eval's own figures, with the table that it would take from the hub."""
    glm_winrate.hf_hub_download = lambda **_: str(gamed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, float] = glm_winrate.get_length_controlled_winrate(
            pd.DataFrame(annotations),
            glm_name=formula,
            save_weights_dir=None,
            is_warn_extreme_changes=False,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--judged", nargs="+", type=Path, required=True)
    parser.add_argument("--instructions", type=Path, required=True)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--formula", default="length_controlled_v1", choices=glm_winrate.GLM_INFO)
    given = parser.parse_args()
    instructions = read_instructions(given.instructions)
    baseline = json.loads(given.baseline.read_text(encoding="utf-8"))
    models: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in given.judged:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                models[row["model"]].append(row)
    print("| model | rows | win rate | alpaca_eval | LC win rate | alpaca_eval | difference |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    worst = worst_raw = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gamed, difficulties = synthetic_tables(folder, len(instructions))
        tables: dict[str, Any] = {
            "length_controlled_v1": {"gamed": read_gamed(gamed)},
            "length_controlled_noreg": {"difficulties": read_difficulties(difficulties)},
            "length_controlled_minimal": {},
        }
        for model, rows in sorted(models.items()):
            annotations = [
                {
                    "index": row["id"],
                    "instruction": instructions[row["id"]].text,
                    "output_1": baseline[row["id"]]["output"],
                    "generator_1": BASELINE,
                    "output_2": row["output"],
                    "generator_2": model,
                    "annotator": "weighted_alpaca_eval_gpt4_turbo",
                    "preference": 1 + row["p_win_vs_gpt4"],
                }
                for row in sorted(rows, key=lambda row: row["id"])
            ]
            path = folder / "annotations.json"
            path.write_text(json.dumps(annotations), encoding="utf-8")
            ours = read_annotations(path, instructions)
            raw, controlled = win_rate(ours), length_controlled(ours, **tables[given.formula])
            other = theirs(annotations, gamed, given.formula)
            raw_gap = abs(raw.win_rate - other["win_rate"])
            gap = controlled.win_rate - other["length_controlled_winrate"]
            worst, worst_raw = max(worst, abs(gap)), max(worst_raw, raw_gap)
            print(
                f"| {model} | {len(rows)} | {raw.win_rate:.4f} | {other['win_rate']:.4f} | "
                f"{controlled.win_rate:.4f} | {other['length_controlled_winrate']:.4f} | "
                f"{gap:+.5f} |"
            )
    print(f"\nLargest difference: {worst_raw:.1e} points raw, {worst:.5f} length-controlled.")


if __name__ == "__main__":
    main()
