"""What importing the package brings along, and where operations may run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import kernels
from kernels.backends import TORCH_CPU, TRITON_CUDA, KernelBackend
from kernels.dispatch import using


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
        "import kernels.footprint.attention\n"
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

    others = {
        "alibi_slopes",
        "as_int64",
        "derive_key",
        "pack_linear",
        "prepare_attention",
        "rotary_table",
    }
    operations = {name for name in kernels.__all__ if name[0].islower()}
    sizes = {"attention_workspace_bytes"}
    assert all(hasattr(reference, name) for name in operations - others - sizes)


def test_a_device_without_kernels_is_an_error_that_names_the_operation():
    x = torch.zeros(1, 4, device="meta")
    with pytest.raises(NotImplementedError, match="no backend has kernels for meta devices"):
        kernels.activation(x, "silu")


def test_a_backend_runs_in_its_context_and_names_the_operation_that_it_declines():
    """In place of the device's first backend, on its own device, and there alone."""
    own = {"activation": f"{__name__}:doubled"}
    backend = KernelBackend("doubling", "cpu", own, lambda shape: {"scratch": shape.block_size})
    x = torch.ones(1, 4)
    with using(backend):
        assert kernels.activation(x, "silu").tolist() == [[2.0] * 4]
        with pytest.raises(NotImplementedError, match="doubling has no gated_activation"):
            kernels.gated_activation(x, "silu")
        with pytest.raises(NotImplementedError, match="meta devices"):
            kernels.activation(x.to("meta"), "silu")
    assert backend.declined(("linear", "activation", "sample")) == ("linear", "sample")
    assert kernels.activation(x, "relu").tolist() == x.tolist()


def doubled(x: torch.Tensor, kind: str) -> torch.Tensor:
    return 2 * x


@pytest.mark.parametrize("backend", [TORCH_CPU, TRITON_CUDA], ids=lambda backend: backend.name)
def test_every_operation_of_a_backend_is_there(backend: KernelBackend):
    names = {name for name in kernels.__all__ if name[0].islower()}
    others = {"alibi_slopes", "as_int64", "attention_workspace_bytes", "derive_key", "rotary_table"}
    assert set(backend.operations) == names - others
    for name in backend.operations:
        assert callable(backend.implementation(name))
