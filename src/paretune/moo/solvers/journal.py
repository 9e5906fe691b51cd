"""The runs of an exploration on disk, so that it can be resumed.

A file of JSON lines: first what was asked for, then each run as it ends. Whoever explores again
asks the journal before every run; as nothing else is random, what comes of it is bit for bit what
an exploration that was not interrupted gives.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paretune.errors import InputError
from paretune.files import append_jsonl, read_objects
from paretune.moo.numerics.kkt import KKTParts
from paretune.moo.preference import Preference
from paretune.moo.solvers.result import History, Learnt, Result

_FORMAT = "paretune journal, 4"
_BEGINS = b'{"format": "paretune journal, '
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, another one in each process


class Journal:
    """The runs in a file, and those that are added to it.

    Args:
        path: the file; it is made where it is missing.
        asked: what was asked for, as JSON.

    Raises InputError where the file is of something else.
    """

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path, self._lock = path, threading.Lock()
        self._found: dict[str, dict[str, Any]] = {}
        header = {"format": _FORMAT, **asked}
        if path.exists() and (rows := read_journal(path)):
            changed = [key for key in header if rows[0].get(key) != header[key]]
            if changed:
                raise InputError(
                    f"'{path}' is of another exploration ({', '.join(changed)} differ): "
                    "name another file, or delete it."
                )
            self._found = {row["key"]: row for row in rows[1:] if "key" in row}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
            append_jsonl(path, [header])

    def find(self, key: str, like: Tensor) -> Result | None:
        """The run of that key, with x as a tensor like this one."""
        row = self._found.get(key)
        return None if row is None else read_result(row["result"], like)

    def add(self, key: str, run: Result) -> None:
        """Keep a run; it is on the disk once this returns."""
        with self._lock:
            append_jsonl(self.path, [{"key": key, "result": write_result(run)}])


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; a last one that was cut off is deleted.

    Raises InputError where it is none; the file stays as it is then.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    if data[: len(_BEGINS)] != _BEGINS[: len(data)]:
        raise InputError(f"'{path}' is no journal of an exploration: name another file.")
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    rows = read_objects(path, nan=True)
    if rows and rows[0].get("format") != _FORMAT:
        raise InputError(f"'{path}' holds no exploration of this version of paretune.")
    return rows


def key_of(preference: Preference, shift: Sequence[float], start: Tensor | Result) -> str:
    """What a run depends on, as a digest."""
    tensors = [start] if isinstance(start, Tensor) else _tensors(start)
    learnt = None if isinstance(start, Tensor) else start.learnt
    known = None if learnt is None else _write_learnt(learnt)
    return digest(preference.weights, list(shift), [t.tolist() for t in tensors], known)


def digest(*values: Any) -> str:
    """Of what JSON can hold, numbers to the last bit."""
    text = _ADDRESS.sub("", json.dumps(values))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _tensors(run: Result) -> list[Tensor]:
    return [run.x, run.multipliers, run.constraint_multipliers, run.inequality_multipliers]


_VECTORS = (
    "objectives",
    "constraints",
    "multipliers",
    "constraint_multipliers",
    "inequalities",
    "inequality_multipliers",
)
_NUMBERS = (
    "rho",
    "kkt_residual",
    "n_gradient_evaluations",
    "n_function_evaluations",
    "converged",
    "message",
)
_COLUMNS = ("objectives", "multipliers", "kkt_residual", "min_norm", "feasibility")


def write_result(run: Result) -> dict[str, Any]:
    """A result as JSON, to the last bit."""
    row: dict[str, Any] = {"x": run.x.tolist()}
    row |= {name: getattr(run, name).tolist() for name in _VECTORS}
    row |= {name: getattr(run, name) for name in _NUMBERS}
    row["kkt_parts"] = list(run.kkt_parts)
    columns = {name: getattr(run.history, name) for name in _COLUMNS}
    row["learnt"] = None if run.learnt is None else _write_learnt(run.learnt)
    row["history"] = {k: None if v is None else v.tolist() for k, v in columns.items()}
    return row


def read_result(row: dict[str, Any], like: Tensor | None = None) -> Result:
    """A result from JSON, with x as a tensor like this one; without, float64 of its own shape."""

    def tensor(values: Any) -> Any:
        return None if values is None else torch.tensor(values, dtype=torch.float64)

    values = {name: tensor(row[name]) for name in _VECTORS} | {n: row[n] for n in _NUMBERS}
    size = len(row["multipliers"])
    columns = {name: tensor(row["history"][name]) for name in _COLUMNS}
    for name in ("objectives", "multipliers"):
        columns[name] = columns[name].reshape(-1, size)
    x = tensor(row["x"])
    return Result(
        x=x if like is None else x.to(like).reshape(like.shape),
        kkt_parts=KKTParts(*row["kkt_parts"]),
        history=History(**columns),
        learnt=_read_learnt(row.get("learnt"), x if like is None else like),
        **values,
    )


def _write_learnt(learnt: Learnt) -> dict[str, Any]:
    rows, hessian, lagrangian = learnt.rows, learnt.hessian, learnt.lagrangian
    return {
        "curvature": learnt.curvature,
        "swing": learnt.swing,
        "bends": learnt.bends.tolist(),
        "rows": None if rows is None else rows.tolist(),
        "hessian": None if hessian is None else hessian.tolist(),
        "lagrangian": None if lagrangian is None else lagrangian.tolist(),
    }


def _read_learnt(row: dict[str, Any] | None, like: Tensor) -> Learnt | None:
    if row is None:
        return None
    rows, hessian, lagrangian = row["rows"], row["hessian"], row.get("lagrangian")
    return Learnt(
        row["curvature"],
        row["swing"],
        torch.tensor(row["bends"], dtype=torch.float64).to(like),
        None if rows is None else torch.tensor(rows, dtype=torch.float64).to(like),
        None if hessian is None else np.array(hessian),
        None if lagrangian is None else np.array(lagrangian),
    )
