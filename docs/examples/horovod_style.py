#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A script with Horovod's names, on isgqcoll: only the import line is another. Fits a small network to data made up here.

    torchrun --nproc_per_node 4 horovod_style.py            # or mpirun -n 4 python3 horovod_style.py
"""
import argparse

import torch
import torch.nn.functional as F

import isgqcoll.torch.horovod as hvd  # was: import horovod.torch as hvd

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--bits", type=float, default=4)
options = parser.parse_args()

hvd.init()
torch.set_num_threads(1)
torch.manual_seed(1 + hvd.rank())
teacher = torch.nn.Linear(256, 10, bias=False)
hvd.broadcast_parameters(teacher.state_dict(), root_rank=0)

model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * hvd.size(), momentum=0.9)
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), compression=hvd.Compression.isgq(options.bits))
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)

for step in range(options.steps):
    data = torch.randn(32, 256)
    with torch.no_grad():
        target = teacher(data).argmax(1)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(data), target)
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
