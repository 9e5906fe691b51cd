"""One-step lookahead: its derivative, the gradients it is made of, and what it learns."""

import copy
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from paretune import DataWeightingConfig, DataWeightingTrainer, InputError
from paretune.data_weighting.mixture_cell import weight_intervals
from paretune.moo.bilevel.lookahead import Lookahead
from paretune.moo.bilevel.problem import StochasticBilevelProblem
from paretune.moo.preference import Preference
from paretune.training.bilevel_objectives import LanguageModelObjectives
from paretune.training.leak_watch import LeakWatch
from paretune.training.lookahead import RunningMean
from paretune.training.preconditioner import Preconditioner
from paretune.training.responses import Batches, Part, hold_out
from paretune.training.set_weights import SetWeights

ASKED = ["red", "blue", "green", "cat", "dog", "bird", "milk", "bread", "salt", "rain"]


def answers(words: Any, n: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows that answer each question with a word of its own, or with one for all."""
    said = [words] * n if isinstance(words, str) else words
    return [
        {
            "prompt": [{"role": "user", "content": f"what is {ASKED[(first + i) % 10]}"}],
            "completion": [{"role": "assistant", "content": f"{said[i]} {said[i]}"}],
        }
        for i in range(n)
    ]


SETS = {"moon": answers("moon", 6), "star": answers("star", 5)}
CRITERIA = {"one": answers("moon", 4, 6), "two": answers("star", 4, 6)}


@pytest.fixture
def weigher(tmp_path: Path, tiny_lora: Any, tokenizer: Any) -> Any:
    """A factory of small trainers."""

    def make(
        preference: Any = None,
        train: Any = SETS,
        validation: Any = CRITERIA,
        model: Any = None,
        folder: str = "run",
        callbacks: Any = None,
        **options: Any,
    ) -> DataWeightingTrainer:
        settings: dict[str, Any] = {
            "max_steps": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 3,
            "max_grad_norm": 0.0,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        args = DataWeightingConfig(
            output_dir=str(tmp_path / folder),
            preference=preference or {"one": 0.5, "two": 0.5},
            **{**settings, **options},
        )
        return DataWeightingTrainer(
            tiny_lora() if model is None else model,
            args,
            train,
            validation,
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


def adapter(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def step_logs(trainer: Any) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "learning_rate" in row]


OPTIMISERS = {
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr), 1.0),
    "adamw": (lambda p, lr: torch.optim.AdamW(p, lr, (0.9, 1 - 1e-7), weight_decay=1e-3), 0.1),
    "rmsprop": (lambda p, lr: torch.optim.RMSprop(p, lr, 1 - 1e-7), 1.0),
    "adagrad": (lambda p, lr: torch.optim.Adagrad(p, lr), 1.0),
}
"""Each with the share of a gradient's movement that the step itself makes, momentum the rest."""


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMISERS)
def test_products_are_the_derivative_of_the_step_taken(weigher: Any, name: str) -> None:
    trainer = weigher(model=_double(weigher))
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    steps = trainer.steps
    steps.begin()
    steps.add(batch)
    steps.engine.bank.finish()
    parameters = steps.engine.bank.parameters
    make, share = OPTIMISERS[name]
    rate = 1e-3 / share  # norms of the model are computed in float32
    optimizer = make(parameters, rate)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:  # as after a long training: one step changes squares little
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():
        for key in ("exp_avg_sq", "square_avg", "sum"):
            if key in state:
                state[key].copy_(torch.rand(state[key].shape, generator=generator) + 1.0)
        if "step" in state:
            state["step"].fill_(1e8)
    start = [p.detach().clone() for p in parameters]
    states = copy.deepcopy(optimizer.state_dict())
    criteria = torch.tensor([0.3, 0.7], dtype=torch.float64)
    draws = {part: _rows(trainer, batch, part) for part in map(Part, *_parts(trainer))}

    def value(weights: Any) -> float:
        for parameter, place in zip(parameters, start, strict=True):
            parameter.data.copy_(place)
        optimizer.load_state_dict(copy.deepcopy(states))
        steps.engine.bank.combine(torch.tensor([*weights, 0.0, 0.0], dtype=torch.float64))
        optimizer.step()
        losses = [_exact(trainer.model, draws[Part("criterion", n)]) for n in ("one", "two")]
        return float(sum(c * f for c, f in zip(criteria, losses, strict=True)))

    rows = [block.view(len(block), -1) for block in steps.engine.bank.blocks]
    steps._sets.add([each[:2] for each in rows])
    steps._target.add([criteria.to(each) @ each[2:] for each in rows])
    found, _ = steps.products(Preconditioner(optimizer))
    differences = []
    for n in range(2):
        up, down = [0.5, 0.5], [0.5, 0.5]
        up[n] += 0.4
        down[n] -= 0.4
        differences.append((value(up) - value(down)) / 0.8)
    expected = -rate * share * found
    error = (torch.tensor(differences, dtype=torch.float64) - expected).abs().max()
    assert float(error) < 1e-2 * float(expected.abs().max())


