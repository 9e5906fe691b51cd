"""What is wrong with the rows of a `MixtureRecipe`, told before any model is loaded."""

from collections.abc import Iterable

from paretune.errors import InputError
from paretune.recipes.mixture import MixtureRecipe, SetsTask
from paretune.training.data_weighting_config import DataWeightingConfig
from paretune.training.part_rows import check_rows, pairs_refused
from paretune.training.responses import too_few


def check_sets(recipe: MixtureRecipe, methods: Iterable[DataWeightingConfig]) -> None:
    """See, without a model or its tokenizer, that all rows can be read and weighed.

    Args:
        methods: The arguments of each of the recipe's methods.

    Raises:
        InputError: rows that are missing or cannot be read; pairs that a method does not take, or
            in the test rows alone; a criterion whose one row cannot be divided.
    """
    task = recipe.task
    if not isinstance(task, SetsTask):
        return
    methods = list(methods)
    kinds = {"training set": task.sets, "validation set": task.criteria, "test set": task.test}
    read = {
        kind: {name: check_rows(source, f"{kind} {name!r}") for name, source in files.items()}
        for kind, files in kinds.items()
        if files
    }
    paired = {
        kind: any(form == "pairs" for form, _ in some.values()) for kind, some in read.items()
    }
    trained = paired["training set"] or paired["validation set"]
    if trained and (refusing := [each.method for each in methods if each.method != "lookahead"]):
        raise pairs_refused(refusing[0])
    if paired.get("test set") and not trained:
        raise InputError("Pairs can be evaluated where there are some in the training.")
    if any(each.held_out > 0 for each in methods):
        for name, (form, distinct) in read["validation set"].items():
            if distinct < 2 and form != "texts":  # one text may give several rows
                raise too_few(name)
