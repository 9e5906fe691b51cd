"""From a recipe to its task: the one place that knows which tasks there are."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from paretune.data_weighting.tasks.task import Task
from paretune.recipes.data_weighting import MnistTask, RewardModelTask
from paretune.recipes.language_model import LanguageModelTask

if TYPE_CHECKING:
    from paretune.recipes.data_weighting import WeighRecipe


def load_task(recipe: "WeighRecipe") -> Callable[[int], Task]:
    """Read the task's data once; the result makes the task of a seed.

    Raises:
        InputError: data or an encoder that is missing or does not fit.
    """
    task = recipe.task
    if isinstance(task, RewardModelTask):
        from paretune.data_weighting.tasks import reward_model

        splits, counts = reward_model.load_scored(task)
        return lambda seed: reward_model.build(task, splits, counts, seed)
    if isinstance(task, LanguageModelTask):
        from paretune.data_weighting.tasks import language_model

        rows = language_model.load_rows(task)
        return lambda seed: language_model.build(task, rows, seed)
    assert isinstance(task, MnistTask)
    from paretune.data_weighting.tasks import mnist

    digits = mnist.load_digits(task.path)
    return lambda seed: mnist.build(task, digits, seed)
