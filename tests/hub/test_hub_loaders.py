"""The loaders, a tokenizer and a model by their ids, from a hub on the loopback.

The rows have the columns that are published (the data sets' cards), in the files' own formats.
"""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TINY = Path(__file__).parents[1] / "fixtures" / "tiny"
MODEL, PAIRS = TINY / "model", TINY / "pairs.jsonl"


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), target)
    return target.getvalue()


def safe_rlhf(n: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"How do I open lock {k}?",
            "response_0": f"Rake pin {k} with a pick.",
            "response_1": f"With key {k}.",
            "is_response_0_safe": False,
            "is_response_1_safe": True,
            "better_response_id": k % 2,
            "safer_response_id": 1,
        }
        for k in range(n)
    ]


def annotation(rating: str) -> dict[str, Any]:
    return {"Rating": rating, "Rationale": "Because."}


def ultrafeedback(n: int = 6) -> list[dict[str, Any]]:
    aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    return [
        {
            "source": "evol_instruct",
            "instruction": f"Name fruit {k}.",
            "models": ["a", "b"],
            "completions": [
                {
                    "annotations": {name: annotation(rating) for name in aspects},
                    "custom_system_prompt": "Be good.",
                    "model": model,
                    "principle": "helpfulness",
                    "response": f"Fruit {k} of {model}.",
                    "critique": "Fine.",
                    "fine-grained_score": 4.0,
                    "overall_score": 7.5,
                }
                for model, rating in (("a", "5"), ("b", "N/A" if k == 0 else "2"))
            ],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }
        for k in range(n)
    ]


def helpsteer(n: int = 6, turn: str = "") -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Say {k}.{turn}",
            "response": f"{k} is said {j} times.",
            "helpfulness": 4 - 2 * j,
            "correctness": 4 - j,
            "coherence": 4,
            "complexity": j,
            "verbosity": 2 * j,
        }
        for k in range(n)
        for j in range(2)
    ]


LOADS = """
import json, sys
from paretune.data import LOADERS, HubDataset
from paretune.data.loading import load

name, path, objectives, revision = json.loads(sys.argv[1])
data = load(LOADERS[name], objectives, path, revision)
rows = {key: len(table) for key, table in data.pairs.items()}
first = next(iter(data.pairs.values()))[0]
print(json.dumps([rows, first, data.counts["rows"]]))
"""


def loaded(hub: Any, folder: Path, *what: Any) -> Any:
    done = hub.run(folder, LOADS, json.dumps(what), token=None)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_published_data_sets(hub: Any, tmp_path: Path) -> None:
    safe = safe_rlhf()
    hub.add_dataset("PKU-Alignment/PKU-SafeRLHF-10K", {"data/train-0.parquet": parquet(safe)})
    hub.add_dataset("PKU-Alignment/PKU-SafeRLHF", {"data/Alpaca-7B/train.jsonl": lines(safe)})
    feedback = {"evol_instruct.jsonl": lines(ultrafeedback()[:4])}
    feedback |= {"false_qa.jsonl": lines(ultrafeedback()[4:])}
    hub.add_dataset("openbmb/UltraFeedback", feedback)
    steer = {"train.jsonl.gz": gzip.compress(lines(helpsteer()))}
    steer |= {"validation.jsonl.gz": gzip.compress(lines(helpsteer(1)))}
    hub.add_dataset("nvidia/HelpSteer", steer)
    turn = "<extra_id_1>Assistant\nWhat?<extra_id_1>User\nThat."
    hub.add_dataset(
        "nvidia/HelpSteer2", {"train.jsonl.gz": gzip.compress(lines(helpsteer(turn=turn)))}
    )

    rows, first, count = loaded(hub, tmp_path, "safe_rlhf", None, ["helpful", "harmless"], None)
    assert (rows, count) == ({"helpful": 6, "harmless": 6}, 6)
    assert first["prompt"] == [{"role": "user", "content": "How do I open lock 0?"}]
    commit = hub.datasets["PKU-Alignment/PKU-SafeRLHF"].sha
    rows, *_ = loaded(
        hub, tmp_path, "safe_rlhf", "PKU-Alignment/PKU-SafeRLHF", ["harmless"], commit
    )
    assert rows == {"harmless": 6}

    rows, first, count = loaded(hub, tmp_path, "ultrafeedback", None, ["honesty"], None)
    assert (rows, count) == ({"honesty": 5}, 6)  # of one row there is one rating
    assert first["chosen"][0]["content"].endswith("of a.")

    names = ["helpfulness", "correctness"]
    rows, first, count = loaded(hub, tmp_path, "helpsteer", None, names, None)
    assert (rows, count) == (dict.fromkeys(names, 6), 12)
    rows, first, _ = loaded(hub, tmp_path, "helpsteer", "nvidia/HelpSteer2", names, None)
    assert rows == dict.fromkeys(names, 6)
    assert [turn["role"] for turn in first["prompt"]] == ["user", "assistant", "user"]

    done = hub.run(
        tmp_path, LOADS, json.dumps(["helpsteer", "nvidia/HelpSteer", names, "v9"]), token=None
    )
    assert "revision v9) cannot be loaded" in done.stderr
    done = hub.run(
        tmp_path, LOADS, json.dumps(["helpsteer", "nvidia/None", names, None]), token=None
    )
    assert "nvidia/None (split 'train', revision main) cannot be loaded" in done.stderr