def _double(weigher: Any) -> Any:
    return weigher(folder="double").model.double()


def _parts(trainer: Any) -> Any:
    kinds = ["set"] * 2 + ["criterion"] * 2
    return kinds, [*trainer.sets, *trainer.criteria]


@torch.no_grad()
def _exact(model: Any, rows: Any) -> float:
    """The mean loss in float64, from the logits."""
    ids, mask = rows["input_ids"], rows["completion_mask"][:, 1:]
    logits = model(input_ids=ids, attention_mask=rows["attention_mask"]).logits[:, :-1]
    logps = logits.double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return float(-((logps * mask).sum(1) / mask.sum(1)).mean())


def _rows(trainer: Any, batch: Any, part: Part) -> dict[str, torch.Tensor]:
    rows = batch["pairs"][f"{part.kind} {part.name}"]["chosen"]
    names = ("input_ids", "attention_mask", "completion_mask", "lengths")
    return {name: batch[name][rows] for name in names}


def test_gradients_are_those_of_each_part(weigher: Any) -> None:
    trainer = weigher()
    assert trainer.steps.engine.method == "one_pass"
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.steps.begin()
    trainer.steps.add(batch)
    bank = trainer.steps.engine.bank
    bank.finish()
    levels = LanguageModelObjectives(trainer.model, in_place=False)
    y = levels.vector()
    for m, part in enumerate(map(Part, *_parts(trainer))):
        draws = [_rows(trainer, batch, part)]
        loss, gradient = levels.in_place(y, draws, 3, gradient=True)
        found = torch.cat([block[m].flatten() for block in bank.blocks])
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
        assert float(bank.losses[m]) == pytest.approx(float(loss), rel=1e-5)


