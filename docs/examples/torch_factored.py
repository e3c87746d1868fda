# SPDX-License-Identifier: Apache-2.0
"""A perceptron trained by several processes whose layers exchange factors.

    python3 -m torch.distributed.run --standalone --nproc_per_node=2 torch_factored.py

A script for DistributedDataParallel becomes this by two lines: the import, and factored(model) in the place of DistributedDataParallel(model).
"""
import isgqcoll.torch
import torch
import torch.distributed as dist
from torch import nn


def spirals(count, generator):
    """Two classes: points on one spiral or the other, each given by 64 random projections."""
    label = torch.randint(2, (count,), generator=generator)
    radius = torch.rand(count, generator=generator)
    angle = 6 * radius + torch.pi * label
    points = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
    return torch.sin(4 * points @ torch.randn(2, 64, generator=torch.Generator().manual_seed(7))), label


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
    model = isgqcoll.torch.factored(model, quantizer="isgq:bits=4")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(1 + dist.get_rank())
    for _ in range(100):
        x, label = spirals(32, generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    x, label = spirals(2000, torch.Generator().manual_seed(0))
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == label).float().mean().item()
    if dist.get_rank() == 0:
        print(model.isgq_report())
        print(f"accuracy {accuracy:.3f}")
    assert accuracy > 0.9
    model.isgq_remove()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
