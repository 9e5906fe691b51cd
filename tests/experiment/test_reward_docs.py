import re
from pathlib import Path

import pytest

from paretune.evaluation.reward_models import RewardInput
from paretune.recipes.rewards import RewardSource
from paretune.yaml_syntax import parse

TEXT = (Path(__file__).parents[2] / "docs" / "guides" / "rewards.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_sources_in_the_documentation_are_valid(block: str) -> None:
    for source in parse(block, "docs/guides/rewards.md").values():
        read = RewardSource.model_validate(source)
        RewardInput(read.input, read.template, read.turns)
        if "DPA" in str(read.name):
            assert read.template
            assert "assistant's response from score" in read.template
            assert "honesty, complexity, verbosity{prompt}" in read.template


def test_every_key_is_in_the_documentation() -> None:
    assert len(BLOCKS) == 2
    for name in RewardSource.model_fields:
        assert f"`{name}`" in TEXT