def test_y_takes_the_optimisers_step_on_the_weighted_sets_alone(
    weigher: Any, tiny_lora: Any
) -> None:
    batches: list[Any] = []

    class Seen(TrainerCallback):
        """Keeps the batches and the gradients that y's optimiser gets."""

        trainer: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.rows: list[Any] = []
            add = self.trainer.steps.add
            self.trainer.steps.add = lambda rows: [self.rows.append(rows), add(rows)]

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            grad = [p.grad.clone() for p in self.trainer.model.parameters() if p.requires_grad]
            batches.append(torch.cat([g.flatten() for g in grad]))

    ends = []
    for words in ("moon", "cold"):
        seen = Seen()
        validation = {"one": answers(words, 4, 6), "two": CRITERIA["two"]}
        trainer = weigher(max_steps=1, validation=validation, callbacks=[seen], folder=words)
        seen.trainer = trainer
        trainer.train()
        ends.append(adapter(trainer))
    torch.testing.assert_close(batches[0], batches[1], rtol=1e-4, atol=1e-6)
    levels = LanguageModelObjectives(tiny_lora(), in_place=False)
    (rows,) = seen.rows
    y = levels.vector()
    gradients = [
        levels.in_place(y, [_rows(trainer, rows, Part("set", n))], 3, gradient=True)[1]
        for n in SETS
    ]
    torch.testing.assert_close(batches[0], sum(gradients) / 2, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("criteria_weights", ["chebyshev", "clamp"])
def test_corrupted_sets_lose_weight_and_matched_ones_follow_the_preference(
    weigher: Any, criteria_weights: str
) -> None:
    wrong = ["cold", "write", "eat", "thanks", "walk", "sorry"]
    train = {**SETS, "noise": answers(wrong, 6)}
    weights = []
    for share in (0.9, 0.5, 0.1):
        trainer = weigher(
            {"one": share, "two": 1 - share},
            train=train,
            max_steps=30,
            x_learning_rate=0.1,
            criteria_weights=criteria_weights,
            folder=f"run-{share}",
        )
        trainer.train()
        weights.append(trainer.set_weights)
    assert all(found["noise"] < 0.15 for found in weights), weights
    assert weights[0]["moon"] > 0.6
    assert weights[2]["star"] > 0.6
    assert weights[0]["moon"] > weights[1]["moon"] > weights[2]["moon"]


class _Kill(Exception):
    """Stands for a killed process."""


class _KillAt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise _Kill


@pytest.mark.slow
def test_resume_is_bit_exact(weigher: Any, tiny_lora: Any) -> None:
    def make(folder: str, **more: Any) -> Any:
        return weigher(
            folder=folder,
            model=tiny_lora(dropout=0.1),
            max_steps=5,
            save_strategy="steps",
            save_steps=2,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            **more,
        )

    whole = make("whole")
    whole.train()
    with pytest.raises(_Kill):
        make("cut", callbacks=[_KillAt()]).train()
    resumed = make("cut")
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(adapter(resumed), adapter(whole), rtol=0, atol=0)
    torch.testing.assert_close(resumed.x, whole.x, rtol=0, atol=0)
    found, expected = resumed.steps.state_dict(), whole.steps.state_dict()
    for name in ("set_gradients", "criteria_gradient"):
        assert torch.equal(found.pop(name), expected.pop(name))
    assert found == expected


def test_everything_is_logged(weigher: Any) -> None:
    trainer = weigher(max_steps=1)
    trainer.train()
    (first,) = step_logs(trainer)
    assert {
        *(f"{key}/{name}" for name in SETS for key in ("set_weight", "alignment")),
        *(f"train/{name}/loss" for name in SETS),
        *(f"validation/{name}/loss" for name in CRITERIA),
        *(f"omega/{name}" for name in CRITERIA),
        "time/step",
    } <= set(first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::paretune.moo.bilevel.oracle.NonConvexLowerLevelWarning")
def test_the_papers_penalty_trains(weigher: Any) -> None:
    trainer = weigher(method="wc_penalty", max_steps=2)
    trainer.train()
    assert trainer.steps.multipliers.nu is None
    assert trainer.steps.multipliers.u == pytest.approx(2**0.25)
    assert not torch.equal(trainer.x, torch.zeros_like(trainer.x))


def test_options_of_another_method_are_named(weigher: Any) -> None:
    with pytest.raises(InputError, match="u has no effect with method='lookahead'"):
        weigher(u=1.0)
    with pytest.raises(InputError, match="criteria_weights has no effect"):
        weigher(method="wc_penalty", criteria_weights="clamp")
    with pytest.raises(InputError, match="mu is CLAMP's"):
        weigher(mu=3.0)


def test_half_of_the_validation_rows_is_reported(weigher: Any) -> None:
    trainer = weigher(max_steps=1)
    rows = trainer.train_dataset.rows.parts
    for name in CRITERIA:
        driving = set(rows[Part("criterion", name)])
        reported = set(trainer.eval_dataset[Part("criterion", name)])
        assert len(driving) == len(reported) == 2
        assert not driving & reported
    prompts = [
        {s.input_ids[: s.prompt_length] for s in trainer.eval_dataset[Part("criterion", name)]}
        for name in CRITERIA
    ]
    assert prompts[0] == prompts[1], "a prompt is on one side for all criteria"
    with pytest.raises(InputError, match="'one' has one row"):
        weigher(validation={**CRITERIA, "one": answers("moon", 1)})
    part = Part("criterion", "one")
    whole = {part: trainer.eval_dataset[part]}
    assert hold_out(whole, 0.0, 0) == (whole, whole)


def test_signs_of_training_on_validation_rows_are_told_once(caplog: Any) -> None:
    watch = LeakWatch()
    with caplog.at_level(logging.WARNING):
        for step in range(60):
            watch.see(4.0, {"one": 4.0 * 0.9**step, "two": 4.0}, 2.5)
            held = copy.deepcopy(watch.state_dict())
            watch = LeakWatch()
            watch.load_state_dict(held)
    assert [r.message[:40] for r in caplog.records] == [
        "The loss on the validation rows of 'one'",
        "‖∇_y g‖ does not fall (from 2.5 to 2.5):",
    ]
    caplog.clear()
    calm = LeakWatch()
    for step in range(60):
        calm.see(4.0 * 0.95**step, {"one": 4.0 * 0.95**step}, 2.5 * 0.9**step)
    assert not caplog.records


def test_polish_says_where_it_did_not_help(weigher: Any, caplog: Any) -> None:
    trainer = weigher(max_steps=1)
    with caplog.at_level(logging.WARNING):
        report = trainer.polish(steps=0)
    assert not report.lowered
    assert "did not lower" in caplog.text


def test_weights_start_and_stay_where_they_are_told(weigher: Any) -> None:
    weights = SetWeights("abc", 0.5, {"a": 0.6, "b": 0.3, "c": 0.1}, {"a": (0.2, 0.7)})
    assert weights.by_name() == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})
    for _ in range(20):
        weights.move(torch.tensor([-1.0, 0.5, 0.5]))
    assert weights.by_name() == pytest.approx({"a": 0.7, "b": 0.225, "c": 0.075}, abs=1e-6)
    for _ in range(80):
        weights.move(torch.tensor([1.0, -0.5, 0.5]))
    assert weights.by_name()["a"] == pytest.approx(0.2)
    pulled = SetWeights("ab", 0.1, {"a": 0.9, "b": 0.1}, entropy=1.0)
    for _ in range(200):
        pulled.move(torch.zeros(2))
    assert pulled.by_name()["a"] == pytest.approx(0.5, abs=1e-2)
    pulled = SetWeights("ab", 0.1, {"a": 0.9, "b": 0.1}, entropy=1.0)
    for _ in range(200):
        pulled.follow(torch.zeros(2))
    assert pulled.by_name()["a"] == pytest.approx(0.5, abs=1e-2)
    with pytest.raises(InputError, match="names 'sun', which is no training set"):
        weigher(initial_weights={"sun": 1.0})
    with pytest.raises(InputError, match="adding up to one"):
        weigher(initial_weights={"moon": 0.9, "star": 0.9})
    with pytest.raises(InputError, match="weight_bounds must be pairs"):
        weigher(weight_bounds={"moon": [0.0, 0.1], "star": [0.0, 0.1]})


