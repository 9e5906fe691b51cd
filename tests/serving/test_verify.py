"""Exports are the run's models, damaged adapters are nobody's, and folders of others stay data."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from paretune.errors import InputError
from paretune.experiment.forecast import shape_of
from paretune.experiment.weights import read_adapter, with_adapter
from paretune.models import TRUST_VARIABLE, load_model_and_tokenizer
from paretune.recipes.schema import Model
from paretune.results.front import FrontPoint, ObjectiveMetrics
from paretune.results.weights import ADAPTER
from paretune.serving.verify import check_same, logits, untie

IDS = torch.tensor([[8, 9, 10, 11]])

Llama = Callable[..., Any]
Lora = Callable[..., Any]


@pytest.fixture
def folder(tiny_lora: Lora, tmp_path: Path) -> Path:
    tiny_lora().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_attached_and_taken_off(
    folder: Path, tiny_llama: Llama, tiny_lora: Lora
) -> None:
    base = tiny_llama()
    plain, wanted = logits(base, IDS), logits(tiny_lora(), IDS)
    model = with_adapter(base, folder)
    assert torch.equal(logits(model, IDS), wanted)
    assert not torch.equal(plain, wanted)
    assert torch.equal(logits(model.unload(), IDS), plain)


DAMAGE: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no tensors": lambda tensors: {},
    "is not in it": lambda tensors: dict(list(tensors.items())[::2]),
    "not finite": lambda tensors: {k: v * float("nan") for k, v in tensors.items()},
    "size mismatch|shape": lambda tensors: {k: v[:1].contiguous() for k, v in tensors.items()},
}


@pytest.mark.parametrize("words", DAMAGE)
def test_damaged_weights_are_refused(words: str, folder: Path, tiny_llama: Llama) -> None:
    whole = load_file(folder / ADAPTER[1])
    save_file(DAMAGE[words](whole), folder / ADAPTER[1], metadata={"format": "pt"})
    with pytest.raises(InputError, match=words):
        with_adapter(tiny_llama(), folder)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_cut_files_are_refused(share: float, folder: Path) -> None:
    data = (folder / ADAPTER[1]).read_bytes()
    (folder / ADAPTER[1]).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="is damaged"):
        read_adapter(folder)


def test_configurations_of_others_are_refused(folder: Path) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for change in ({"peft_type": "IA3"}, {"megatron_config": {"a": 1}, "megatron_core": "os"}):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match="not the configuration"):
            read_adapter(folder)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        read_adapter(folder)


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], ["q_proj", "lm_head"]])
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_is_the_adapted_one(
    modules: list[str], tied: bool, tiny_llama: Llama, tokenizer: Any, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_llama(tie_word_embeddings=tied)
    model: Any = get_peft_model(base, LoraConfig(r=4, target_modules=modules))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wanted = logits(model, IDS)
    untie(model)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    read, _ = load_model_and_tokenizer(tmp_path / "merged", dtype="float32")
    check_same(logits(read, IDS), wanted, torch.float32, "it")
    with pytest.raises(InputError, match="another model than the run's"):
        check_same(logits(tiny_llama(), IDS), wanted, torch.float32, "it")


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning")
def test_an_adapter_merged_into_tied_weights_is_noticed(tiny_llama: Llama) -> None:
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(
        tiny_llama(tie_word_embeddings=True), LoraConfig(r=4, target_modules=["lm_head"])
    )
    for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
        torch.nn.init.normal_(parameter, std=0.3)
    wanted = logits(model, IDS)
    assert isinstance(model, PeftModel)
    found = logits(model.merge_and_unload(), IDS)
    with pytest.raises(InputError, match="another model"):
        check_same(found, wanted, torch.float32, "it")


@pytest.mark.parametrize("place", ["..", "../..", "points/../../x", "/etc", "C:\\x", "a\\..\\b"])
def test_points_stay_within_their_run(place: str) -> None:
    with pytest.raises(ValueError, match="leads out of its run"):
        FrontPoint(
            preference={"a": 1.0},
            metrics={"a": ObjectiveMetrics(0.5, 0.5, 0.0)},
            chebyshev=0.5,
            folder=place,
        )


def test_code_of_a_checkpoint_needs_the_user_of_today(
    tiny_llama: Llama, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "model", tmp_path / "ran"
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\n")
    for asks, words in ((False, "could not be loaded"), (True, "--trust-remote-code")):
        with pytest.raises(InputError, match=words):
            load_model_and_tokenizer(folder, trust_remote_code=asks)
        with pytest.raises(InputError, match="without running code of its own"):
            shape_of(Model(name=str(folder), trust_remote_code=asks), None)
    assert not ran.exists()


def test_every_call_says_whether_code_may_run() -> None:
    """Left out, transformers asks whoever sits at the terminal."""
    source, found = Path(__file__).parents[2] / "src", 0
    for path in source.rglob("*.py"):
        for line in re.split(r"\bAuto\w+\.from_(?:pretrained|config)\(", path.read_text())[1:]:
            call, found = line[: line.index(")")], found + 1
            ours = call.startswith(("{", '"{')) or "gguf" in call  # a page's, or of our own file
            assert ours or "trust_remote_code=" in call or "**" in call, (path, call)
    assert found > 8


def test_nothing_is_unpickled_to_more_than_tensors() -> None:
    source = Path(__file__).parents[2] / "src"
    for path in source.rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text, path
        for call in text.split("torch.load(")[1:]:
            assert "weights_only=True" in call.split("\n\n")[0], path
