"""A config.json that leaves a fact out means what its config class in transformers says."""

from __future__ import annotations

from typing import Any

import pytest

from weights.config.family import Family
from weights.families import FAMILIES

# gpt_neo's class takes another number of layers only together with what each of them is.
SIZES: dict[str, dict[str, Any]] = {"gpt_neo": {"num_layers": 24}}
VOCAB = 300_000  # every default id exists


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_left_out_is_the_config_classes_default(family: Family) -> None:
    from transformers import CONFIG_MAPPING

    sizes = {**family.sizes, "vocab_size": VOCAB, **SIZES.get(family.name, {})}
    whole = CONFIG_MAPPING[family.model_type](**sizes).to_dict()
    names = {"architectures": [family.architecture]}
    assert family.spec({**whole, **names}) == family.spec({**sizes, **names})
