"""The reference is the model as given: before training, after it, from the cache, damaged too."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from paretune import InputError
from paretune.data.tokenization import TokenSequence
from paretune.training import MultiObjectiveConfig, MultiObjectiveTrainer
from paretune.training.reference_cache import ReferenceCache, model_digest


@pytest.fixture
def linear(tmp_path: Path, tokenizer: Any, random_pairs: Any) -> Any:
    """A factory of trainers that move fast."""

    def make(model: Any, pairs: Any = None, **options: Any) -> MultiObjectiveTrainer:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "preference": {"one": 0.8, "two": 0.2},
            "max_steps": 3,
            "learning_rate": 0.05,
            "per_device_train_batch_size": 3,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        args = MultiObjectiveConfig(**{**settings, **options})
        rows = random_pairs(n=8) if pairs is None else pairs
        return MultiObjectiveTrainer(model, args, rows, processing_class=tokenizer)

    return make


ADAPTERS: dict[str, dict[str, Any]] = {
    "fresh": {"fresh": True, "dropout": 0.3},
    "trained": {"dropout": 0.3},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biases": {"fresh": True, "bias": "all"},
    "head": {"fresh": True, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embeddings": {"fresh": True, "target_modules": ["q_proj", "embed_tokens"]},
    "tokens": {
        "fresh": True,
        "target_modules": ["q_proj"],
        "trainable_token_indices": list(range(20)),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_is_the_model_as_given_before_and_after(
    linear: Any,
    tiny_llama: Any,
    tiny_lora: Any,
    random_pairs: Any,
    kind: str,
    checkpointing: bool,
) -> None:
    base = tiny_llama(attention_bias=True, mlp_bias=True, attention_dropout=0.2)
    model = tiny_lora(base=base, **ADAPTERS[kind])
    trainer = linear(model, activation_checkpointing=checkpointing)
    held_out = random_pairs(n=5, seed=7)
    before = trainer.prepare(held_out)
    untrained = trainer.evaluate(before)
    assert untrained["eval_one_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert untrained["eval_two_margin"] == pytest.approx(0, abs=1e-6)
    trainer.train()
    first = trainer.state.log_history[0]
    if kind != "trained":  # whose own dropout is asked for
        assert first["one/loss"] == pytest.approx(math.log(2), abs=1e-5)
    now = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = trainer.prepare(held_out)
    torch.testing.assert_close(after.reference, before.reference, rtol=0, atol=1e-5)
    assert trainer.evaluate(after)["eval_one_loss"] != pytest.approx(math.log(2), abs=1e-4)
    for name, p in model.named_parameters():
        assert torch.equal(p, now[name])


def test_says_that_an_adapter_was_trained_before(linear: Any, tiny_lora: Any, caplog: Any) -> None:
    linear(tiny_lora())
    assert "adapter was trained before" in caplog.text


def test_two_trainings_one_after_another(linear: Any, tiny_lora: Any, random_pairs: Any) -> None:
    model = tiny_lora(fresh=True)
    linear(model).train()
    second = linear(model)
    assert second.evaluate(random_pairs(seed=3))["eval_one_loss"] == pytest.approx(math.log(2))
    second.train()
    assert second.state.log_history[0]["one/loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_dropout_of_the_base_is_off(
    linear: Any, tokenizer: Any, random_pairs: Any, loss: str
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2)
    trainer = linear(GPT2LMHeadModel(config), loss=loss, max_steps=1)
    trainer.train()
    expected = math.log(2) if loss == "dpo" else 25.0  # (1 / (2 · 0.1))²
    assert trainer.state.log_history[0]["one/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_differs_in_training_is_refused(linear: Any, tiny_lora: Any) -> None:
    model = tiny_lora(fresh=True)
    norm = model.get_base_model().model.norm
    norm.register_forward_hook(lambda m, args, out: out * 2 if m.training else out)
    with pytest.raises(InputError, match=r"loss of '.*' is .* instead of 0.6931: the model comp"):
        linear(model)


def test_a_reference_that_is_not_finite_is_refused(linear: Any, tiny_llama: Any) -> None:
    model = tiny_llama()
    model.lm_head.weight.data[5:7] = float("inf")
    with pytest.raises(InputError, match="NaN or infinite, so it cannot be a reference"):
        linear(model)


# ---------------------------------------------------------------------- the digest


def test_digest_is_of_all_numbers_and_the_configuration(tiny_llama: Any, tiny_lora: Any) -> None:
    plain = model_digest(tiny_llama())
    assert model_digest(tiny_llama()) == plain
    assert model_digest(tiny_lora(fresh=True)) == plain  # an adapter that changes nothing
    assert model_digest(tiny_lora(fresh=True, seed=0, r=2)) == plain
    others = [tiny_llama(1), tiny_llama().bfloat16(), tiny_lora(), tiny_lora(lora_alpha=16)]
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[17, 3] += 1e-6  # one number of many
    others.append(model)
    model = tiny_llama()
    first, second = (layer.self_attn.q_proj.weight for layer in model.model.layers)
    first.data, second.data = second.data.clone(), first.data.clone()
    others.append(model)
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    others.append(tiny_llama(rope_parameters=scaled))
    digests = {model_digest(model) for model in others}
    assert len(digests) == len(others)
    assert plain not in digests


# ---------------------------------------------------------------------- the cache


def sequences(n: int) -> list[TokenSequence]:
    generator = random.Random(0)
    return [
        TokenSequence(tuple(generator.choices(range(5, 40), k=generator.randint(4, 9))), 3)
        for _ in range(n)
    ]


def test_cache_is_keyed_by_model_and_sequences(tmp_path: Path) -> None:
    items = sequences(5)
    whole = slice(0, 5)
    cache = ReferenceCache(tmp_path, "a", items)
    assert cache.load(whole) is None
    cache.store(whole, torch.arange(5.0))
    assert torch.equal(ReferenceCache(tmp_path, "a", items).load(whole), torch.arange(5.0))
    assert ReferenceCache(tmp_path, "b", items).load(whole) is None
    assert ReferenceCache(tmp_path, "a", items[:-1]).load(slice(0, 4)) is None
    assert ReferenceCache(None, "a", items).load(whole) is None


@pytest.mark.parametrize("n", [1, 255, 256, 257, 1000, 60_000])
def test_parts_cover_everything_in_few_files(n: int) -> None:
    cache = ReferenceCache(None, "a", [TokenSequence((1, 2), 1)] * n)
    parts = list(cache.parts())
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    assert len(parts) <= 100


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut": content[: len(content) // 2],
                "random": random.Random(1).randbytes(len(content)),
                "one bit": content[:-1] + bytes([content[-1] ^ 1]),
                "json": b"[]",
            }[how]
        )


@pytest.mark.parametrize("how", ["empty", "cut", "random", "one bit", "json", "folder"])
def test_damaged_values_are_computed_again(
    linear: Any, tiny_lora: Any, tmp_path: Path, caplog: Any, how: str
) -> None:
    cache = str(tmp_path / "cache")
    first = linear(tiny_lora(fresh=True), reference_cache=cache)
    (file,) = Path(cache).rglob("0*0.safetensors")
    _damage(file, how)
    again = linear(tiny_lora(fresh=True), reference_cache=cache)
    assert torch.equal(again._train_pairs.reference, first._train_pairs.reference)
    assert str(file) in caplog.text


@pytest.mark.parametrize("how", ["empty", "cut", "random", "one bit", "json", "folder"])
def test_each_file_of_an_entry_is_seen_to_by_itself(
    tmp_path: Path, monkeypatch: Any, how: str
) -> None:
    monkeypatch.setattr("paretune.training.reference_cache._SMALLEST", 4)
    cache = ReferenceCache(tmp_path, "a", sequences(10))
    values = torch.arange(10.0)
    for part in cache.parts():
        cache.store(part, values[part])
    assert cache.folder is not None
    files = sorted(path for path in cache.folder.rglob("*") if path.is_file())
    assert len(files) == len(list(cache.parts())) == 3
    for number, file in enumerate(files):
        _damage(file, how)
        left = [cache.load(part) for part in cache.parts()]
        assert [value is None for value in left] == [n == number for n in range(3)]
        if file.is_dir():
            file.rmdir()
        for part in cache.parts():
            cache.store(part, values[part])


def test_values_of_another_model_do_not_pass(
    linear: Any, tiny_lora: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Were the digest wrong, the first batch would tell."""
    monkeypatch.setattr("paretune.training.reference.model_digest", lambda model: "same")
    cache = str(tmp_path / "cache")
    linear(tiny_lora(fresh=True), reference_cache=cache)
    with pytest.raises(InputError, match="Delete the folder reference_cache"):
        linear(tiny_lora(1, fresh=True), reference_cache=cache)


def test_a_pass_cut_short_is_resumed(
    linear: Any, tiny_lora: Any, random_pairs: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("paretune.training.reference_cache._SMALLEST", 4)
    import paretune.training.base as base

    pairs = random_pairs(n=10, shared=False)
    whole = linear(tiny_lora(fresh=True), pairs)
    score, calls = base.score_sequences, 0

    def dies(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(base, "score_sequences", dies)
    cache = str(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        linear(tiny_lora(fresh=True), pairs, reference_cache=cache)
    resumed = linear(tiny_lora(fresh=True), pairs, reference_cache=cache)
    assert calls == 9 + 2  # of ten parts eight were kept
    torch.testing.assert_close(resumed._train_pairs.reference, whole._train_pairs.reference)


def test_a_cache_that_cannot_be_written_is_no_hindrance(
    linear: Any, tiny_lora: Any, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "cache").write_text("a file")
    linear(tiny_lora(fresh=True), reference_cache=str(tmp_path / "cache"))
    assert "cannot be kept" in caplog.text
