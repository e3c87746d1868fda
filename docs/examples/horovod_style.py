#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A script with Horovod's names, on isgqcoll: only the import line is another. Trains a small network on Fashion-MNIST.

    torchrun --nproc_per_node 4 horovod_style.py            # or mpirun -n 4 python3 horovod_style.py
"""
import argparse
import gzip
import pathlib

import numpy
import torch
import torch.nn.functional as F

import isgqcoll.torch.horovod as hvd  # was: import horovod.torch as hvd

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--data", type=pathlib.Path, default="/usr/share/datasets/fashion-mnist")
parser.add_argument("--samples", type=int, default=60000)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--bits", type=float, default=4)
options = parser.parse_args()

hvd.init()
torch.set_num_threads(1)
torch.manual_seed(1)
with gzip.open(options.data / "train-images-idx3-ubyte.gz") as file:
    pixels = torch.from_numpy(numpy.frombuffer(file.read(16 + 784 * options.samples), numpy.uint8, offset=16).astype(numpy.float32) / 255).view(-1, 784)
with gzip.open(options.data / "train-labels-idx1-ubyte.gz") as file:
    labels = torch.from_numpy(numpy.frombuffer(file.read(8 + options.samples), numpy.uint8, offset=8).astype(numpy.int64))

model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * hvd.size(), momentum=0.9)
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), compression=hvd.Compression.isgq(options.bits))
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)

torch.manual_seed(1 + hvd.rank())  # each rank draws images of its own
for step in range(options.steps):
    drawn = torch.randint(len(labels), (32,))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(pixels[drawn]), labels[drawn])
    loss.backward()
    optimizer.step()
    mean = hvd.allreduce(loss.detach(), name="loss")
    if hvd.rank() == 0 and step % 20 == 0:
        print(f"step {step}: loss {mean.item():.4f}", flush=True)

stats = hvd.communicator().stats()
same = hvd.allgather_object([parameter.sum().item() for parameter in model.parameters()])
if hvd.rank() == 0:
    print(f"loss {mean.item():.4f}; ranks agree: {all(sums == same[0] for sums in same)}; sent {stats.wire_bytes} of {stats.input_bytes} bytes")
hvd.shutdown()
