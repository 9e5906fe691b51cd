"""The CLAMP paper's tables and figures, declared: layout, printed values, what run they need."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.report.papers.clamp_rows import (
    SHORT,
    by_batch,
    by_mu,
    draw_fronts,
    draw_judged,
    draw_perplexities,
    improvements,
    large,
    large_llama,
    losses_and_scores,
    losses_at,
    memory,
    minutes,
    perplexities,
    solver_share,
    win_rates,
)
from paretune.report.papers.exhibit import Exhibit

_LLAMA1, _LLAMA8 = "Llama-3.2-1B-Instruct", "Llama-3.1-8B-Instruct"
_JUDGED = "a judged run: `paretune compare {recipe}`, then `paretune judge RUN` with {judge}"


def _judged_figure(name: str, caption: str, recipe: str, judge: str) -> Exhibit:
    radar = name.endswith("a")
    return Exhibit(
        name=f"Figure {name}",
        caption=caption,
        needs=_JUDGED.format(recipe=recipe, judge=judge),
        keys=("method", "p"),
        spec=lambda keys: "+.1f",
        rows=improvements(name),
        draw=draw_judged(name),
        note=(
            "The paper does not say what the radar's axes are; here they are the aspects, and each "
            "method has the best improvement of all its p."
            if radar
            else ""
        ),
    )


def _share(keys: tuple[str, ...]) -> str:
    return ".1%"


def _table_5(keys: tuple[str, ...]) -> str:
    return ",.0f" if keys[0] == "training steps" else ".2f"


def _column(name: str, values: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], Any]:
    return {keys: {name: value} for keys, value in values.items()}


def _losses(rows: Mapping[str, Sequence[float]]) -> dict[tuple[str, ...], Any]:
    return {(p,): dict(zip(SHORT.values(), values, strict=True)) for p, values in rows.items()}


EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit(
        "Figure 1",
        "Task 1: DPO losses (a) and reward scores (b) of all methods",
        needs="a comparison of two objectives: `paretune compare saferlhf_compare`",
        keys=("method", "p"),
        rows=losses_and_scores,
        draw=draw_fronts,
    ),
    _judged_figure(
        "2a", "Task 2, Llama-3.2-1B: DeepSeek-V3's ratings", "ultrafeedback_compare", "DeepSeek-V3"
    ),
    _judged_figure(
        "2b",
        "Task 2, Llama-3.1-8B, equal weights: DeepSeek-V3's ratings",
        "ultrafeedback_compare_llama8b",
        "DeepSeek-V3",
    ),
    Exhibit(
        "Figure 3",
        "Perplexity on Tasks 1 and 2",
        needs="comparisons: `paretune compare saferlhf_compare`, `ultrafeedback_compare`",
        keys=("task",),
        spec=lambda keys: ".2f",
        rows=perplexities,
        draw=draw_perplexities,
        note="Means over objectives, preferences and seeds, of the chosen test responses.",
    ),
    Exhibit(
        "Table 2",
        "Solver's share of CLAMP's training time on Task 2",
        needs="a run of two and three objectives: docs/results/tables.md, Tables 2 and 4",
        keys=("model", "number of objectives"),
        spec=_share,
        printed=_column(
            "solver time / training time",
            {
                (_LLAMA1, "2"): 0.011,
                (_LLAMA1, "3"): 0.014,
                (_LLAMA8, "2"): 0.015,
                (_LLAMA8, "3"): 0.015,
            },
        ),
        rows=solver_share,
    ),
    Exhibit(
        "Table 3",
        "DPO loss of CLAMP at different μ, Task 1, p = [0.8, 0.2]",
        needs="a comparison of CLAMP at several μ: docs/results/tables.md, Table 3",
        keys=("DPO loss",),
        printed={
            ("Harmlessness",): {
                "μ = 0.01": 0.7014,
                "μ = 1": 0.7012,
                "μ = 100": 0.5916,
                "μ = 1000": 0.6049,
            },
            ("Helpfulness",): {
                "μ = 0.01": 0.6532,
                "μ = 1": 0.6536,
                "μ = 100": 0.7813,
                "μ = 1000": 0.8377,
            },
        },
        rows=by_mu,
        settings=True,
    ),
    _judged_figure(
        "4a", "Task 2, Llama-3.2-1B: Gemini 2.5 Flash's ratings", "ultrafeedback_compare", "Gemini"
    ),
    _judged_figure(
        "4b",
        "Task 2, Llama-3.1-8B, equal weights: Gemini 2.5 Flash's ratings",
        "ultrafeedback_compare_llama8b",
        "Gemini",
    ),
    _judged_figure(
        "5",
        "Task 2, Qwen3-8B, equal weights: both judges' ratings",
        "ultrafeedback_compare_qwen8b",
        "DeepSeek-V3 and Gemini",
    ),
    Exhibit(
        "Figure 6",
        "DPO loss of CLAMP at different p, Llama-3.2-1B, Task 2",
        needs="a run of three objectives: `paretune sweep ultrafeedback_clamp`",
        keys=("p = [p1, p2, p3]",),
        printed=_losses(
            {
                "[0.2, 0.3, 0.5]": (0.4833, 0.4725, 0.4615),
                "[0.2, 0.5, 0.3]": (0.4957, 0.4459, 0.4647),
                "[0.5, 0.2, 0.3]": (0.4817, 0.4637, 0.4622),
            }
        ),
        rows=lambda found: losses_at(found, lambda run: not large(run)),
    ),
    Exhibit(
        "Figure 7",
        "DPO loss of CLAMP at different p, Llama-3.1-8B, Task 2",
        needs="a run of three objectives: `paretune sweep ultrafeedback_clamp_llama8b`",
        keys=("p = [p1, p2, p3]",),
        printed=_losses(
            {
                "[0.1, 0.1, 0.8]": (0.4720, 0.4426, 0.3349),
                "[0.1, 0.8, 0.1]": (0.5093, 0.3909, 0.3978),
                "[0.8, 0.1, 0.1]": (0.4297, 0.4855, 0.4115),
            }
        ),
        rows=lambda found: losses_at(found, large_llama),
    ),
    Exhibit(
        "Table 4",
        "GPU memory of CLAMP on Task 2",
        needs="a run of one to three objectives: docs/results/tables.md, Tables 2 and 4",
        keys=("model", "number of objectives"),
        spec=lambda keys: ".1f",
        printed=_column(
            "max GPU memory allocated (GB)",
            {
                (_LLAMA1, "1"): 20.5,
                (_LLAMA1, "2"): 20.6,
                (_LLAMA1, "3"): 20.6,
                (_LLAMA8, "1"): 67.7,
                (_LLAMA8, "2"): 68.2,
                (_LLAMA8, "3"): 68.3,
            },
        ),
        rows=memory,
        note="Without a GPU it is the memory of the process. The paper takes one backward pass an "
        "objective, as `train.gradients=per_objective` does; ours is one for all by default.",
    ),
    Exhibit(
        "Table 5",
        "CLAMP at different batch sizes, Task 1, p = [0.8, 0.2]",
        needs="a comparison of CLAMP at several batch sizes: docs/results/tables.md, Table 5",
        keys=("batch size",),
        spec=_table_5,
        printed={
            ("DPO loss of harmlessness",): {"5": 0.62, "10": 0.62, "15": 0.62, "20": 0.62},
            ("DPO loss of helpfulness",): {"5": 0.81, "10": 0.88, "15": 0.84, "20": 0.85},
            ("training steps",): {"5": 2500, "10": 800, "15": 500, "20": 450},
        },
        rows=by_batch,
        settings=True,
    ),
    Exhibit(
        "Table 6",
        "Training time for one p, Task 1",
        needs="a comparison of methods: `paretune compare saferlhf_compare`",
        keys=("",),
        spec=lambda keys: ".0f",
        printed={
            ("overall training time (min)",): {
                "CLAMP": 37,
                "RiC": 54,
                "MODPO": 273,
                "MORLHF": 471,
                "Rewarded Soups": 457,
            }
        },
        rows=minutes,
    ),
    Exhibit(
        "Table 7",
        "AlpacaEval 2.0, Llama-3.1-8B of Task 2",
        needs="a judge's annotations, scored: `paretune alpaca score "
        "RUN/alpaca_eval/POINT/annotations.json --gamed df_gamed.csv`",
        keys=("model",),
        spec=lambda keys: ".2f",
        printed=_column(
            "LC win rate",
            {
                ("Fine-tuned Llama-3.1-8B-Instruct (ours)",): 24.22,
                ("Llama-3.1-8B-Instruct (original model)",): 20.85,
                ("Mixtral-8x7B-Instruct-v0.1",): 23.69,
                ("Llama-3-8B-Instruct",): 22.92,
                ("Mistral-7B-Instruct-v0.2",): 17.11,
            },
        ),
        rows=win_rates,
    ),
)