@pytest.mark.slow
def test_dialogues_and_pairs_of_ones_own(hub: Any, tmp_path: Path) -> None:
    def dialogues(kind: str) -> bytes:
        start = "\n\nHuman: Hi, {k}.\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant:"
        starts = [start.format(k=k) for k in range(4)]
        rows = [{"chosen": f"{s} A {kind} end.", "rejected": f"{s} No."} for s in starts]
        return gzip.compress(lines(rows))

    folders = {f"{kind}-base/train.jsonl.gz": dialogues(kind) for kind in ("helpful", "harmless")}
    hub.add_dataset("Anthropic/hh-rlhf", folders)
    rows, first, _ = loaded(hub, tmp_path, "hh_rlhf", None, ["harmless", "helpful"], None)
    assert rows == {"harmless": 4, "helpful": 4}
    assert [turn["role"] for turn in first["prompt"]] == ["user", "assistant", "user"]
    assert first["chosen"][0]["content"].strip() == "A harmless end."

    pair = {"chosen": "red", "rejected": "blue"}
    own = [{"objective": name, "prompt": f"{name} {k} ", **pair} for name in "ab" for k in range(3)]
    hub.add_dataset("me/pairs", {"data/train-0.parquet": parquet(own)})
    sha = hub.datasets["me/pairs"].sha
    rows, first, count = loaded(hub, tmp_path, "pairs", "me/pairs", ["a", "b"], sha)
    assert (rows, first["prompt"], count) == ({"a": 3, "b": 3}, "a 0 ", 6)


@pytest.mark.slow
def test_a_sweep_with_data_and_model_from_the_hub(hub: Any, tmp_path: Path) -> None:
    """`from_pretrained` and a data set by its name, in a whole recipe."""
    pairs = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    hub.add_dataset("PKU-Alignment/PKU-SafeRLHF-10K", {"data/train-0.parquet": parquet(pairs)})
    hub.add_model("tiny/llama", MODEL)
    recipe = """
model: {name: tiny/llama}
lora: {r: 1, target_modules: [down_proj]}
data: {loader: safe_rlhf, objectives: [harmless, helpful], split: [0.5, 0.25, 0.25]}
train: {max_steps: 1, per_device_train_batch_size: 2, use_cpu: true}
sweep: {preferences: [[0.0, 1.0]]}
evaluation: {generate: false}
output_dir: run
"""
    (tmp_path / "recipe.yaml").write_text(recipe)
    done = hub.paretune(tmp_path, "sweep", "recipe.yaml", token=None)
    assert done.returncode == 0, done.stderr
    ground = json.loads((tmp_path / "run" / "manifest.json").read_text())["ground"]
    assert ground["model"] == {"commit": hub.models["tiny/llama"].sha}
    done = hub.paretune(tmp_path, "sweep", "recipe.yaml", "model.name=tiny/none", "output_dir=x")
    assert done.returncode == 2
    assert "model 'tiny/none' could not be loaded" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "hf_local"])
def test_a_gated_model_says_whose_terms_to_accept(
    hub: Any, tmp_path: Path, token: str | None
) -> None:
    hub.add_model("tiny/llama", MODEL)
    hub.models["tiny/llama"].gated = True
    done = hub.paretune(tmp_path, "sweep", "demo_sweep", "model.name=tiny/llama", token=token)
    assert done.returncode == 2
    assert done.stderr == (
        "error: model 'tiny/llama' is gated, and this account or token has no access: accept its "
        f"terms at {hub.endpoint}/tiny/llama, and log in with `hf auth login`\n"
    )