def test_a_weight_near_the_end_comes_back_as_fast_as_it_went() -> None:
    """The natural gradient's logits do not depend on where they are, so Adam's steps are those of
    any three numbers; only differences of slopes count."""
    draw = torch.Generator().manual_seed(0)
    slopes = torch.randn(70, 3, generator=draw, dtype=torch.float64)
    slopes += torch.tensor([2.0, -2.0, 0.0]) * torch.where(torch.arange(70) < 20, 1, -1)[:, None]
    weights = SetWeights("abc", 0.3)
    plain = torch.zeros(3, dtype=torch.float64)
    adam = torch.optim.Adam([plain], lr=0.3)
    path = []
    for slope in slopes:
        weights.follow(slope + 7.0)
        plain.grad = slope - slope.mean()
        adam.step()
        torch.testing.assert_close(weights.values, plain.softmax(0))
        path.append(weights.by_name())
    assert path[19]["a"] < 1e-3
    assert path[69]["a"] > 0.5


def test_held_weights_are_plain_training(weigher: Any) -> None:
    trainer = weigher(x_learning_rate=0.0, initial_weights='{"moon": 0.8, "star": 0.2}')
    trainer.train()
    assert trainer.set_weights == pytest.approx({"moon": 0.8, "star": 0.2})
    assert trainer.steps.engine.bank.n_objectives == 2, "no criterion is computed"


def pairs(better: str, worse: str, n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
        for row, other in zip(answers(better, n, first), answers(worse, n, first), strict=True)
    ]


@pytest.mark.slow
def test_pairs_are_weighed_by_dpo(weigher: Any) -> None:
    train = {"moon": pairs("moon", "cold", 6), "cold": pairs("cold", "moon", 6)}
    validation = {"one": pairs("moon", "cold", 4, 6), "two": pairs("moon", "star", 4, 6)}
    trainer = weigher(train=train, validation=validation, max_steps=12, x_learning_rate=0.2)
    before = trainer.evaluate()
    assert before["eval_one_loss"] == pytest.approx(math.log(2), abs=1e-4)
    trainer.train()
    assert trainer.set_weights["moon"] > 0.8
    assert trainer.evaluate()["eval_one_loss"] < 0.65
    with pytest.raises(InputError, match="polish is for likelihoods"):
        trainer.polish()
    with pytest.raises(InputError, match="for pairs use method='lookahead'"):
        weigher(train=train, validation=validation, method="wc_penalty")


