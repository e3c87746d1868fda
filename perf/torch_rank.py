# SPDX-License-Identifier: Apache-2.0
"""One rank of one run of perf/torch_compare: trains, takes times and counts bytes; rank 0 writes the result.

    torch_rank.py SPECIFICATION.json        rank and size come from ISGQ_RANK and ISGQ_NRANKS

A step is: take the rows (data), forward and backward with the sums in it (work), the optimizer. What is told of a step is the slowest rank's time.
Measuring the error costs messages of its own; such steps have no time, and those bytes are subtracted.
"""
import hashlib
import json
import os
import pathlib
import statistics
import sys
import time

import torch
import torch.distributed as dist
import torch_models
from torch_methods import Method, plain_copy

LOCAL_STEPS = 15  # without sums, at the end: what they are subtracted from


def sent_bytes(interface):
    """Bytes sent through an interface of this namespace since it was made, headers and acknowledgements counted; None without one."""
    if not interface:
        return None
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[8])
    raise RuntimeError(f"no interface {interface} in this network namespace")


class Run:
    def __init__(self, spec):
        self.spec = spec
        self.rank, self.nranks = int(os.environ["ISGQ_RANK"]), int(os.environ["ISGQ_NRANKS"])
        store = dist.FileStore(spec["store"], self.nranks)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.nranks)
        (self.x, self.y), self.test = torch_models.dataset(spec["model"], spec["data"])
        self.make, self.rate, _ = torch_models.MODELS[spec["model"]]
        self.loss_of = torch_models.loss_of(spec["model"])
        torch.manual_seed(spec["seed"])
        self.method = Method(spec["method"])
        plain = self.make()
        self.parameters = list(plain.parameters())
        self.model = self.method.build(plain)
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.rate)
        self.order = torch.Generator().manual_seed(1000 + spec["seed"])
        self.steps = spec["steps"] or spec["epochs"] * (len(self.y) // spec["batch"])
        self.rows = torch.empty(0, dtype=torch.long)

    def gathered(self, value):
        """Every rank's."""
        everyone = [None] * self.nranks
        dist.all_gather_object(everyone, value)
        return everyone

    def take(self):
        """The next rows of this rank; the order is all ranks' own, drawn anew for each epoch."""
        batch = self.spec["batch"]
        if len(self.rows) < batch:
            self.rows = torch.randperm(len(self.y), generator=self.order)
        mine = self.rows[:batch].tensor_split(self.nranks)[self.rank]
        self.rows = self.rows[batch:]
        return self.x[mine], self.y[mine]

    def backward(self, model, x, y):
        """The mean over all rows of all ranks, however many each has, where gradients are averaged over ranks."""
        loss = self.loss_of(model(x), y) * (len(y) * self.nranks / self.spec["batch"])
        loss.backward()

    def step(self):
        """Seconds of the whole and of forward and backward; and the rows."""
        start = time.perf_counter()
        x, y = self.take()
        taken = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        cleared = time.perf_counter()
        self.backward(self.model, x, y)
        worked = time.perf_counter()
        return start, worked - cleared, taken - start, (x, y)

    def finish(self, start):
        self.optimizer.step()
        return time.perf_counter() - start

    def squared_error(self, x, y):
        """Of the gradient that the method made of these rows, over the exact one's squared length."""
        copy = plain_copy(self.make, self.parameters)
        self.backward(copy, x, y)
        exact = torch.cat([parameter.grad.flatten() for parameter in copy.parameters()])
        dist.all_reduce(exact)
        exact = exact.double() / self.nranks
        made = torch.cat([parameter.grad.flatten() for parameter in self.parameters]).double()
        return float(((made - exact) ** 2).sum() / (exact**2).sum())

    def counters(self):
        stats = self.method.stats()
        ours = (stats.wire_bytes, stats.quantize_ns, stats.transfer_ns, stats.calls) if stats else (0, 0, 0, 0)
        return (sent_bytes(self.spec["interface"]) or 0, time.process_time(), *ours)

    def train(self):
        """Times of the steps after the warm-up, error at some of them, what was sent in them."""
        times, errors, extra, before = [], [], (0, 0), None
        for number in range(self.steps):
            if number == self.spec["warmup"]:
                dist.barrier()
                before = self.counters()
            measured = self.spec["nmse_every"] and number % self.spec["nmse_every"] == self.spec["nmse_every"] - 1
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * (1 - number / self.steps)
            start, work, data, rows = self.step()
            if measured:
                dist.barrier()
                start_of_it = self.counters()[:2]
                errors.append(self.squared_error(*rows))
                dist.barrier()
                if before:
                    extra = tuple(sum_so_far + now - then for sum_so_far, now, then in zip(extra, self.counters(), start_of_it))
            whole = self.finish(start)
            if before and not measured:
                times.append((whole, work, data))
        after = self.counters()
        dist.barrier()
        return times, errors, [b - a for a, b in zip(before, after)], extra

    def local_seconds(self):
        """Forward and backward without sums, all ranks at once: of each step the slowest rank's."""
        model, seconds = plain_copy(self.make, self.parameters), []
        used = time.process_time()
        for _ in range(LOCAL_STEPS):
            x, y = self.take()
            for parameter in model.parameters():
                parameter.grad = None
            dist.barrier()
            start = time.perf_counter()
            self.backward(model, x, y)
            seconds.append(time.perf_counter() - start)
        return seconds, (time.process_time() - used) / LOCAL_STEPS

    def evaluate(self):
        model = plain_copy(self.make, self.parameters)
        right = total = 0
        x, y = self.test
        with torch.no_grad():
            for first in range(0, len(y), 1000):
                output = model(x[first : first + 1000])
                total += float(self.loss_of(output, y[first : first + 1000], reduction="sum"))
                right += torch_models.right_of(output, y[first : first + 1000])
        return 100 * right / len(y), total / len(y)

    def result(self):
        times, errors, counted, extra = self.train()
        local, local_cpu = self.local_seconds()
        weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.parameters)).hexdigest()
        everyone = self.gathered((times, local, counted, extra, weights, local_cpu))
        steps = self.steps - self.spec["warmup"]
        slowest = [max(rank[0][i][0] for rank in everyone) for i in range(len(times))]
        work = [max(rank[0][i][1] for rank in everyone) for i in range(len(times))]
        alone = [max(rank[1][i] for rank in everyone) for i in range(len(local))]
        sent = [(rank[2][0] - rank[3][0]) / steps for rank in everyone]
        made = {
            "seconds": statistics.median(slowest),
            "work_seconds": statistics.median(work),
            "data_seconds": statistics.median(time[2] for time in times),
            "local_seconds": statistics.median(alone),
            "cpu_seconds": statistics.mean(rank[2][1] - rank[3][1] for rank in everyone) / steps,
            "local_cpu_seconds": statistics.mean(rank[5] for rank in everyone),
            "timed_steps": len(times),
            "equal": len({rank[4] for rank in everyone}) == 1,
            "parameters": sum(parameter.numel() for parameter in self.parameters),
            "nmse": statistics.mean(errors) if errors else None,
            "torch": torch.__version__,
            "wire_bytes": max(rank[2][2] for rank in everyone) / steps if self.method.ours else None,
            "quantize_seconds": max(rank[2][3] for rank in everyone) * 1e-9 / steps if self.method.ours else None,
            "transfer_seconds": max(rank[2][4] for rank in everyone) * 1e-9 / steps if self.method.ours else None,
            "calls": counted[5] / steps if self.method.ours else None,
        }
        made["communication_seconds"] = max(0, made["work_seconds"] - made["local_seconds"])
        shared = self.spec["interface"] == "lo"  # by all ranks, whoever counts
        made["interface_bytes"] = None if not self.spec["interface"] else max(sent) / self.nranks if shared else max(sent)
        if self.spec["evaluate"]:
            made["accuracy"], made["loss"] = self.evaluate()
        return made


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    torch.set_num_threads(spec["threads"])
    run = Run(spec)
    made = run.result()
    if run.rank == 0:
        pathlib.Path(spec["result"]).write_text(json.dumps(made), encoding="utf-8")
    dist.barrier()


if __name__ == "__main__":
    main()
