"""What importing the package brings along, and where operations may run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import kernels


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_keys_and_workspace_sizes_need_no_torch():
    code = (
        "import sys, kernels\n"
        "kernels.derive_key(1, 2), kernels.attention_workspace_bytes, kernels.AttentionShape\n"
        "import kernels.workspace\n"
        "print('torch' in sys.modules)"
    )
    assert fresh(code) == "False"


def test_every_public_name_loads_and_no_other_room_is_imported():
    code = (
        "import sys, kernels\n"
        "[getattr(kernels, name) for name in kernels.__all__]\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'server', 'weights', 'loadtest',"
        " 'transformers'}))"
    )
    assert fresh(code) == "[]"


def test_names_that_do_not_exist_raise():
    with pytest.raises(AttributeError, match="no attribute 'softmax'"):
        kernels.softmax  # noqa: B018


def test_the_reference_has_every_operation():
    from kernels import reference

    others = {"as_int64", "derive_key", "pack_linear", "prepare_attention", "rotary_table"}
    operations = {name for name in kernels.__all__ if name[0].islower()}
    sizes = {"attention_workspace_bytes"}
    assert all(hasattr(reference, name) for name in operations - others - sizes)


def test_a_device_without_kernels_is_an_error_that_names_the_operation():
    x = torch.zeros(1, 4, device="meta")
    with pytest.raises(NotImplementedError, match="activation has no kernel for meta devices"):
        kernels.activation(x, "silu")


def test_transformers_imports_beside_us():
    """It probes for another package of our name."""
    assert fresh("import kernels, transformers; transformers.LlamaConfig(); print('ok')") == "ok"
