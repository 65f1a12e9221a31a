"""Muon: momentum whose update of a matrix is made nearly orthogonal (Jordan et al., 2024)."""

import torch


def orthogonalise(g, num_iterations=5):
    """Newton-Schulz towards the nearest half-orthogonal matrices. g: [count, rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices only; those of one shape are updated together."""

    def __init__(self, matrices, lr, momentum=0.95, weight_decay=0.02):
        by_shape = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        super().__init__([{"params": group} for group in by_shape.values()],
                         {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            matrices, momentum = group["params"], group["momentum"]
            gradient = torch.stack([m.grad for m in matrices])
            state = self.state[matrices[0]]
            velocity = state.setdefault("velocity", torch.zeros_like(gradient))
            velocity.lerp_(gradient, 1 - momentum)
            update = orthogonalise(gradient.lerp(velocity, momentum)).float()
            rows, columns = gradient.shape[1:]
            update *= group["lr"] * max(1, rows / columns) ** 0.5
            for matrix, change in zip(matrices, update):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change)
