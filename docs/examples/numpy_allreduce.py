#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A gradient summed three ways: exactly, quantized, and as the factors of a linear layer.

    mpirun -n 4 python3 numpy_allreduce.py
"""
import numpy

import isgqcoll


def error(found, exact):
    """Squared error over the exact value's square."""
    return float(numpy.sum((found - exact) ** 2) / numpy.sum(exact**2))


with isgqcoll.Communicator() as comm:
    random = numpy.random.default_rng(comm.rank)
    inputs = numpy.maximum(random.standard_normal((32, 784), dtype=numpy.float32), 0)  # of a layer, after ReLU
    deltas = random.standard_normal((32, 1000), dtype=numpy.float32) * 1e-3  # gradients of its outputs
    gradient = inputs.T @ deltas

    exact = comm.allreduce(gradient.copy(), op="avg", quantizer="none")
    exact_bytes = comm.last_call().wire_bytes

    dense = comm.allreduce(gradient.copy(), op="avg", quantizer="isgq:bits=4")
    dense_bytes = comm.last_call().wire_bytes

    factored = numpy.empty_like(gradient)
    comm.allreduce_factored(inputs, deltas, factored, op="avg", quantizer="isgq:bits=4")
    factored_bytes = comm.last_call().wire_bytes

    if comm.rank == 0:
        print(f"exact     {exact_bytes:9d} bytes from rank 0")
        print(f"dense     {dense_bytes:9d} bytes, error {error(dense, exact):.2g}")
        print(f"factored  {factored_bytes:9d} bytes, error {error(factored, exact):.2g}")