def test_texts_are_rows_of_a_token_and_what_follows(weigher: Any) -> None:
    texts = {
        "moon": [{"text": "the moon is good the moon is warm"}],
        "star": [{"text": "a star a star a star"}],
    }
    wanted = {"one": [*texts["moon"], *texts["star"]], "two": [*texts["star"], *texts["moon"]]}
    trainer = weigher(train=texts, validation=wanted, max_steps=1, max_length=4)
    (long, short) = trainer._set_parts[Part("set", "moon")]
    assert (len(long.input_ids), len(short.input_ids), long.prompt_length) == (4, 4, 1)
    trainer.train()
    with pytest.raises(InputError, match="row 1 of the training set 'moon', 'text' must be text"):
        weigher(train={**texts, "moon": [{"text": " "}]}, validation=wanted)


def test_between_steps_of_x_there_is_plain_training(weigher: Any) -> None:
    ends = []
    for every in (1, 2):
        trainer = weigher(x_every=every, max_steps=2, x_learning_rate=1e-9, folder=str(every))
        trainer.train()
        ends.append(adapter(trainer))
        moves = ["alignment/moon" in row for row in step_logs(trainer)]
        assert moves == ([True, True] if every == 1 else [True, False])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
    assert trainer.steps._of_sets.method == "one_pass"


