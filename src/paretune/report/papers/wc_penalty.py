"""The WC-Penalty paper's tables and figures: printed values, and what of a weighing they show.

Its radars and curves are drawn by `paretune weigh` into its own folder; they are taken from there.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from paretune.moo.indicators import area_ratio, epsilon_additive, hypervolume, nondominated
from paretune.report.papers.drawing import draw_bars, finite
from paretune.report.papers.exhibit import Exhibit, Found, Row, Values, as_file_name
from paretune.report.papers.weighing import Weighing

_OURS = ("wc_augmented", "wc_penalty")
_BASELINES = {"moml": "MOML", "moco": "MoCo", "forum": "FORUM", "itd": "ITD", "soba": "SOBA"}
_STRONG, _SLIGHT = 0.9, 0.5  # weights of 0.96 and of 0.84 or less lie above and between

Kind = Callable[[Weighing], bool]
Indicator = Callable[[np.ndarray, Weighing, int], float]


def _reward(run: Weighing) -> bool:
    return str(run.task.get("name")) == "reward_model"


def _mnist(run: Weighing) -> bool:
    return str(run.task.get("name")) == "mnist"


def _language(size: str) -> Kind:
    """Weighings for a language model of a size; of the smallest, all that name no other."""

    def wanted(run: Weighing) -> bool:
        if run.task.get("name") != "language_model":
            return False
        name = run.model.lower()
        if size == "1b":
            return not any(f"-{other}" in name for other in ("3b", "8b"))
        return f"-{size}" in name

    return wanted


def _strong(preference: Mapping[str, float]) -> bool:
    return max(preference.values()) > _STRONG


def _copied(kind: Kind, *files: str) -> Callable[[Found, Path, str], list[Path]]:
    """Takes the figures of the weighings of a kind."""

    def draw(found: Found, folder: Path, stem: str) -> list[Path]:
        drawn = []
        for run in filter(kind, found.weighings):
            for letter, file in zip("abcd", files, strict=False):
                if (run.path / file).is_file():
                    part = letter if len(files) > 1 else ""
                    target = folder / f"{stem}{part}-{found.file_name(run)}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(run.path / file, target)
                    drawn.append(target)
        return drawn

    return draw


def _volume(points: np.ndarray, run: Weighing, seed: int) -> float:
    return hypervolume(points, run.reference_point).value


def _epsilon(points: np.ndarray, run: Weighing, seed: int) -> float:
    union = np.concatenate([run.losses(method, seed) for method in run.methods])
    return epsilon_additive(points, union[nondominated(union)])


def _indicators(kind: Kind, of: Indicator) -> Callable[[Found], Iterator[Row]]:
    """An indicator of all preferences of ours, of each alone, and of the baselines."""

    def rows(found: Found) -> Iterator[Row]:
        for run in filter(kind, found.weighings):
            for ours in (method for method in _OURS if method in run.methods):
                values = {"Ours": _over_seeds(run, ours, of, _strong)}
                for name in run.objectives:
                    values[name] = _over_seeds(run, ours, of, _favours(name))
                values["Ours - Equal"] = _over_seeds(run, ours, of, _equal)
                for method, title in _BASELINES.items():
                    values[title] = _over_seeds(run, method, of, None)
                source = found.source(run, ours)
                yield Row(("",), source, {_title(n): v for n, v in finite(values).items()})

    return rows


def _title(name: str) -> str:
    return name if name[:1].isupper() else name.replace("_", " ").capitalize()


def _favours(name: str) -> Callable[[Mapping[str, float]], bool]:
    return lambda preference: preference[name] > _STRONG


def _equal(preference: Mapping[str, float]) -> bool:
    return max(preference.values()) - min(preference.values()) < 1e-6


def _over_seeds(
    run: Weighing,
    method: str,
    of: Indicator,
    chosen: Callable[[Mapping[str, float]], bool] | None,
) -> list[float]:
    found = []
    for seed in run.seeds:
        points = run.losses(method, seed, chosen)
        if len(points):
            found.append(of(points, run, seed))
    return found


def _ratios(kind: Kind) -> Callable[[Found], Iterator[Row]]:
    """Areas of ours over those of the baselines, means over seeds."""

    def rows(found: Found) -> Iterator[Row]:
        for run in filter(kind, found.weighings):
            for ours in (method for method in _OURS if method in run.methods):
                ratios: dict[str, list[float]] = {}
                for method, title in _BASELINES.items():
                    for seed in run.seeds:
                        points = run.losses(ours, seed, _strong), run.losses(method, seed)
                        if len(points[0]) and len(points[1]) and len(run.objectives) > 2:
                            ratios.setdefault(title, []).append(area_ratio(*points))
                yield Row(("S ours / S",), found.source(run, ours), finite(ratios))

    return rows


def _draw_epsilons(kind: Kind) -> Callable[[Found, Path, str], list[Path]]:
    def draw(found: Found, folder: Path, stem: str) -> list[Path]:
        drawn = []
        for row in _indicators(kind, _epsilon)(found):
            bars = {name: {"": value} for name, value in row.values.items() if value is not None}
            if bars:
                path = folder / f"{stem}-{as_file_name(row.source)}.png"
                title = f"ε against the front of all methods, {row.source}"
                drawn.append(draw_bars(bars, path, title=title, quantity="ε (smaller is better)"))
        return drawn

    return draw


# ------------------------------------------------------------------ the exhibits

_REWARD = "`paretune weigh weigh_reward_helpsteer`"
_SMALL = "`paretune weigh weigh_llm_helpsteer_1b`"
_MIDDLE = "`paretune weigh weigh_llm_helpsteer_3b`"
_LARGE = "`paretune weigh weigh_llm_helpsteer_8b`"
_DIGITS = "`paretune weigh weigh_mnist`"
_RADARS = ("weigh_preferences.png", "weigh_methods.png")
_CURVES = "weigh_convergence.png"
_OBJECTIVES = "weigh_objectives.png"
_CRITERIA = ("Helpfulness", "Correctness", "Coherence", "Complexity", "Verbosity")


def _figure(
    name: str, caption: str, needs: str, kind: Kind, *files: str, note: str = ""
) -> Exhibit:
    return Exhibit(f"Figure {name}", caption, needs, draw=_copied(kind, *files), note=note)


def _volumes(name: str, caption: str, needs: str, kind: Kind, printed: Values) -> Exhibit:
    return Exhibit(
        f"Table {name}",
        caption,
        needs,
        keys=("",),
        spec=lambda keys: ".2e",
        printed={("",): printed},
        rows=_indicators(kind, _volume),
        note="A hypervolume depends on its reference point, which the paper does not give.",
    )


def _criteria(values: Sequence[float]) -> dict[str, float | None]:
    return dict(zip(("Ours", *_CRITERIA, "MOML", "MoCo"), values, strict=True))


def _epsilons(name: str, caption: str, needs: str, kind: Kind) -> Exhibit:
    return Exhibit(
        f"Figure {name}",
        caption,
        needs,
        keys=("",),
        spec=lambda keys: ".4g",
        rows=_indicators(kind, _epsilon),
        draw=_draw_epsilons(kind),
    )


EXHIBITS: tuple[Exhibit, ...] = (
    _figure(
        "6",
        "Reward model's data weighting: all preferences (a), all methods (b)",
        _REWARD,
        _reward,
        *_RADARS,
    ),
    Exhibit(
        "Appendix E.1",
        "Area ratios of Figure 6b",
        _REWARD,
        keys=("",),
        spec=lambda keys: ".2f",
        printed={("S ours / S",): {"MOML": 1.67, "FORUM": 1.36, "MoCo": 1.56}},
        rows=_ratios(_reward),
    ),
    _figure(
        "7", "Language model's data weighting: all preferences (a), all methods (b)", _SMALL,
        _language("1b"), *_RADARS,
    ),
    _volumes(
        "1", "Hypervolume in LLM alignment", _SMALL, _language("1b"),
        _criteria((2.47e-2, 1.11e-2, 1.16e-2, 1.40e-2, 7.22e-4, 9.45e-3, 7.02e-7, 1.66e-5)),
    ),
    _epsilons("8", "ε-metric in LLM alignment", _SMALL, _language("1b")),
    Exhibit(
        "Figure 10",
        "A toy example",
        "`python examples/ecmo_toy.py`, which draws docs/images/ecmo_toy.png",
    ),
    _figure(
        "11",
        "Reward model: slight preferences (a), losses along the way (b)",
        _REWARD,
        _reward,
        "weigh_preferences.png",
        _OBJECTIVES,
        note="(a): the panels of slight preferences.",
    ),
    _figure(
        "12",
        "Reward model: losses against seconds and steps",
        _REWARD,
        _reward,
        _CURVES,
    ),
    _figure(
        "13",
        "Reward model: ITD and SOBA",
        _REWARD,
        _reward,
        "weigh_preferences.png",
        note="The panels of ITD and SOBA.",
    ),
    _figure(
        "14",
        "Language model: slight preferences (a), losses along the way (b)",
        _SMALL,
        _language("1b"),
        "weigh_preferences.png",
        _OBJECTIVES,
        note="As in Figure 11.",
    ),
    _figure(
        "15",
        "Language model: ITD and SOBA",
        _SMALL,
        _language("1b"),
        "weigh_preferences.png",
        note="The panels of ITD and SOBA.",
    ),
    _figure("16", "Language model: MOML and MoCo", _SMALL, _language("1b"), "weigh_methods.png"),
    _figure("17a, b", "Language model of 3B", _MIDDLE, _language("3b"), *_RADARS),
    _figure("17c", "Language model of 8B", _LARGE, _language("8b"), "weigh_preferences.png"),
    _volumes(
        "4", "Hypervolume in larger-scale (3B) LLM alignment", _MIDDLE, _language("3b"),
        _criteria((4.87, 3.53, 3.04, 3.44, 2.43, 3.67, 8.48e-1, 8.49e-4)),
    ),
    _epsilons("18", "ε-metric, 3B", _MIDDLE, _language("3b")),
    _figure(
        "19", "Meta-learning: all preferences (a), all methods (b)", _DIGITS, _mnist, *_RADARS
    ),
    _volumes(
        "5", "Hypervolume in multi-objective meta-learning", _DIGITS, _mnist,
        {"Ours": 1.14e-3, "Ours - Equal": 5.10e-4, "MOML": 1.19e-4, "MoCo": 1.51e-4},
    ),
    _epsilons("20", "ε-metric in meta-learning", _DIGITS, _mnist),
)  # fmt: skip
