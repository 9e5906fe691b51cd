"""Proximal policy optimisation of a language model's adapter, one answer an episode.

Schulman et al. 2017 (PPO) with generalised advantage estimation (Schulman et al. 2016) and the
adaptive divergence penalty of Ziegler et al. 2019, as the originals of MORLHF and Rewarded Soups
use them. The mathematics is in pure functions of ``(N, T)`` tensors, a row an answer and a column
a token; entries beyond an answer's end are masked.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from paretune.baselines.rollouts import PolicyWithValue, Rollouts, TokenScores, sample
from paretune.errors import TrainingStoppedError
from paretune.models.products import fast_products
from paretune.results.answers import Prompt
from paretune.spend import Spend, Watch

if TYPE_CHECKING:
    from paretune.baselines.morlhf import Morlhf

Reward = Callable[[Sequence[Prompt], Sequence[str]], tuple[list[float], dict[str, float]]]
"""From N prompts and answers to their N rewards, and what to log (`reward_tokens` is spent)."""


class Losses(NamedTuple):
    """Means over valid tokens; only the first two carry gradients."""

    policy: Tensor
    value: Tensor
    clipped: Tensor
    """Share of the tokens whose ratio's clipping holds back the policy loss."""
    kl: Tensor
    """KL(π_old ‖ π_new), by the estimator ρ − 1 − log ρ, which is never negative."""


class Targets(NamedTuple):
    """What a batch is learnt from, each ``(N, T)``: from the policy that sampled it."""

    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    mask: Tensor


def token_rewards(
    scores: Tensor, logps: Tensor, reference: Tensor, mask: Tensor, kl_coefficient: float
) -> Tensor:
    """``r_t = −c (log π − log π_ref)_t``, and the answer's score on top at its last token.

    Args:
        scores: ``(N,)``.
        logps, reference: ``(N, T)`` log-probabilities of the tokens.

    Source: Ziegler et al. 2019, Eq. 2.
    """
    rewards = -kl_coefficient * (logps - reference) * mask
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards)[:, None])


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns ``(N, T)``, zero where masked.

    ``δ_t = r_t + γ V_{t+1} − V_t``, ``A_t = δ_t + γλ A_{t+1}``, ``R_t = A_t + V_t``; after an
    answer's last token there is neither reward nor value, also where the answer was cut.

    Source: Schulman et al. 2016, Eq. 11-16.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        next_advantage = (delta + discount * lam * next_advantage) * mask[:, t]
        advantages[:, t] = next_advantage
        next_value = values[:, t]
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """``(N, T)`` with mean 0 and standard deviation 1 over the valid entries; zero elsewhere.

    Entries that differ by rounding alone are only centred.
    """
    valid = values[mask]
    deviation = valid.std(correction=0)
    noise = torch.finfo(values.dtype).eps * valid.abs().max()
    scale = deviation if deviation > noise else torch.ones_like(deviation)
    return (values - valid.mean()) / scale * mask


def ppo_loss(logps: Tensor, values: Tensor, old: Targets, clip: float, value_clip: float) -> Losses:
    """The clipped losses of Schulman et al. 2017 (Eq. 7), for values clipped likewise.

    With ``ρ = π_new / π_old``: ``mean max(−A ρ, −A clip(ρ, 1 ± ε))`` and
    ``½ mean max((V − R)², (clip(V, V_old ± ε_v) − R)²)``.

    Args:
        logps, values: ``(N, T)``, those of the new policy, differentiable.
        old: What they are compared with, ``(N, T)``; advantages whitened already.
    """
    log_ratio = torch.where(old.mask, logps - old.logps, 0.0)
    ratio = log_ratio.exp()
    free = -old.advantages * ratio
    held = -old.advantages * ratio.clamp(1 - clip, 1 + clip)
    near = torch.minimum(torch.maximum(values, old.values - value_clip), old.values + value_clip)
    errors = torch.maximum((values - old.returns) ** 2, (near - old.returns) ** 2)

    def mean(terms: Tensor) -> Tensor:
        return terms[old.mask].mean()

    return Losses(
        policy=mean(torch.maximum(free, held)),
        value=0.5 * mean(errors),
        clipped=mean((held > free).to(ratio)).detach(),
        kl=mean(ratio - 1 - log_ratio).detach(),
    )


