"""Ministral 8B (Mistral 2024): Mistral's block; some layers have a window."""

from __future__ import annotations

from dataclasses import replace

from weights.config.facts import ConfigReader
from weights.families import mistral
from weights.spec import ModelSpec


def _read(facts: ConfigReader) -> ModelSpec:
    return replace(mistral.FAMILY.read(facts), family="ministral")


FAMILY = replace(
    mistral.FAMILY,
    name="ministral",
    architecture="MinistralForCausalLM",
    other_names=("MinistralModel",),
    model_type="ministral",
    read=_read,
)
