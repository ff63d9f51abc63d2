"""The optimiser of the demo model: Muon for the layers' matrices, AdamW for the rest.

A helper of `weights.demo.train`, not run by itself. Written here rather than taken from
torch because this one keeps to float32, which a CPU multiplies faster than bfloat16, and
because its state is a flat dictionary of tensors, which safetensors can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Coefficients of the quintic iteration that pushes all singular values towards one.
QUINTIC = (3.4445, -4.7750, 2.0315)
# Matrices handled at once: enough to save calls, few enough to share among threads.
STACK = 3


@dataclass(frozen=True)
class Rates:
    """Learning rates at the plateau of the schedule, and the other constants."""

    matrices: float = 0.02
    embedding: float = 0.004
    norms: float = 0.002
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    eps: float = 1e-10


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Return, for each matrix of the stack, a nearby one with singular values near one."""
    a, b, c = QUINTIC
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    result: Tensor = x.mT if tall else x
    return result


class Optimiser:
    """Update a model's weights in place; matrices of one shape are handled as one stack."""

    def __init__(self, model: nn.Module, rates: Rates) -> None:
        self.rates = rates
        self.stacks: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = {}
        self.others: list[tuple[str, nn.Parameter, float]] = []
        self.state: dict[str, Tensor] = {}
        for name, weight in model.named_parameters():
            self.state[f"{name}.first"] = torch.zeros_like(weight)
            if ".layers." in name and weight.dim() == 2:
                self.stacks.setdefault(tuple(weight.shape), []).append((name, weight))
                continue
            self.state[f"{name}.second"] = torch.zeros_like(weight)
            rate = rates.embedding if weight.dim() == 2 else rates.norms
            self.others.append((name, weight, rate))

    def step(self, count: int, factor: float, pool: Executor) -> None:
        """Apply update number `count` (from 1) at `factor` times the plateau's rates."""
        jobs = [
            pool.submit(self._step_matrices, members[start : start + STACK], factor)
            for members in self.stacks.values()
            for start in range(0, len(members), STACK)
        ]
        for name, weight, rate in self.others:
            self._step_other(name, weight, rate * factor, count)
        for job in jobs:
            job.result()

    @torch.no_grad()
    def _step_matrices(self, members: list[tuple[str, nn.Parameter]], factor: float) -> None:
        rates = self.rates
        updates = []
        for name, weight in members:
            if weight.grad is None:
                raise RuntimeError(f"no gradient for {name}")
            momentum = self.state[f"{name}.first"]
            momentum.lerp_(weight.grad, 1 - rates.momentum)
            updates.append(weight.grad.lerp(momentum, rates.momentum))
        rate = rates.matrices * factor
        for (_, weight), update in zip(members, orthogonalise(torch.stack(updates)), strict=True):
            rows, columns = weight.shape
            weight.mul_(1 - rate * rates.weight_decay)
            weight.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)

    @torch.no_grad()
    def _step_other(self, name: str, weight: nn.Parameter, rate: float, count: int) -> None:
        rates = self.rates
        if weight.grad is None:
            raise RuntimeError(f"no gradient for {name}")
        first, second = self.state[f"{name}.first"], self.state[f"{name}.second"]
        first.lerp_(weight.grad, 1 - rates.beta1)
        second.lerp_(weight.grad.square(), 1 - rates.beta2)
        scale = (second / (1 - rates.beta2**count)).sqrt_().add_(rates.eps)
        weight.addcdiv_(first, scale, value=-rate / (1 - rates.beta1**count))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved state, which must name exactly the tensors this one keeps."""
        if state.keys() != self.state.keys():
            raise ValueError("the saved optimiser state belongs to another model")
        for name, value in state.items():
            self.state[name].copy_(value)
