"""PPO: its mathematics against plain loops, and its policy where the best one is known."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from paretune.baselines.morlhf import Morlhf
from paretune.baselines.ppo import (
    PPO,
    Targets,
    adapted,
    gae,
    ppo_loss,
    prompt_batch,
    token_rewards,
    whiten,
)
from paretune.baselines.rollouts import PolicyWithValue, answer_mask, sample
from paretune.data.tokenization import TokenSequence
from paretune.errors import TrainingStoppedError

LENGTHS = [5, 1, 3]
PROMPTS = ["cat dog", "red", "how why what", "tea milk", "sun", "run walk sit", "yes", "no maybe"]


def random_batch(seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random (3, 5) float64 tensors, with numbers that must not matter where masked."""
    generator = torch.Generator().manual_seed(seed)
    names = ("rewards", "values", "logps", "reference", "new_logps", "new_values", "advantages")
    batch = {n: torch.randn(3, 5, generator=generator, dtype=torch.float64) for n in names}
    return batch, torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def plain_gae(rewards: list, values: list, discount: float, lam: float) -> list:
    """The sum of Schulman et al.'s Eq. 16, term by term."""
    length = len(rewards)
    values = [*values, 0.0]
    deltas = [rewards[t] + discount * values[t + 1] - values[t] for t in range(length)]
    return [
        sum((discount * lam) ** (k - t) * deltas[k] for k in range(t, length))
        for t in range(length)
    ]


def test_advantages_are_those_of_the_plain_sum() -> None:
    batch, mask = random_batch()
    advantages, returns = gae(batch["rewards"], batch["values"], mask, 0.9, 0.8)
    for row, length in enumerate(LENGTHS):
        values = batch["values"][row, :length].tolist()
        expected = plain_gae(batch["rewards"][row, :length].tolist(), values, 0.9, 0.8)
        assert advantages[row, :length].tolist() == pytest.approx(expected)
        assert returns[row, :length].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values, strict=True)]
        )
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_with_lambda_one_the_returns_are_the_discounted_rewards() -> None:
    batch, mask = random_batch(1)
    _, returns = gae(batch["rewards"], batch["values"], mask, 0.9, 1.0)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            rewards = batch["rewards"][row, t:length].tolist()
            expected = sum(0.9**k * reward for k, reward in enumerate(rewards))
            assert float(returns[row, t]) == pytest.approx(expected)


def test_the_score_goes_to_the_last_token_and_the_divergence_to_each() -> None:
    batch, mask = random_batch()
    scores = torch.tensor([1.0, 2.0, 3.0])
    rewards = token_rewards(scores, batch["logps"], batch["reference"], mask, 0.2)
    for row, length in enumerate(LENGTHS):
        for t in range(5):
            expected = -0.2 * float(batch["logps"][row, t] - batch["reference"][row, t])
            expected = expected + float(scores[row]) * (t == length - 1) if t < length else 0.0
            assert float(rewards[row, t]) == pytest.approx(expected)


def test_whitened_values_have_mean_zero_and_deviation_one() -> None:
    batch, mask = random_batch()
    white = whiten(batch["values"], mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-12)
    assert float((white[mask] ** 2).mean()) == pytest.approx(1)
    assert not white[~mask].any()
    assert torch.allclose(white, whiten(7 * batch["values"] + 3, mask))
    assert whiten(torch.full((3, 5), 0.1), mask).abs().max() < 1e-7  # rounding is not blown up


def plain_loss(new: dict, old: dict, clip: float, value_clip: float) -> tuple:
    policy, value, clipped, kl, count = 0.0, 0.0, 0, 0.0, 0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            at = {name: float(tensor[row, t]) for name, tensor in {**new, **old}.items()}
            ratio = math.exp(at["new_logps"] - at["logps"])
            free = -at["advantages"] * ratio
            held = -at["advantages"] * min(max(ratio, 1 - clip), 1 + clip)
            near = min(max(at["new_values"], at["values"] - value_clip), at["values"] + value_clip)
            policy += max(free, held)
            clipped += held > free
            value += max((at["new_values"] - at["returns"]) ** 2, (near - at["returns"]) ** 2) / 2
            kl += ratio - 1 - math.log(ratio)
            count += 1
    return policy / count, value / count, clipped / count, kl / count


