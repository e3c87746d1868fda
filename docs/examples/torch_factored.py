#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A network on Fashion-MNIST whose linear layers send factors instead of gradients. A script for DistributedDataParallel becomes this by two lines.

    torchrun --nproc_per_node 4 torch_factored.py

Prints the loss of each epoch, what became of each layer, and the accuracy on test images next to what was sent.
"""
import argparse
import gzip
import pathlib

import numpy
import torch
import torch.distributed as dist
import torch.nn.functional as F

import isgqcoll.torch  # <- the first line


def images(folder, which, count):
    """Pixels in [count, 784] and labels, of the files as they are published."""
    with gzip.open(folder / f"{which}-images-idx3-ubyte.gz") as file:
        pixels = numpy.frombuffer(file.read(16 + 784 * count), numpy.uint8, offset=16).astype(numpy.float32) / 255
    with gzip.open(folder / f"{which}-labels-idx1-ubyte.gz") as file:
        labels = numpy.frombuffer(file.read(8 + count), numpy.uint8, offset=8).astype(numpy.int64)
    return torch.utils.data.TensorDataset(torch.from_numpy(pixels).view(-1, 784), torch.from_numpy(labels))


def network():
    sizes = [784, 1000, 300, 100, 10]
    layers = [layer for i in range(4) for layer in (torch.nn.Linear(sizes[i], sizes[i + 1]), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers[:-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--samples", type=int, default=60000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="images of a step on each rank")
    parser.add_argument("--quantizer", default="isgq:bits=4")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank, nranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    train, test = images(options.data, "train", options.samples), images(options.data, "t10k", min(10000, options.samples))
    sampler = torch.utils.data.DistributedSampler(train, nranks, rank)
    loader = torch.utils.data.DataLoader(train, options.batch, sampler=sampler, drop_last=True)

    model = isgqcoll.torch.factored(network(), quantizer=options.quantizer)  # <- the second; was: DistributedDataParallel(network())

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

    sent = model.isgq_communicator.stats().wire_bytes
    if rank == 0:
        print(model.isgq_report())
        with torch.no_grad():
            hits = sum((model(pixels).argmax(1) == labels).sum().item() for pixels, labels in torch.utils.data.DataLoader(test, 500))
        gradient = sum(parameter.numel() for parameter in model.parameters()) * 4
        ring = 2 * (nranks - 1) / nranks * gradient * options.epochs * len(loader)
        print(f"accuracy {100 * hits / len(test):.2f} %; sent {sent} bytes, {ring / max(1, sent):.1f} times fewer than fp32")
    model.isgq_remove()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
