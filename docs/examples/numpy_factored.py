#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A small network on Fashion-MNIST whose gradients travel as the factors of its layers.

    mpirun -n 4 python3 numpy_factored.py [/usr/share/datasets/fashion-mnist]
"""
import gzip
import pathlib
import sys

import numpy

import isgqcoll

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
BATCH, RATE, EPOCHS = 32, 0.1, 1  # rows of a rank and step


def load(part):
    """Images as rows of 784 numbers from 0 to 1, and their labels."""
    with gzip.open(FOLDER / f"{part}-images-idx3-ubyte.gz") as images, gzip.open(FOLDER / f"{part}-labels-idx1-ubyte.gz") as labels:
        pixels = numpy.frombuffer(images.read(), numpy.uint8, offset=16).reshape(-1, 784)
        return pixels.astype(numpy.float32) / 255, numpy.frombuffer(labels.read(), numpy.uint8, offset=8)


def forward(layers, rows):
    """Inputs of every layer, and the outputs of the last."""
    inputs = [rows]
    for weight, bias in layers:
        inputs.append(numpy.maximum(inputs[-1] @ weight + bias, 0) if weight is not layers[-1][0] else inputs[-1] @ weight + bias)
    return inputs


with isgqcoll.Communicator(quantizer="isgq:bits=4") as comm:
    random = numpy.random.default_rng(1)  # alike on all ranks
    layers = [(random.standard_normal((m, n), numpy.float32) * (2 / m) ** 0.5, numpy.zeros(n, numpy.float32)) for m, n in ((784, 256), (256, 10))]
    gradients = [(numpy.empty_like(weight), numpy.empty_like(bias)) for weight, bias in layers]
    images, labels = load("train")
    for _ in range(EPOCHS):
        for first in range(0, len(images) - BATCH * comm.nranks + 1, BATCH * comm.nranks):
            mine = slice(first + BATCH * comm.rank, first + BATCH * (comm.rank + 1))
            inputs = forward(layers, images[mine])
            delta = numpy.exp(inputs[-1] - inputs[-1].max(axis=1, keepdims=True))
            delta = (delta / delta.sum(axis=1, keepdims=True) - numpy.eye(10, dtype=numpy.float32)[labels[mine]]) / BATCH
            with isgqcoll.group():
                for layer in reversed(range(len(layers))):
                    comm.allreduce_factored(inputs[layer], delta, gradients[layer][0], bias=gradients[layer][1], op="avg")
                    delta = (delta @ layers[layer][0].T) * (inputs[layer] > 0)
            for (weight, bias), (weight_sum, bias_sum) in zip(layers, gradients):
                weight -= RATE * weight_sum
                bias -= RATE * bias_sum
    images, labels = load("t10k")
    right = numpy.mean(forward(layers, images)[-1].argmax(axis=1) == labels)
    stats = comm.stats()
    if comm.rank == 0:
        print(f"{comm.nranks} ranks: {100 * right:.1f} % right, {stats.input_bytes / stats.wire_bytes:.0f} times fewer bytes than gradients have")
