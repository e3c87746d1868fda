#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel with gradients of few bits: Fashion-MNIST, and two lines more than without isgqcoll.

    torchrun --nproc_per_node 4 torch_ddp_hook.py --quantizer isgq:bits=4

Prints the loss of each epoch, the accuracy on test images, and what was sent next to an fp32 ring.
"""
import argparse
import gzip
import pathlib

import numpy
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import isgqcoll.torch


def images(folder, which, count):
    """Pixels in [count, 1, 28, 28] and labels, of the files as they are published."""
    with gzip.open(folder / f"{which}-images-idx3-ubyte.gz") as file:
        pixels = numpy.frombuffer(file.read(16 + 784 * count), numpy.uint8, offset=16).astype(numpy.float32) / 255
    with gzip.open(folder / f"{which}-labels-idx1-ubyte.gz") as file:
        labels = numpy.frombuffer(file.read(8 + count), numpy.uint8, offset=8).astype(numpy.int64)
    return torch.utils.data.TensorDataset(torch.from_numpy(pixels).view(-1, 1, 28, 28), torch.from_numpy(labels))


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(32 * 7 * 7, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--samples", type=int, default=60000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="images of a step on each rank")
    parser.add_argument("--quantizer", default="isgq:bits=4")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, nranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    train, test = images(options.data, "train", options.samples), images(options.data, "t10k", min(10000, options.samples))
    sampler = torch.utils.data.DistributedSampler(train, nranks, rank)
    loader = torch.utils.data.DataLoader(train, options.batch, sampler=sampler, drop_last=True)

    model = DistributedDataParallel(network())
    state = isgqcoll.torch.State(model=model, quantizer=options.quantizer)  # <- the two lines
    model.register_comm_hook(state, isgqcoll.torch.hook)  # <-

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros(())
        for pixels, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(pixels), labels)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        dist.all_reduce(total)
        if rank == 0:
            print(f"epoch {epoch}: loss {total.item() / nranks / max(1, len(loader)):.4f}", flush=True)

    stats = state.communicator.stats()
    if rank == 0:
        with torch.no_grad():
            hits = sum((model.module(pixels).argmax(1) == labels).sum().item() for pixels, labels in torch.utils.data.DataLoader(test, 500))
        ring = 2 * (nranks - 1) / nranks * stats.input_bytes
        print(f"accuracy {100 * hits / len(test):.2f} %; sent {stats.wire_bytes} bytes, {ring / max(1, stats.wire_bytes):.1f} times fewer than fp32")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
