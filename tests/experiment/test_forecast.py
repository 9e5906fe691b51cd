"""What a recipe needs on paper: parameters exactly, memory by its parts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from paretune import ConditionedConfig, ConditionedTrainer
from paretune.errors import InputError
from paretune.experiment import forecast
from paretune.experiment.forecast import Precision, Rate, Shape, Tokens, memory, shape_of
from paretune.recipes import shipped_recipes
from paretune.recipes.schema import Lora, Model
from paretune.runs.needs import Needs, Work, needs, size

# Of the models' cards and files; adapters of rank 8 by hand: 8 (in + out) for every projection.
PUBLISHED = {
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen3-8B": 8_190_735_360,
}


@pytest.mark.slow  # seconds each: the modules are made, without numbers
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name: str) -> None:
    shape = shape_of(Model(name=name), Lora(r=8))
    assert shape.base == PUBLISHED[name]
    h, i, q, kv = shape.hidden, shape.inner, shape.query, shape.kv
    sides = (h + q) + 2 * (h + kv) + (q + h) + 3 * (h + i)
    assert shape.trained == 8 * sides * shape.layers
    assert shape.linear == shape.layers * (2 * h * q + 2 * h * kv + 3 * h * i)


def test_a_model_in_a_folder(tmp_path: Path, tiny_llama: Any) -> None:
    model = tiny_llama()
    model.config.save_pretrained(tmp_path)  # no weights
    shape = shape_of(Model(name=str(tmp_path)), None)
    assert shape.base == shape.trained == sum(p.numel() for p in model.parameters())
    with pytest.raises(InputError, match="known without the hub are"):
        shape_of(Model(name="nobody/nothing"), None)


def test_memory_by_its_parts() -> None:
    shape = Shape("", 1000, 800, 10, 4, 8, 4, 2, 3, 100, 2, False)
    wide = Precision(4.0, 4.0, 4.0, mixed=False)
    found = memory(shape, wide, objectives=5, tokens=7)
    assert (found.weights, found.optimiser, found.bank) == (4000, 80, 200)
    assert found.total == sum(vars(found).values())
    assert found.sharded(4) == found.total - 3000
    full = Shape("", 1000, 800, 1000, 4, 8, 4, 2, 3, 100, 0, False)
    assert memory(full, wide, 5, 7).bank == 20_000
    assert memory(full, wide, 5, 7, layerwise=True).bank == 4 * (5 * 400 - 1000)
    assert memory(full, wide, 2, 7, layerwise=True).bank == 0
    more = memory(shape, wide, objectives=5, tokens=14)
    assert more.activations == 2 * found.activations
    assert memory(shape, wide, 5, 7, checkpointing=True).activations < found.activations
    four = Precision.of(Model(name="x", dtype="bfloat16", quantization="4bit"))
    assert memory(shape, four, 5, 7).weights == 800 * 0.5625 + 200 * 2


@pytest.mark.slow
@pytest.mark.parametrize(("inner", "gradients"), [("pwg", 2), ("clamp", 6)])
def test_the_steerable_adapter(
    inner: Any, gradients: int, tmp_path: Path, tiny_llama: Any, tokenizer: Any, random_pairs: Any
) -> None:
    """Its parameters and bank are those that its trainer has."""
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = ConditionedTrainer(
        tiny_llama(),
        ConditionedConfig(
            str(tmp_path / "run"), inner=inner, preference_groups=3, use_cpu=True, max_steps=1
        ),
        random_pairs(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    method = f"method={{name: conditioned, inner: {inner}, preference_groups: 3}}"
    given = [f"model.name={tmp_path / 'model'}", "model.dtype=float32", "lora={r: 2}"]
    given += ["sweep.preferences=[[0, 1]]", "train={max_steps: 1}"]  # all p are trained
    found = needs("demo_sweep", [*given, method])
    (work,) = found.work
    assert (work.objectives, work.trainings) == (gradients, 1)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert found.shape is not None
    assert found.shape.trained == trained
    assert work.memory is not None
    assert work.memory.bank == sum(block.nbytes for block in trainer.engine.bank.blocks)
    assert work.memory.optimiser == 8 * trained


def test_sizes_for_people() -> None:
    assert [size(each) for each in (2e3, 3.14e6, 1.5e9, 2e12)] == [
        "2 kB",
        "3.14 MB",
        "1.5 GB",
        "2 TB",
    ]


SHIPPED = [name for kind in ("sweep", "compare", "weigh") for name in shipped_recipes(kind)]


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", never)
    before = torch.get_rng_state()
    found = needs(name)
    assert torch.equal(before, torch.get_rng_state())
    assert found.points
    assert bool(found.work) == (not name.startswith(("weigh_mnist", "weigh_reward")))
    if not found.work:
        return
    for table in found.tables():
        assert table.to_markdown()
    for each in found.work:
        if each.memory is not None:
            assert each.memory.total > 1e7
    exact = {each.tokens.exact for each in found.work}
    assert exact == {True} or "the most there can be" in " ".join(found.remarks)


def test_a_task_without_a_language_model() -> None:
    found = needs("weigh_mnist")
    assert (found.shape, found.work) == (None, [])
    assert "trains no language model" in found.remarks[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
def test_operations_are_those_that_torch_counts(
    tiny_llama: Any, tiny_lora: Any, tmp_path: Path, rank: int, checkpointing: bool
) -> None:
    """Of the products with weights; those inside attention are not in the formula."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_lora(r=rank) if rank else tiny_llama()
    tiny_llama().config.save_pretrained(tmp_path)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = torch.zeros(3, 5, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model.train()(input_ids=tokens, use_cache=False).logits.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if str(op) in ("aten.mm", "aten.addmm"))
    shape = shape_of(Model(name=str(tmp_path)), Lora(r=rank) if rank else None)
    assert products / 15 == pytest.approx(forecast.token_flops(shape, checkpointing), rel=0.1)


