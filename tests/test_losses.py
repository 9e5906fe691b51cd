"""The four losses against values worked out by hand, and their properties."""

import math
import subprocess
import sys

import pytest
import torch

from paretune import InputError, losses
from paretune.losses import DPO, IPO, Scored, losses_by_objective, read_loss

CHOSEN, REJECTED = torch.tensor([-10.0]), torch.tensor([-14.0])
REF_CHOSEN, REF_REJECTED = torch.tensor([-11.0]), torch.tensor([-12.0])
# log-ratios: +1 and -2, so delta = 3


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_dpo_by_hand() -> None:
    value = losses.dpo(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, beta=0.1)
    assert value.item() == pytest.approx(softplus(-0.3), abs=1e-6)


def test_ipo_by_hand() -> None:
    # (3 - 1 / (2 * 0.1))² = 4
    value = losses.ipo(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, beta=0.1)
    assert value.item() == pytest.approx(4.0, abs=1e-5)


def test_ipo_token_mean_by_hand() -> None:
    # 1/5 - (-2)/4 - 1 = -0.3
    lengths = torch.tensor([5.0]), torch.tensor([4.0])
    value = losses.ipo(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, 0.5, *lengths)
    assert value.item() == pytest.approx(0.09, abs=1e-6)


def test_cpo_by_hand() -> None:
    value = losses.cpo(CHOSEN, REJECTED, beta=0.1)
    assert value.item() == pytest.approx(softplus(-0.4) + 10, abs=1e-5)
    mean = losses.cpo(CHOSEN, REJECTED, 0.1, nll_weight=0.5, chosen_lengths=torch.tensor([5.0]))
    assert mean.item() == pytest.approx(softplus(-0.4) + 1, abs=1e-5)


def test_simpo_by_hand() -> None:
    # 2 * (-10/5 + 14/4) - 0.5 = 2.5
    value = losses.simpo(CHOSEN, REJECTED, torch.tensor([5]), torch.tensor([4]), 2.0, 0.5)
    assert value.item() == pytest.approx(softplus(-2.5), abs=1e-6)


def test_no_reward_difference_costs_log_two() -> None:
    assert losses.dpo(CHOSEN, REJECTED, CHOSEN, REJECTED, 0.1).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["dpo", "ipo", "cpo", "simpo"])
@pytest.mark.parametrize("token_mean", [False, True])
def test_spec_agrees_with_the_functions(name: str, token_mean: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    c, r, rc, rr = (-torch.rand(5, generator=generator) * 20 for _ in range(4))
    nc, nr = torch.tensor([3, 4, 5, 6, 7]), torch.tensor([7, 6, 5, 4, 3])
    constants = {"beta": 0.3, "gamma": 0.2, "nll_weight": 0.7, "token_mean": token_mean}
    loss = read_loss(name, constants)
    found = loss(Scored(c, nc, rc), Scored(r, nr, rr))
    expected = {
        "dpo": losses.dpo(c, r, rc, rr, 0.3),
        "ipo": losses.ipo(c, r, rc, rr, 0.3, *((nc, nr) if token_mean else ())),
        "cpo": losses.cpo(c, r, 0.3, 0.7, nc if token_mean else None),
        "simpo": losses.simpo(c, r, nc, nr, 0.3, 0.2),
    }[name]
    torch.testing.assert_close(found, expected)
    if name in ("dpo", "simpo"):  # -log sigmoid of the margin (less gamma)
        margins = loss.margins(Scored(c, nc, rc), Scored(r, nr, rr))
        shift = 0.2 if name == "simpo" else 0.0
        torch.testing.assert_close(found, -torch.nn.functional.logsigmoid(margins - shift))


def test_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="Unknown loss 'dop'"):
        read_loss("dop")
    with pytest.raises(InputError, match="beta must be positive"):
        DPO(beta=0)
    with pytest.raises(InputError, match="reference"):
        DPO()(Scored(CHOSEN, CHOSEN), Scored(REJECTED, REJECTED))
    with pytest.raises(InputError, match="'dpo' has no constant 'bta'; did you mean 'beta'"):
        read_loss({"name": "dpo", "bta": 1.0})


def test_each_objective_may_have_its_own() -> None:
    given = {"a": "dpo", "b": IPO(beta=0.3), "c": {"name": "cpo", "nll_weight": 0.5}}
    found = losses_by_objective(given, "abc", {"beta": 0.2, "gamma": 9.0})
    assert found == {"a": DPO(0.2), "b": IPO(0.3), "c": losses.CPO(0.2, nll_weight=0.5)}
    assert losses_by_objective("dpo", "ab") == {"a": DPO(), "b": DPO()}
    with pytest.raises(InputError, match="'helpfull', which is no objective; did you mean"):
        losses_by_objective({"helpfull": "dpo"}, ["helpful", "harmless"])
    with pytest.raises(InputError, match="loss of objective 'harmless' is missing"):
        losses_by_objective({"helpful": "dpo"}, ["helpful", "harmless"])


def test_importing_the_losses_needs_no_torch() -> None:
    code = "import sys, paretune.losses, paretune.moo.weightings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