def targets_of(batch: dict[str, torch.Tensor], mask: torch.Tensor) -> Targets:
    returns = batch["advantages"] + batch["values"]
    return Targets(batch["logps"], batch["values"], batch["advantages"], returns, mask)


def test_losses_are_those_of_the_plain_loop() -> None:
    batch, mask = random_batch(2)
    old = targets_of(batch, mask)
    losses = ppo_loss(batch["new_logps"], batch["new_values"], old, 0.2, 0.3)
    new = {name: batch[name] for name in ("new_logps", "new_values")}
    expected = plain_loss(new, old._asdict(), 0.2, 0.3)
    assert [float(each) for each in losses] == pytest.approx(expected)
    assert 0 < losses.clipped < 1  # both branches were taken


def test_loss_gradients_are_the_finite_differences() -> None:
    batch, mask = random_batch(2)
    old = targets_of(batch, mask)
    inputs = [batch[name].requires_grad_() for name in ("new_logps", "new_values")]

    def total(logps: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        losses = ppo_loss(logps, values, old, 0.2, 0.3)
        return losses.policy + 0.1 * losses.value

    assert torch.autograd.gradcheck(total, inputs)
    total(*inputs).backward()
    for each in inputs:
        assert not each.grad[~mask].any()


def test_at_the_sampling_policy_the_gradient_is_the_policy_gradient() -> None:
    batch, mask = random_batch(3)
    logps = batch["logps"].clone().requires_grad_()
    losses = ppo_loss(logps, batch["values"], targets_of(batch, mask), 0.2, 0.2)
    losses.policy.backward()
    assert torch.allclose(logps.grad, -batch["advantages"] * mask / mask.sum())
    assert losses.kl == 0
    assert losses.clipped == 0


def test_the_divergence_weight_goes_towards_its_target() -> None:
    assert adapted(0.2, kl=3.0, target=3.0, horizon=100, answers=10) == 0.2
    assert adapted(0.2, kl=3.3, target=3.0, horizon=100, answers=10) == pytest.approx(0.202)
    assert adapted(0.2, kl=99.0, target=3.0, horizon=100, answers=10) == pytest.approx(0.204)
    assert adapted(0.2, kl=0.0, target=3.0, horizon=100, answers=10) == pytest.approx(0.196)


def test_every_pass_over_the_prompts_has_each_once() -> None:
    rows = [row for step in range(6) for row in prompt_batch(9, 3, step, seed=0)]
    assert sorted(rows[:9]) == sorted(rows[9:]) == list(range(9))
    assert rows[:9] != rows[9:]
    assert len(prompt_batch(3, 8, 5, seed=0)) == 8
    assert prompt_batch(9, 3, 2, seed=1) != prompt_batch(9, 3, 2, seed=0)


# ---------------------------------------------------------------------------- model


@pytest.fixture
def make_model(tiny_llama: Any) -> Callable[[], Any]:
    """A one-layer Llama that can tell all words apart, with an adapter that does nothing yet."""

    def make() -> Any:
        base = tiny_llama(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            initializer_range=0.15,
        )
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        return get_peft_model(base, lora)

    return make


@pytest.fixture
def policy(make_model: Callable[[], Any]) -> PolicyWithValue:
    policy = PolicyWithValue(make_model(), temperature=0.7).eval()
    torch.nn.init.normal_(policy.value_head.weight)
    return policy


SEQUENCES = [TokenSequence((8, 9, 10, 11, 12), 2), TokenSequence((8, 13), 1)]


def test_one_forward_gives_log_probabilities_and_values(policy: PolicyWithValue) -> None:
    calls: list[Any] = []
    inner = policy.model.get_base_model().model
    inner.register_forward_hook(lambda *_: calls.append(1))
    scores = policy(SEQUENCES)
    assert len(calls) == 1
    for row, sequence in enumerate(SEQUENCES):  # each alone, without padding, all logits
        ids = torch.tensor([sequence.input_ids])
        output = policy.model(ids, output_hidden_states=True)
        logps = (output.logits[0] / 0.7).log_softmax(-1)
        values = policy.value_head(output.hidden_states[-1][0])
        for t in range(sequence.completion_length):
            state = sequence.prompt_length + t - 1
            token = sequence.input_ids[state + 1]
            entropy = -(logps[state].exp() * logps[state]).sum()
            assert torch.allclose(scores.logps[row, t], logps[state, token], atol=1e-5)
            assert torch.allclose(scores.values[row, t], values[state, 0], atol=1e-5)
            assert torch.allclose(scores.entropies[row, t], entropy, atol=1e-5)
    assert not any(x[~answer_mask(SEQUENCES)].any() for x in scores)


def test_the_gradient_of_the_whole_loss_is_its_finite_difference(policy: PolicyWithValue) -> None:
    mask = answer_mask(SEQUENCES)
    with torch.no_grad():
        start = policy(SEQUENCES)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(2, 4, generator=generator)[:, :3] for _ in range(4)]
    old = Targets(
        start.logps + 0.3 * noise[0] * mask, start.values + 0.3 * noise[1], *noise[2:], mask
    )

    def total() -> torch.Tensor:
        losses = ppo_loss(*policy(SEQUENCES)[:2], old, 0.2, 0.2)
        return losses.policy + 0.1 * losses.value

    parameters = [each for each in policy.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(total(), parameters)
    directions = [
        torch.randn(
            p.shape,
            generator=generator,
        )
        for p in parameters
    ]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    ends = []
    with torch.no_grad():
        for move in (1e-3, -2e-3):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += move * direction
            ends.append(float(total()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-2)


def test_samples_depend_on_prompt_and_seed_and_keep_their_end_token(
    policy: PolicyWithValue, tokenizer: Any
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.0}
    rollouts = sample(policy.model, tokenizer, PROMPTS, seed=0, **options)
    again = sample(policy.model, tokenizer, PROMPTS[::-1], seed=0, **options)
    other = sample(policy.model, tokenizer, PROMPTS, seed=1, **options)
    assert again.sequences == rollouts.sequences[::-1]
    assert all(a != b for a, b in zip(other.sequences, rollouts.sequences, strict=True))
    ended = [s.input_ids[-1] == tokenizer.eos_token_id for s in rollouts.sequences]
    assert any(ended)
    assert not all(ended)
    for end, finished, text in zip(ended, rollouts.finished, rollouts.texts, strict=True):
        assert bool(finished) == (end and bool(text))


# ---------------------------------------------------------------------------- learning


def settings(**options: Any) -> Morlhf:
    fast: dict[str, Any] = {
        "steps": 4,
        "batch_size": 8,
        "mini_batch_size": 4,
        "epochs": 2,
        "max_new_tokens": 4,
        "temperature": 1.0,
        "learning_rate": 1e-2,
        "missing_eos_penalty": 0.0,
    }
    return Morlhf(**fast | options)


def reward_of(score: Callable[[str], float]) -> Callable[..., Any]:
    """PPO's reward from the score of a text."""

    def reward(prompts: Sequence[Any], texts: Sequence[str]) -> Any:
        values = [score(text) for text in texts]
        return values, {"positive": sum(value > 0 for value in values) / len(values)}

    return reward


LETTERS = reward_of(lambda text: float(len(text)))
CAT = reward_of(lambda text: float(text == "cat"))


def word_probabilities(model: Any, tokenizer: Any, prompt: str) -> dict[str, float]:
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
    probabilities = logits.softmax(-1).tolist()
    return dict(zip(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), probabilities))  # noqa: B905


def run(ppo: PPO) -> PPO:
    while ppo.progress < 1:
        ppo.step()
    return ppo


@pytest.mark.slow
def test_the_best_word_gets_nearly_all_the_probability(
    make_model: Callable[[], Any], tokenizer: Any
) -> None:
    options = settings(
        steps=15,
        batch_size=64,
        mini_batch_size=16,
        max_new_tokens=1,
        kl_coefficient=0.0,
        kl_target=None,
    )
    model = make_model()
    ppo = run(PPO(model, tokenizer, ["cat dog"], CAT, options))
    assert word_probabilities(model, tokenizer, "cat dog")["cat"] > 0.9
    assert ppo.log[0]["positive"] < 0.2
    assert ppo.log[-1]["positive"] > 0.9


@pytest.mark.slow
def test_the_penalised_optimum_is_the_tilted_reference(
    make_model: Callable[[], Any], tokenizer: Any
) -> None:
    """argmax E r − β KL(π ‖ π_ref) is π_ref exp(r / β) / Z."""
    beta = 0.5

    def score(word: str) -> float:
        return {3: 0.5, 4: 1.0, 5: 1.5}.get(len(word) if word in tokenizer.get_vocab() else 0, 0.0)

    options = settings(
        steps=30,
        batch_size=128,
        mini_batch_size=32,
        max_new_tokens=1,
        kl_coefficient=beta,
        kl_target=None,
        learning_rate=3e-3,
    )
    model = make_model()
    base = word_probabilities(model, tokenizer, "cat dog")
    special = set(tokenizer.all_special_tokens)
    scores = {word: 0.0 if word in special else score(word) for word in base}
    tilted = {word: p * math.exp(scores[word] / beta) for word, p in base.items()}
    optimum = {word: p / sum(tilted.values()) for word, p in tilted.items()}
    run(PPO(model, tokenizer, ["cat dog"], reward_of(score), options))
    found = word_probabilities(model, tokenizer, "cat dog")

    def gain(policy: dict[str, float]) -> float:
        return sum(p * (scores[w] - beta * math.log(p / base[w])) for w, p in policy.items())

    assert gain(found) - gain(base) > 0.85 * (gain(optimum) - gain(base))
    for level in set(scores.values()):
        shares = [sum(p[w] for w in p if scores[w] == level) for p in (found, optimum)]
        assert shares[0] == pytest.approx(shares[1], abs=0.06)


def test_an_answer_without_an_end_costs_the_penalty(
    make_model: Callable[[], Any], tokenizer: Any
) -> None:
    for penalty in (0.0, 2.0):
        options = settings(missing_eos_penalty=penalty, max_new_tokens=8)
        entry = PPO(make_model(), tokenizer, PROMPTS, reward_of(lambda text: 0.0), options).step()
        assert entry["finished"] < 1
        assert entry["reward"] == pytest.approx(-penalty * (1 - entry["finished"]))


def test_a_batch_is_left_when_the_policy_has_moved_too_far(
    make_model: Callable[[], Any], tokenizer: Any
) -> None:
    options = {"learning_rate": 0.1, "epochs": 8}
    free, held = (
        PPO(make_model(), tokenizer, PROMPTS, LETTERS, settings(stop_kl=limit, **options)).step()
        for limit in (None, 0.01)
    )
    assert free["updates"] == 16
    assert 1 <= held["updates"] < 16


def test_the_reference_is_the_base_and_stays_so(
    make_model: Callable[[], Any], tokenizer: Any
) -> None:
    ppo = PPO(make_model(), tokenizer, PROMPTS, LETTERS, settings())
    base = {n: p.clone() for n, p in ppo.policy.model.named_parameters() if not p.requires_grad}
    first, second = ppo.step(), ppo.step()
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(second["kl"]) > 1e-3
    for name, parameter in ppo.policy.model.named_parameters():
        assert name not in base or torch.equal(parameter, base[name])


def test_activations_made_again_change_nothing(
    make_model: Callable[[], Any], tokenizer: Any
) -> None:
    kept = PPO(make_model(), tokenizer, PROMPTS, LETTERS, settings())
    again = PPO(make_model(), tokenizer, PROMPTS, LETTERS, settings(), recompute=True)
    first, second = [each.step() | {"seconds": 0.0} for each in (kept, again)]
    assert first == pytest.approx(second, abs=1e-6)
    for ours, theirs in zip(kept.trainable, again.trainable, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert any(getattr(each, "gradient_checkpointing", False) for each in again.policy.modules())
    assert not any(module.training for module in again.policy.modules())


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(make_model: Callable[[], Any], tokenizer: Any, tmp_path) -> None:
    def fresh(seed: int = 0) -> PPO:
        return PPO(make_model(), tokenizer, PROMPTS[:5], LETTERS, settings(), seed)

    whole = run(fresh())
    half = fresh()
    half.step()
    half.step()
    torch.save(half.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    resumed = fresh()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(resumed)
    ends = [dict(each.policy.named_parameters()) for each in (whole, resumed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert whole.kl_coefficient == resumed.kl_coefficient != settings().kl_coefficient
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in each.log]
        for each in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]
    assert whole.spend.policy_tokens == resumed.spend.policy_tokens > 0
    assert run(fresh(seed=1)).log != whole.log


def test_a_loss_that_is_not_finite_stops_the_run(
    make_model: Callable[[], Any], tokenizer: Any
) -> None:
    def reward(prompts: Sequence[Any], texts: Sequence[str]) -> Any:
        return [math.inf] * len(texts), {}

    with pytest.raises(TrainingStoppedError, match="step 1: a loss or gradient"):
        PPO(make_model(), tokenizer, PROMPTS, reward, settings()).step()
