"""`model_init_kwargs`: number types, attention and quantisation are honoured, or refused."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from paretune import ClampConfig, ClampTrainer, ConditionedTrainer, InputError
from paretune.training import ConditionedConfig

EIGHT = {"load_in_8bit": True}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def make(
    tiny_llama: Any, tokenizer: Any, random_pairs: Any, tmp_path: Path
) -> Callable[..., ClampTrainer | ConditionedTrainer]:
    folder = tmp_path / "model"
    sizes = {"hidden_size": 64, "intermediate_size": 64}  # 4-bit weights stand in blocks of 64
    tiny_llama(**sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def make(
        keywords: Any, adapter: bool = True, conditioned: bool = False
    ) -> ClampTrainer | ConditionedTrainer:
        options: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 3,
            "save_steps": 2,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "model_init_kwargs": keywords,
        }
        lora = LoraConfig(r=2, target_modules="all-linear") if adapter else None
        pairs = random_pairs(n=4)
        if conditioned:
            args = ConditionedConfig(**options)
            return ConditionedTrainer(str(folder), args, pairs, peft_config=lora)
        args_ = ClampConfig(**options, preference=[0.5, 0.5])
        return ClampTrainer(str(folder), args_, pairs, peft_config=lora)

    return make


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: weight.detach().clone() for name, weight in named if weight.requires_grad}


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize(
    "keywords",
    [
        {"quantization_config": BitsAndBytesConfig(**EIGHT)},
        {"quantization_config": BitsAndBytesConfig(**EIGHT), "dtype": "bfloat16"},
        json.dumps({"quantization_config": EIGHT}),
    ],
    ids=["object", "bfloat16", "json"],
)
def test_an_8_bit_base_trains_an_adapter_in_float32(
    make: Any, keywords: Any, conditioned: bool
) -> None:
    trainer = make(keywords, conditioned=conditioned)
    base = [p for n, p in trainer.model.named_parameters() if n.endswith("base_layer.weight")]
    assert base
    assert {p.dtype for p in base} == {torch.int8}
    before = trained(trainer)
    assert {weight.dtype for weight in before.values()} == {torch.float32}
    trainer.train()
    after = trained(trainer)
    assert all(not torch.equal(before[name], after[name]) for name in before if "lora_B" in name)
    again = make(keywords, conditioned=conditioned)
    again.train(resume_from_checkpoint=True)
    assert all(torch.equal(after[name], weight) for name, weight in trained(again).items())


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("config", "adapter", "sentence"),
    [
        ({"load_in_4bit": True}, True, "quantised to 4 bits and on a CPU"),
        (EIGHT, False, "such weights cannot be trained: give peft_config"),
        ("8bit", True, "cannot be loaded with quantization_config"),
        ({"load_in_8bits": True}, True, "quantization config from the arguments"),
    ],
    ids=str,
)
def test_quantisations_that_are_refused(
    make: Any, config: Any, adapter: bool, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        make({"quantization_config": config}, adapter)


@pytest.mark.parametrize("given", ["bfloat16", "float16", "float32", torch.bfloat16])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_the_number_type_of_the_base(make: Any, name: str, given: Any) -> None:
    trainer = make({name: given, "attn_implementation": "eager"})
    assert trainer.model.config._attn_implementation == "eager"
    named = dict(trainer.model.named_parameters())
    frozen = {weight.dtype for weight in named.values() if not weight.requires_grad}
    assert frozen == {getattr(torch, given) if isinstance(given, str) else given}
    assert {weight.dtype for weight in trained(trainer).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"dtype": "bf16"}, "dtype 'bf16' is none of torch's, such as 'bfloat16'"),
        ({"dtype": "nn"}, "dtype 'nn' is none of torch's"),
        ({"dtype": "float32", "torch_dtype": "float32"}, "the former name of dtype: drop it"),
        ({"attn_implementation": "fast"}, 'attn_implementation="fast"` is not supported'),
    ],
    ids=str,
)
def test_keywords_that_are_refused(make: Any, keywords: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make(keywords)
