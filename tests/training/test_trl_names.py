"""What scripts for TRL say: its names get ours told, and its ways of giving things work."""

import dataclasses
from typing import Any

import numpy
import pytest
from transformers import AutoTokenizer, HfArgumentParser
from trl import DPOConfig, TrlParser

from paretune import ClampConfig, ClampTrainer, ConditionedTrainer, InputError
from paretune.training import DataWeightingConfig, DataWeightingTrainer
from paretune.training.trl_names import FIELDS

OURS = {field.name for field in dataclasses.fields(ClampConfig)}
THEIRS = [field.name for field in dataclasses.fields(DPOConfig) if field.name not in OURS]


@pytest.mark.parametrize("name", [*THEIRS, "max_prompt_length", "reference_free"])
def test_fields_of_trl_are_told_ours(name: str) -> None:
    assert name in FIELDS
    with pytest.raises(InputError, match=f"ClampConfig has no argument '{name}': .+"):
        ClampConfig(**{name: None})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ref_model_init_kwargs", "the reference stays fixed"),
        ("label_pad_token_id", "its own batches"),
        ("eos_token", "set it on the tokenizer"),
        ("logging_dir", "TENSORBOARD_LOGGING_DIR"),
        ("warmup_ratio", "warmup_steps, below 1"),
        ("use_liger_loss", "no log-probabilities"),
    ],
)
def test_fields_of_former_releases_are_told_ours(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"ClampConfig has no argument '{name}': .*{hint}"):
        ClampConfig(**{name: None})


@pytest.mark.parametrize("name", ["model_init_kwargs", "preference", "beta", "max_length", "mu"])
def test_fields_given_to_the_trainer_are_told_their_place(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}': it is .* args=ClampConfig\({name}=\.\.\.\)"):
        ClampTrainer(model="none", args=None, train_dataset={}, **{name: None})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'max_prompt_length': there is max_length"):
        ClampTrainer(model="none", args=None, train_dataset={}, max_prompt_length=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("trainer", [ClampTrainer, ConditionedTrainer, DataWeightingTrainer])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ref_model", "the reference is the model as given"),
        ("tokenizer", "it is called processing_class"),
        ("compute_metrics", "callbacks"),
        ("data_collator", "its own batches"),
        ("quantization_config", "model_init_kwargs"),
        ("peft_confg", "did you mean 'peft_config'?"),
    ],
)
def test_arguments_of_other_trainers_are_told_ours(trainer: Any, name: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"{trainer.__name__} has no argument '{name}': .*{hint}"):
        trainer(model="none", args=None, train_dataset={}, **{name: None})


def test_misspelt_fields_are_told_the_nearest() -> None:
    with pytest.raises(
        InputError, match="no argument 'learning_rte': did you mean 'learning_rate'"
    ):
        DataWeightingConfig(learning_rte=1.0)


def test_the_configuration_of_another_trainer(tmp_path: Any) -> None:
    args = DPOConfig(output_dir=str(tmp_path), bf16=False)
    with pytest.raises(InputError, match=r"args is a DPOConfig: give .* such as ClampConfig"):
        ClampTrainer("none", args, {"a": []})


P = {"helpful": 0.3, "harmless": 0.7}
WAYS: list[Any] = [
    P,
    [0.3, 0.7],
    (0.3, 0.7),
    numpy.array([0.3, 0.7]),
    '{"harmless": 0.7, "helpful": 0.3}',
    "[0.3, 0.7]",
    "helpful=0.3,harmless=0.7",
    "harmless=0.7 helpful=0.3",
]


@pytest.mark.parametrize("given", WAYS, ids=str)
def test_ways_to_give_a_preference(given: Any, tmp_path: Any) -> None:
    args = ClampConfig(output_dir=str(tmp_path), preference=given)
    found = args.checked_preference({"helpful": [], "harmless": []})
    assert dict(found) == P
    assert dataclasses.replace(args).checked_preference({"helpful": [], "harmless": []}) == found


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
@pytest.mark.parametrize("text", [way for way in WAYS if isinstance(way, str)])
def test_a_preference_as_a_flag(parser: Any, text: str, tmp_path: Any) -> None:
    line = ["--output_dir", str(tmp_path), "--preference", text]
    line += ["--model_init_kwargs", '{"dtype": "float32"}', "--loss", "ipo", "--mu", "3"]
    found = parser(ClampConfig).parse_args_into_dataclasses(line)
    args = found[0]
    assert dict(args.checked_preference({"helpful": [], "harmless": []})) == P
    assert args.model_init_kwargs == {"dtype": "float32"}
    assert args.mu == 3.0


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([0.3, 0.3, 0.4], "has 3 weights, and the training data has 2 objectives: a, b"),
        ("0.3", "write it as JSON"),
        ("{a: 1}", "write it as JSON"),
        ("a=0.5,a=0.5", "names an objective twice"),
        (["x", 1], "'1' must be a finite number"),
        (0.5, "a weight for each objective, not 0.5"),
        ([0.5, 0.9], "must sum to 1"),
    ],
)
def test_preferences_that_are_none(given: Any, sentence: str, tmp_path: Any) -> None:
    def read() -> None:
        args = ClampConfig(output_dir=str(tmp_path), preference=given)
        args.checked_preference({"a": [], "b": []})

    with pytest.raises(InputError, match=sentence):
        read()


@pytest.fixture
def folder(tiny_llama: Any, tokenizer: Any, tmp_path: Any) -> Any:
    path = tmp_path / "model"
    tiny_llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_keywords_of_the_model_and_its_template(
    folder: Any, random_pairs: Any, tmp_path: Any
) -> None:
    given = AutoTokenizer.from_pretrained(folder)
    given.chat_template = "{% if polite %}please {% endif %}" + given.chat_template
    options: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "preference": [0.5, 0.5],
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "eager"},
        "chat_template_kwargs": {"polite": True},
    }
    before = given.chat_template
    pairs = random_pairs(n=2)
    trainer = ClampTrainer(str(folder), ClampConfig(**options), pairs, processing_class=given)
    assert str(trainer.model.dtype) == "torch.bfloat16"
    assert trainer.model.config._attn_implementation == "eager"
    text = given.decode(trainer._train_pairs.sequences[0].input_ids)
    assert text.startswith("please ")
    assert given.chat_template == before
    with pytest.raises(InputError, match="cannot be loaded with no_such_thing"):
        ClampTrainer(
            str(folder),
            ClampConfig(**options | {"model_init_kwargs": {"no_such_thing": 1}}),
            pairs,
        )
    wrong = ClampConfig(**options | {"chat_template_kwargs": {"polit": True}})
    with pytest.raises(InputError, match=r"chat_template_kwargs: .* no option 'polit'"):
        ClampTrainer(str(folder), wrong, pairs, processing_class=given)
    with pytest.raises(InputError, match="for a model given by name"):
        ClampTrainer(trainer.model, ClampConfig(**options), pairs, processing_class=given)