def test_the_weights_stay_while_they_are_to(weigher: Any) -> None:
    trainer = weigher(max_steps=8, x_warmup_ratio=0.25)
    trainer.train()
    moves = ["alignment/moon" in row for row in step_logs(trainer)]
    assert moves == [False, False, True, False, True, False, True, False]
    # v is estimated in the first step, not where x begins to move.
    reads = ["omega/one" in row for row in step_logs(trainer)]
    assert reads == [True, False, True, False, True, False, True, False]
    chebyshev = [0.5 * step_logs(trainer)[0][f"validation/{n}/loss"] for n in ("one", "two")]
    assert trainer.steps._v == pytest.approx(1 / abs(chebyshev[0] - chebyshev[1]), rel=1e-3)
    held, plain = weigher(x_warmup_ratio=1.0), weigher(x_learning_rate=0.0, folder="plain")
    for each in (held, plain):
        each.train()
        assert not bool(each.x.any())
    torch.testing.assert_close(adapter(held), adapter(plain), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"x_warmup_ratio is a share of the steps.* not 3"):
        weigher(x_warmup_ratio=3.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::paretune.moo.bilevel.oracle.NonConvexLowerLevelWarning")
@pytest.mark.parametrize("method", ["wc_augmented", "wc_penalty"])
def test_the_papers_methods_from_a_start_trained_on_the_sets(weigher: Any, method: str) -> None:
    """y is trained as plain training would, and the penalty is estimated where that ends."""
    plain = weigher(x_learning_rate=0.0, folder="plain", max_steps=3)
    plain.train()
    held = weigher(method=method, x_warmup_ratio=1.0, folder="held", max_steps=3)
    held.train()
    torch.testing.assert_close(adapter(held), adapter(plain), rtol=1e-3, atol=1e-4)
    assert held.steps.multipliers is None
    half = weigher(method=method, x_warmup_ratio=0.5)
    half.train()
    assert ["set_weight/moon" in row for row in step_logs(half)] == [False, False, True, True]
    assert bool(half.x.any())


def test_gradients_are_averaged_over_the_last_steps() -> None:
    mean, given = RunningMean(0.7), [torch.randn(2, 3), torch.randn(4)]
    for step in range(5):
        mean.add([each * step for each in given])
    share = sum(0.3 * 0.7 ** (4 - step) * step for step in range(1, 5))  # 0 at the first
    torch.testing.assert_close(mean.values, [share * each for each in given])
    other = RunningMean(0.7)
    other.load(mean.state(), [each.shape for each in given])
    assert all(map(torch.equal, other.values, mean.values))
    other.load(RunningMean(0.7).state(), [])
    assert RunningMean(0.7).state() is None


def test_criteria_add_at_most_half_of_the_sets_rows(weigher: Any) -> None:
    three = {**SETS, "third": answers("cold", 6)}
    assert weigher().x_every == 2  # two sets, two criteria
    assert weigher(train=three).x_every == 2
    assert weigher(train={**three, "fourth": answers("walk", 6)}).x_every == 1
    assert weigher(x_every=5).x_every == 5
    assert weigher(x_learning_rate=0.0).x_every == 1
    assert weigher(method="wc_penalty").x_every == 1


def test_a_set_that_comes_again_is_told(weigher: Any, caplog: pytest.LogCaptureFixture) -> None:
    sets = {"small": answers("cold", 4), "large": answers("walk", 12)}
    for more in ({"max_steps": 2}, {"max_steps": 3, "x_learning_rate": 0.0}):
        weigher(train=sets, per_device_train_batch_size=2, folder=str(len(more)), **more).train()
    same = {"one": answers("cold", 10), "other": answers("walk", 12)}
    weigher(train=same, per_device_train_batch_size=4, max_steps=4, folder="same").train()
    assert "gone through" not in caplog.text
    weigher(train=sets, per_device_train_batch_size=2, max_steps=3, folder="again").train()
    (told,) = (record.getMessage() for record in caplog.records if "gone through" in record.msg)
    assert "'small', of 4 rows, has been gone through after step 2 of 3" in told
    assert "max_steps=2 ends" in told


def test_a_step_of_x_stands_for_the_steps_between(weigher: Any) -> None:
    moved = []
    for every in (1, 3):
        trainer = weigher(x_every=every, max_steps=1, x_learning_rate=0.01, folder=str(every))
        trainer.train()
        moved.append(float(trainer.x.abs().max()))
    assert moved == pytest.approx([0.01, 0.03], rel=1e-3)  # Adam's first step is its rate


def test_intervals_are_of_the_steps_that_moved_x(weigher: Any) -> None:
    trainer = weigher(max_steps=4)  # x moves in the first and the third
    trainer.train()
    found = weight_intervals(trainer, step_logs(trainer))
    assert found is not None
    assert all(0 <= low <= high <= 1 for low, high in found.values())
    two = [row for row in step_logs(trainer) if "alignment/moon" in row]
    assert len(two) == 2
    assert found == weight_intervals(trainer, two)
    assert weight_intervals(trainer, []) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::paretune.moo.bilevel.oracle.NonConvexLowerLevelWarning")
def test_takes_the_steps_of_the_bilevel_method(
    weigher: Any, tiny_lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    preference, drawn = {"one": 0.7, "two": 0.3}, []
    trainer = weigher(preference, optim="adamw_torch", x_learning_rate=0.1, x_every=1)
    add = trainer.steps.add
    trainer.steps.add = lambda rows: [drawn.append(rows), add(rows)]
    weights = trainer.weights
    monkeypatch.setattr(trainer.steps, "_sets", RunningMean(0.0))  # of each step alone
    monkeypatch.setattr(trainer.steps, "_target", RunningMean(0.0))

    def through_softmax(slope: torch.Tensor) -> None:  # the bilevel method's x is any
        w = weights.values
        weights.move(w * (slope - w @ slope))

    monkeypatch.setattr(weights, "follow", through_softmax)
    trainer.train()
    model = tiny_lora()
    model.set_attn_implementation("eager")
    levels = LanguageModelObjectives(model, in_place=False)
    parts = list(map(Part, *_parts(trainer)))
    queue = [Batches.of([{part: _rows(trainer, rows, part) for part in parts}]) for rows in drawn]
    queue.append(queue[0])  # a method draws once more after its last step
    problem = StochasticBilevelProblem(
        levels.upper(["one", "two"]),
        levels.lower(["moon", "star"]),
        draw_upper=lambda size, generator: queue[0],
        draw_lower=lambda size, generator: queue.pop(0),
        full_upper=queue[0],
        full_lower=queue[0],
        hvp="double",
    )
    start = torch.zeros(2, dtype=torch.float64), levels.vector()
    method = Lookahead(lr=1e-2, x_lr=0.1)
    x, y = method.run(problem, Preference.of(preference), start, 4, 0.0).x
    torch.testing.assert_close(trainer.x, x, rtol=0, atol=1e-3)
    assert float((adapter(trainer) - y).norm()) < 1e-3 * float((y - start[1]).norm())
