"""Every argument has its effect, is refused, or stands in the table of those that do not apply."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from transformers import TrainingArguments

from paretune import ClampConfig, InputError
from paretune.training import DataWeightingConfig, MultiObjectiveConfig, MultiObjectiveTrainer
from paretune.training.arguments import (
    NEUTRAL,
    NOT_APPLYING,
    REFUSED,
    field_table,
    lasting,
)

# Where the trained weights, or how many there are of something, show that a value matters.
CHANGES_WEIGHTS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
    "max_steps": 5,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    "optim": "sgd",
    "weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 0.1,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1e-3,
    "bf16": True,
    "seed": 7,
    "data_seed": 7,
    "dataloader_drop_last": True,
    "train_sampling_strategy": "sequential",
}
CHANGES_WEIGHTS_WITH: dict[str, tuple[dict[str, Any], Any]] = {
    "lr_scheduler_kwargs": ({"lr_scheduler_type": "cosine"}, {"num_cycles": 1.5}),
    "optim_args": ({"optim": "rmsprop"}, "alpha=0.5"),
}
# What these do is seen elsewhere: in files, logs, memory, times, or on other machines.
ELSEWHERE = {
    "files": "output_dir save_strategy save_steps save_total_limit save_only_model "
    "save_on_each_node enable_jit_checkpoint",
    "logs": "logging_strategy logging_steps logging_first_step log_on_each_node log_level "
    "log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id "
    "trackio_static_space_id include_num_input_tokens_seen skip_memory_metrics debug",
    "evaluations": "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size "
    "load_best_model_at_end metric_for_best_model greater_is_better",
    "memory and speed": "activation_checkpointing activation_checkpointing_kwargs "
    "gradient_checkpointing gradient_checkpointing_kwargs dataloader_num_workers "
    "dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context dataloader_in_order",
    "devices": "fp16 tf32 use_cpu ddp_backend ddp_timeout full_determinism",
    "optimisers that are not installed": "optim_target_modules",
    "resumed runs": "restore_callback_states_from_checkpoint",
}
REFUSED_VALUES: dict[str, Any] = {
    "average_tokens_across_devices": False,
    "eval_do_concat_batches": False,
    "hub_strategy": "end",
    "accelerator_config": {"split_batches": True},
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "liger_kernel_config": {"rope": True},
    "include_for_metrics": ["inputs"],
    "label_names": ["labels"],
    "length_column_name": "long",
    "torch_empty_cache_steps": 3,
    "eval_accumulation_steps": 2,
    "ddp_bucket_cap_mb": 25,
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "fsdp_config": {"min_num_params": 1},
    "deepspeed": {"zero_optimization": {"stage": 2}},
    "hub_token": "secret",
    "hub_model_id": "someone/model",
    "hub_revision": "main",
    "resume_from_checkpoint": "/nope",
    "fsdp": "full_shard",
    "parallelism_config": "any",
}


def inherited() -> set[str]:
    return {field.name for field in fields(TrainingArguments) if field.init}


def test_every_inherited_field_is_accounted_for() -> None:
    elsewhere = {name for names in ELSEWHERE.values() for name in names.split()}
    groups = [REFUSED, NOT_APPLYING, CHANGES_WEIGHTS, CHANGES_WEIGHTS_WITH, elsewhere]
    known = [name for group in groups for name in group]
    assert sorted(known) == sorted(set(known))
    assert set(known) == inherited()
    own = {"preference", "reference_cache", "max_nonfinite_steps", "packing", "tokens_per_batch"}
    own |= {"model_init_kwargs", "chat_template_kwargs"}
    assert set(NEUTRAL) - own <= inherited()


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_without_effect_are_refused(name: str) -> None:
    value = REFUSED_VALUES.get(name, True)
    with pytest.raises(InputError, match=f"^{name} does not apply to MultiObjectiveConfig: "):
        MultiObjectiveConfig(use_cpu=True, **{name: value})


_KEPT: dict[str, torch.Tensor] = {}


@pytest.fixture
def weights(tokenizer: Any, tiny_lora: Any, random_pairs: Any, tmp_path: Path) -> Any:
    """Of trainings that differ in the arguments given."""

    def train(**options: Any) -> torch.Tensor:
        key = repr(sorted(options.items()))
        if key not in _KEPT:
            settings: dict[str, Any] = {
                "output_dir": str(tmp_path),
                "preference": {"one": 0.8, "two": 0.2},
                "learning_rate": 1e-2,
                "num_train_epochs": 2,
                "per_device_train_batch_size": 3,
                "save_strategy": "no",
                "disable_tqdm": True,
                "use_cpu": True,
            }
            args = MultiObjectiveConfig(**{**settings, **options})
            model = tiny_lora(target_modules=["q_proj"])
            rows = random_pairs(n=8)
            MultiObjectiveTrainer(model, args, rows, processing_class=tokenizer).train()
            trained = (p.detach().flatten() for p in model.parameters() if p.requires_grad)
            _KEPT[key] = torch.cat(list(trained))
        return _KEPT[key]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CHANGES_WEIGHTS, *CHANGES_WEIGHTS_WITH])
def test_arguments_change_what_is_trained(weights: Any, name: str) -> None:
    others, value = CHANGES_WEIGHTS_WITH.get(name, ({}, CHANGES_WEIGHTS.get(name)))
    assert not torch.equal(weights(**others), weights(**others, **{name: value}))


def words() -> list[tuple[type[Any], str]]:
    kinds: list[type[Any]] = [ClampConfig, DataWeightingConfig]
    return [
        (kind, name)
        for kind in kinds
        for name, hint in get_type_hints(kind).items()
        if get_origin(hint) is Literal
    ]


@pytest.mark.parametrize(("kind", "name"), words())
def test_misspelt_words_are_named(kind: Any, name: str) -> None:
    word = get_args(get_type_hints(kind)[name])[-1]
    with pytest.raises(InputError, match=f"{word[:-1]}.*did you mean {word!r}"):
        kind(use_cpu=True, **{name: word[:-1]})
    with pytest.raises(InputError, match=name):
        kind(use_cpu=True, **{name: 3})


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", True, None, [1]])
def test_numbers_are_numbers(value: Any) -> None:
    for kind in (ClampConfig, DataWeightingConfig):
        for name, hint in get_type_hints(kind).items():
            if hint in (int, float):
                with pytest.raises(InputError, match=name):
                    kind(use_cpu=True, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1.0),
        ("weight_decay", -0.1),
        ("adam_beta1", 2.0),
        ("adam_beta2", 1.0),
        ("adam_epsilon", 0.0),
        ("max_grad_norm", -1.0),
        ("seed", -1),
        ("seed", 2**32),
        ("data_seed", -1),
        ("save_steps", 0),
        ("logging_steps", 0),
        ("eval_steps", 0),
        ("max_steps", 0),
        ("max_steps", -3),
        ("num_train_epochs", 0),
        ("dataloader_num_workers", -3),
        ("save_total_limit", 0),
        ("max_length", 1),
        ("warmup_steps", -1),
        ("beta", 0.0),
        ("gamma", math.nan),
        ("nll_weight", -1.0),
        ("mu", -1.0),
        ("loss_ema", 1.0),
        ("early_stopping_patience", -1),
        ("gradient_accumulation_steps", 1.5),
        ("ideal", {"one": math.inf}),
        ("ideal", {"one": "0"}),
        ("nadir", [1.0]),
        ("preference", {"one": True, "two": False}),
        ("preference", {"one": "0.5", "two": "0.5"}),
        ("preference", {"one": math.nan, "two": 1.0}),
        ("preference", "one"),
        ("train_sampling_strategy", "group_by_length"),
        ("dataloader_persistent_workers", True),
        ("optim", "adamw_trch"),
        ("lr_scheduler_type", "constnat"),
        ("fp16", True),
        ("bf16", "yes"),
    ],
)
def test_values_out_of_range_are_one_sentence(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        ClampConfig(use_cpu=True, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", ["eval_one_accuracy", "two_margin", "eval_chebyshev"])
def test_the_best_is_told_by_what_a_measure_means(metric: str) -> None:
    args = MultiObjectiveConfig(use_cpu=True, metric_for_best_model=metric)
    assert args.greater_is_better == (metric != "eval_chebyshev")


def test_a_copy_of_a_configuration_is_taken() -> None:

    args = ClampConfig(
        use_cpu=True, load_best_model_at_end=True, eval_strategy="steps", eval_steps=5, save_steps=5
    )
    assert replace(args, learning_rate=0.1).metric_for_best_model == "eval_chebyshev"


def test_what_a_resumed_run_must_share() -> None:
    linear = lasting(ClampConfig(use_cpu=True, max_steps=5))
    constant = lasting(ClampConfig(use_cpu=True, max_steps=5, lr_scheduler_type="constant"))
    assert "max_steps" in linear
    assert "max_steps" not in constant
    assert {"learning_rate", "seed", "mu", "beta"} <= set(constant)
    assert "output_dir" not in linear
    assert "eval_steps" in lasting(
        ClampConfig(use_cpu=True, early_stopping_patience=1, eval_strategy="steps")
    )


def test_the_page_has_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "guides" / "training-arguments.md"
    assert field_table() in page.read_text(encoding="utf-8")
