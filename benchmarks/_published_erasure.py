"""UCE's loop over layers, stated in torch from its equation and its code of 2025: what we compare with.

Each key and value matrix W of cross-attention becomes, in float32,

    W' = (lam W + sum s v c^T + sum s v p^T) (lam I + sum s c c^T + sum s p p^T)^-1,   v = W g or W p

Values are computed once a distinct state and layer; in each layer every state adds an outer product to both
sums, and the second sum is inverted.

Source: Gandikota et al., 2308.14761, eq. (7); rohitgandikota/unified-concept-editing at 28c81ed, the loop of
trainscripts/uce_sd_erase.py and its constants.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAM, SCALE = 0.5, 1.0


@dataclass(frozen=True)
class Task:
    """`states` [N, D] shall give what `wanted` [N, D] give: concepts and their guides, then what stays."""

    states: Tensor
    wanted: Tensor

    def values(self, weights: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return what each layer makes of each wanted state [layer][N], of equal ones once."""
        known: dict[bytes, list[Tensor]] = {}
        for state in self.wanted:
            key = state.numpy().tobytes()
            if key not in known:
                known[key] = [weight @ state for weight in weights]
        found = [known[state.numpy().tobytes()] for state in self.wanted]
        return [[layers[place] for layers in found] for place in range(len(weights))]


def one_state_at_a_time(weight: Tensor, task: Task, values: Sequence[Tensor]) -> Tensor:
    """Return W' as published: two outer products a state."""
    left, right = LAM * weight, LAM * torch.eye(weight.shape[1])
    for state, value in zip(task.states, values, strict=True):
        left += SCALE * (value[:, None] @ state[None])
        right += SCALE * (state[:, None] @ state[None])
    return left @ torch.inverse(right)


def one_product_a_sum(weight: Tensor, task: Task, values: Sequence[Tensor]) -> Tensor:
    """Return W' with each sum as one matrix product: the same loop over layers at its best."""
    left = LAM * weight + SCALE * (torch.stack(list(values), dim=1) @ task.states)
    right = LAM * torch.eye(weight.shape[1]) + SCALE * (task.states.T @ task.states)
    return left @ torch.inverse(right)
