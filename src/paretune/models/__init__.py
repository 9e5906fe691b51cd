"""Base models and their tokenizers: loading them, and those that need no network."""

from paretune.models.built_in import (
    BUILT_IN,
    EMBEDDED,
    EMBEDDED_INSTALL,
    EMBEDDED_ON_HUB,
    TOY,
    built_in_folder,
    embedded_folder,
)
from paretune.models.loading import Head, load_model_and_tokenizer
from paretune.models.placement import Dtype, Quantization, gpu, is_sharded, whole
from paretune.models.remote_code import TRUST_VARIABLE, remote_code_is_allowed
from paretune.models.source import check_model, check_place
from paretune.models.template_values import asks_for_date, with_template_variables

__all__ = [
    "BUILT_IN",
    "EMBEDDED",
    "EMBEDDED_INSTALL",
    "EMBEDDED_ON_HUB",
    "TOY",
    "TRUST_VARIABLE",
    "Dtype",
    "Head",
    "Quantization",
    "asks_for_date",
    "built_in_folder",
    "check_model",
    "check_place",
    "embedded_folder",
    "gpu",
    "is_sharded",
    "load_model_and_tokenizer",
    "remote_code_is_allowed",
    "whole",
    "with_template_variables",
]
