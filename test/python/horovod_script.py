# SPDX-License-Identifier: Apache-2.0
"""A training script as users of Horovod write it; test_horovod.py runs it with the first import switched."""
import horovod.torch as hvd
import torch
import torch.nn.functional as F
import torch.utils.data

torch.set_num_threads(1)
hvd.init()
torch.manual_seed(42 + hvd.rank())  # ranks begin differently: rank 0's parameters are broadcast

generator = torch.Generator().manual_seed(7)
features = torch.randn(192, 20, generator=generator)
labels = features[:, :4].argmax(1)
dataset = torch.utils.data.TensorDataset(features, labels)
sampler = torch.utils.data.distributed.DistributedSampler(dataset, num_replicas=hvd.size(), rank=hvd.rank(), shuffle=False)
loader = torch.utils.data.DataLoader(dataset, batch_size=48 // hvd.size(), sampler=sampler)

model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), compression=hvd.Compression.none)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)

history = []
for epoch in range(4):
    sampler.set_epoch(epoch)
    total = torch.zeros(1)
    for data, target in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data), target)
        loss.backward()
        if epoch == 1:
            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
        total += loss.detach()
    history.append(hvd.allreduce(total / len(loader), name="avg_loss").item())
    scheduler.step()
if hvd.rank() == 0:
    print("loss", history[-1])
hvd.shutdown()