def test_time_from_a_rate() -> None:
    shape = Shape("", 1000, 800, 10, 4, 8, 4, 2, 3, 100, 2, False)
    work = [Work("clamp", 2, 3, 50, Tokens(10, 40.0, None, exact=False), None)]
    found = Needs("r", "m", shape, 3, work, 0)
    (row,) = found.times(Rate(tokens=20.0), gpus=8).rows
    assert row == ["clamp", 2.0, 100 / 3600, 300 / 3600, 8 * 864]
    rate = Rate(flops=20.0 * forecast.token_flops(shape))
    assert found.times(rate, gpus=8).rows[0] == pytest.approx(row)


def test_tokens_of_packed_batches(tmp_path: Path) -> None:
    from paretune.data.tokenization import PairIndex, TokenizedPairs, TokenSequence

    sequences = [TokenSequence((1, 2, 3, 4, 5), 3), TokenSequence((1, 2, 3, 6), 3)]
    index = PairIndex([0], [1], [0], [1.0])
    pairs = TokenizedPairs(sequences, {"a": index, "b": index})
    found = forecast.count_tokens(pairs, ["a", "b"], "auto", 4, 2, 0)
    # The prompt but its last token once, and as many as each response has.
    assert (found.peak, found.step, found.rows) == (2 + 2 + 1, 10, 1)
    bound = forecast.bound_tokens(2, 4, 2, 5)
    assert (bound.peak, bound.step, bound.exact) == (80, 160, False)
    assert forecast.steps_of({"num_train_epochs": 2}, 10, 4) == 6
    assert forecast.steps_of({"max_steps": 7}, None, 4) == 7
    assert forecast.steps_of({}, None, 4) is None


@pytest.mark.parametrize("name", ["demo", "demo_sweep", "demo_compare"])
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("loss_type=sigmoid", "'train.loss_type' .* did you mean 'loss'"),
        ("learning_rte=1", "did you mean 'train.learning_rate'"),
        ("max_steps=x", "'train.max_steps' is 'x', but it must be a whole number"),
        ("push_to_hub=true", "paretune push RUN"),
    ],
)
def test_a_train_section_that_cannot_be_is_not_planned(
    name: str, override: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        needs(name, [f"train.{override}"])
