"""The weights that are trained are whole, and the same for model, optimiser and gradient bank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from peft import PromptTuningConfig, get_peft_model
from transformers import Trainer

from paretune import ClampConfig, ClampTrainer, InputError
from paretune.gradients import ObjectiveGradients
from paretune.losses import LOSSES
from paretune.training import MultiObjectiveConfig, MultiObjectiveTrainer
from paretune.training.checks import check_ownership, check_weights


@pytest.fixture
def trainer(
    tmp_path: Path, tokenizer: Any, tiny_lora: Callable[..., Any], random_pairs: Any
) -> Callable[..., Any]:
    def make(model: Any = None, config: Any = MultiObjectiveConfig, **named: Any) -> Any:
        kind = ClampTrainer if config is ClampConfig else MultiObjectiveTrainer
        args = config(
            preference={"one": 0.5, "two": 0.5},
            output_dir=str(tmp_path),
            max_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
        )
        model = tiny_lora(fresh=True) if model is None else model
        return kind(model, args, random_pairs(), processing_class=tokenizer, **named)

    return make


def test_a_launch_configuration_with_fsdp(
    monkeypatch: pytest.MonkeyPatch, trainer: Callable[..., Any]
) -> None:
    start = AcceleratorState.__init__

    def launched(self: Any, *args: Any, **named: Any) -> None:
        start(self, *args, **named)
        # As after `accelerate launch --use_fsdp` with a GPU; the arguments say nothing of it.
        self.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)

    monkeypatch.setattr(AcceleratorState, "__init__", launched)
    with pytest.raises(InputError, match="launch configuration of accelerate turns FSDP on"):
        trainer(config=ClampConfig)


def test_a_launch_configuration_with_deepspeed(
    monkeypatch: pytest.MonkeyPatch, trainer: Callable[..., Any]
) -> None:
    start = Trainer.create_accelerator_and_postprocess

    def launched(self: Any) -> None:
        start(self)
        self.is_deepspeed_enabled = True  # what transformers sets by the accelerator's plugin

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", launched)
    with pytest.raises(InputError, match="launch configuration of accelerate turns DeepSpeed on"):
        trainer(config=ClampConfig)


def test_an_optimiser_of_other_weights(trainer: Callable[..., Any], tiny_lora: Any) -> None:
    model = tiny_lora(fresh=True)
    early = [p for name, p in model.named_parameters() if "base_layer" in name]
    made = trainer(model, optimizers=(torch.optim.SGD(early, lr=0.1), None))
    with pytest.raises(InputError, match=r"lora_A.*not among those that the optimiser holds"):
        made.train()


def test_weights_that_are_made_trainable_too_late(trainer: Callable[..., Any]) -> None:
    made = trainer()
    made.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"embed_tokens.*not among those that the trainer holds"):
        made.train()


def test_weights_that_are_split_over_processes(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    check_ownership(model, optimizer, list(model.parameters()))
    model.lm_head.weight.full_tensor = lambda: None  # as a DTensor has
    with pytest.raises(InputError, match=r"'lm_head\.weight' is split over processes"):
        check_ownership(model, optimizer)


def test_virtual_tokens(trainer: Callable[..., Any], tiny_llama: Callable[..., Any]) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(InputError, match="PROMPT_TUNING, which puts virtual tokens"):
        trainer(get_peft_model(tiny_llama(), config))


def test_four_bits_on_a_cpu(tiny_llama: Callable[..., Any]) -> None:
    class Params4bit(torch.nn.Parameter):
        """Named as bitsandbytes names its weights."""

    model = tiny_llama()
    check_weights(model)
    model.lm_head.weight = Params4bit(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match=r"4 bits and on a CPU \('lm_head\.weight'\)"):
        check_weights(model)


@pytest.mark.parametrize("layerwise", [False, True])
def test_weights_on_several_devices(
    tiny_llama: Callable[..., Any], tiny_lora: Callable[..., Any], layerwise: bool
) -> None:
    """As of a base that `device_map` has spread, whose adapters go with their layers."""
    model = tiny_llama() if layerwise else tiny_lora(fresh=True)
    last = [each for each in model.modules() if isinstance(each, torch.nn.Linear)][-1]
    if not layerwise:
        last = next(m for name, m in model.named_modules() if name.endswith("lora_B.default"))
    last.weight = torch.nn.Parameter(last.weight.detach().to("meta"))
    losses = {name: LOSSES["dpo"]() for name in ("one", "two")}
    with pytest.raises(InputError, match=r"must be on one device; found: cpu, meta\."):
        ObjectiveGradients(
            model, losses, "layerwise" if layerwise else "one_pass", single=layerwise
        )
