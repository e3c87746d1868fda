/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a tensor keeps in the memory of a device: the residual, values with it, and what the weighted rule knows. They are the tensor's and
 * outlive communicators, so nothing here uses a communicator's stream; every function ends when its work on the device has, and
 * waits for nothing else.
 */
#ifndef ISGQ_CORE_TENSOR_DEVICE_H
#define ISGQ_CORE_TENSOR_DEVICE_H

#include "core/tensor.h"

/* The tensor's buffers lie where `comm` works from now on, NULL: in host memory, with what is in them. ISGQ_ERR_INVALID_USAGE if they
 * would have to move and a call holds the tensor. */
isgq_result_t iq_tensor_place(isgq_tensor_t tensor, isgq_comm_t comm);

/* Zeros, where the tensor's buffers lie. */
isgq_result_t iq_tensor_alloc(isgq_tensor_t tensor, size_t bytes, void **memory);
void iq_tensor_free(isgq_tensor_t tensor, void *memory);

/* Between these buffers and host memory, either way. */
isgq_result_t iq_tensor_copy(isgq_tensor_t tensor, void *dst, const void *src, size_t bytes);
isgq_result_t iq_tensor_clear(isgq_tensor_t tensor, void *memory, size_t bytes);

/* All of them; the next ones are in host memory. */
void iq_tensor_free_buffers(isgq_tensor_t tensor);

/* What the weighted rule knows, wherever that is. */
isgq_result_t iq_tensor_estimates(isgq_tensor_t tensor, double *variance, uint64_t *corrected);

#endif