def adapted(coefficient: float, kl: float, target: float, horizon: float, answers: int) -> float:
    """The next weight of the divergence: ``c (1 + clip(KL / target − 1, ±0.2) n / horizon)``.

    Args:
        kl: Mean divergence of an answer from the reference, in nats.
        answers: n, how many it was measured on.

    Source: Ziegler et al. 2019, section 2.2.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * answers / horizon)


class PPO:
    """A run that can be stopped and resumed after every step.

    All randomness is drawn from the seed and the step's number, so that `state_dict` is all there
    is to a run. Dropout is off: ratios start at exactly one.

    Args:
        model: A PEFT model whose adapter is trained; without the adapter it is the reference.
        prompts: Distinct prompts; passes over them are shuffled.
        budget: Without ``settings.steps`` the run is over when so many tokens have gone forward
            and backward through the policy.
        recompute: Make activations again in the backward pass, to save memory.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        reward: Reward,
        settings: "Morlhf",
        seed: int = 0,
        budget: int = 0,
        recompute: bool = False,
    ) -> None:
        self.policy = PolicyWithValue(model, settings.temperature).eval()
        self.tokenizer, self.prompts, self.reward = tokenizer, prompts, reward
        self.settings, self.seed = settings, seed
        self.budget = budget
        self.trainable = [each for each in self.policy.parameters() if each.requires_grad]
        self.optimizer = torch.optim.Adam(self.trainable, lr=settings.learning_rate)
        self.kl_coefficient = settings.kl_coefficient
        self.spend = Spend()
        self.recompute = recompute
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.log: list[dict[str, float]] = []

    @property
    def done(self) -> int:
        """Steps taken."""
        return len(self.log)

    @property
    def progress(self) -> float:
        """Share of the run that is done; at 1 it is over."""
        if self.settings.steps is not None:
            return min(1.0, self.done / self.settings.steps)
        return min(1.0, self.spend.policy_tokens / self.budget)

    @fast_products()
    def step(self) -> dict[str, float]:
        """Answer a batch of prompts, score the answers and learn from them.

        Returns:
            The entry of the log.

        Raises:
            TrainingStoppedError: a loss is not finite; the weights are as before that update.
        """
        watch, step, settings = Watch(), self.done, self.settings
        rows = prompt_batch(len(self.prompts), settings.batch_size, step, self.seed)
        prompts = [self.prompts[row] for row in rows]
        rollouts = sample(
            self.policy.model,
            self.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=(self.seed << 32) + step,
        )
        mask = rollouts.mask.to(self.policy.value_head.weight.device)
        given, entry = self.reward(prompts, rollouts.texts)
        scores = torch.tensor(given) - settings.missing_eos_penalty * ~rollouts.finished
        old = self._score(rollouts)
        with self.policy.model.disable_adapter():
            reference = self._score(rollouts).logps
        rewards = token_rewards(
            scores.to(mask.device), old.logps, reference, mask, self.kl_coefficient
        )
        advantages, returns = gae(rewards, old.values, mask, settings.discount, settings.gae_lambda)
        targets = Targets(old.logps, old.values, whiten(advantages, mask), returns, mask)
        kl = float((old.logps - reference).sum(1).mean())
        entry |= {
            "reward": float(scores.mean()),
            "kl": kl,
            "kl_coefficient": self.kl_coefficient,
            "entropy": float(old.entropies[mask].mean()),
            "length": float(mask.sum(1).float().mean()),
            "finished": float(rollouts.finished.float().mean()),
        }
        entry |= self._update(rollouts, targets, step)
        if settings.kl_target is not None:
            self.kl_coefficient = adapted(
                self.kl_coefficient, kl, settings.kl_target, settings.kl_horizon, len(prompts)
            )
        read = sum(len(sequence.input_ids) for sequence in rollouts.sequences)
        spent = watch.spend(
            policy_tokens=int(entry["policy_tokens"]),
            reference_tokens=2 * read,
            generated_tokens=int(mask.sum()),
            reward_tokens=int(entry.get("reward_tokens", 0)),
            passes=mask.shape[1]
            + 2 * len(rollouts.sequences) // settings.mini_batch_size
            + 2 * int(entry["updates"]),
        )
        self.spend += spent
        self.log.append({"step": step + 1, **entry, "seconds": spent.seconds})
        return self.log[-1]

    @torch.no_grad()
    def _score(self, rollouts: Rollouts) -> TokenScores:
        size, width = self.settings.mini_batch_size, rollouts.mask.shape[1]
        parts = [
            self.policy(rollouts.sequences[start : start + size])
            for start in range(0, len(rollouts.sequences), size)
        ]
        columns = zip(*parts, strict=True)
        return TokenScores(*(torch.cat([_widened(x, width) for x in column]) for column in columns))

    def _update(self, rollouts: Rollouts, targets: Targets, step: int) -> dict[str, float]:
        """The epochs over one batch; means over the mini-batches seen of what to log."""
        settings = self.settings
        shuffle = np.random.default_rng([self.seed, 1, step])
        orders = [shuffle.permutation(len(rollouts.sequences)) for _ in range(settings.epochs)]
        groups = torch.from_numpy(np.concatenate(orders)).split(settings.mini_batch_size)
        seen: list[Losses] = []
        updates = tokens = 0
        self._learning(self.recompute)
        for rows in groups:
            sequences = [rollouts.sequences[row] for row in rows.tolist()]
            new = self.policy(sequences)
            part = Targets(*(x[rows][:, : new.logps.shape[1]] for x in targets))
            losses = ppo_loss(new.logps, new.values, part, settings.clip, settings.value_clip)
            seen.append(Losses(*(each.detach() for each in losses)))
            if settings.stop_kl is not None and losses.kl > settings.stop_kl:
                break
            self._descend(losses)
            updates += 1
            tokens += sum(len(sequence.input_ids) for sequence in sequences)
        self._learning(False)
        names = ("policy_loss", "value_loss", "clip_fraction", "update_kl")
        means = [float(torch.stack(column).mean()) for column in zip(*seen, strict=True)]
        return {
            **dict(zip(names, means, strict=True)),
            "updates": float(updates),
            "policy_tokens": float(tokens),
        }

    def _learning(self, recompute: bool) -> None:
        """Layers make activations again only while they train; dropout stays off."""
        self.policy.train(recompute)
        for module in self.policy.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()

    def _descend(self, losses: Losses) -> None:
        total = losses.policy + self.settings.value_weight * losses.value
        self.optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, self.settings.max_grad_norm)
        if not torch.isfinite(total + norm):
            raise TrainingStoppedError(
                f"PPO stopped at step {self.done + 1}: a loss or gradient is NaN or infinite; "
                "lower learning_rate."
            )
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """All that later steps depend on; `torch.save` and safe loading take it."""
        return {
            "trainable": [parameter.detach() for parameter in self.trainable],
            "optimizer": self.optimizer.state_dict(),
            "kl_coefficient": self.kl_coefficient,
            "spend": self.spend.to_json(),
            "log": self.log,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        with torch.no_grad():
            for parameter, saved in zip(self.trainable, state["trainable"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.kl_coefficient = state["kl_coefficient"]
        self.spend = Spend.from_json(state["spend"])
        self.log = state["log"]


def prompt_batch(prompts: int, size: int, step: int, seed: int) -> list[int]:
    """The prompts of a step: its stretch of an endless row of shuffled passes over all of them."""
    positions = range(step * size, (step + 1) * size)
    orders = {
        number: np.random.default_rng([seed, 0, number]).permutation(prompts)
        for number in {position // prompts for position in positions}
    }
    return [int(orders[position // prompts][position % prompts]) for position in positions]


def _widened(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
