# SPDX-License-Identifier: Apache-2.0
"""The C library: where it is found, its functions as ctypes sees them, and its structures. Nothing else in the package calls ctypes.

Blocking functions release Python's lock (ctypes does so for every call). The library is looked for in this order: ISGQ_PYTHON_LIBRARY, the
folder lib beside this file (wheels), then wherever the loader looks.
"""
from __future__ import annotations

import ctypes
import os
import pathlib
from ctypes import POINTER, c_char, c_char_p, c_double, c_int, c_size_t, c_uint32, c_uint64, c_void_p

SONAME = "libisgqcoll.so.0.1"
SERIES = 1  # version codes 100 to 199, 0.1: while the major version is 0, another minor one may have other structures

UNIQUE_ID_BYTES = 128


class UniqueId(ctypes.Structure):
    """isgq_unique_id_t."""

    _fields_ = [("internal", c_char * UNIQUE_ID_BYTES)]


class Config(ctypes.Structure):
    """isgq_comm_config_t."""

    _fields_ = [
        ("size", c_size_t),
        ("device_type", c_int),
        ("transports", c_char_p),
        ("quantizer", c_void_p),
        ("chunk_bytes", c_size_t),
        ("timeout_ms", c_uint32),
        ("seed", c_uint64),
    ]


class CallOptions(ctypes.Structure):
    """isgq_call_options_t."""

    _fields_ = [("size", c_size_t), ("tensor", c_void_p), ("accumulate", c_int), ("algorithm", c_char_p), ("timeout_ms", c_uint32)]


class Factors(ctypes.Structure):
    """isgq_factors_t."""

    _fields_ = [
        ("size", c_size_t),
        ("x", c_void_p),
        ("delta", c_void_p),
        ("batch", c_size_t),
        ("m", c_size_t),
        ("n", c_size_t),
        ("bias", c_void_p),
    ]


class StatsStruct(ctypes.Structure):
    """isgq_stats_t."""

    _fields_ = [
        ("size", c_size_t),
        ("calls", c_uint64),
        ("input_bytes", c_uint64),
        ("wire_bytes", c_uint64),
        ("fallback_calls", c_uint64),
        ("quantize_ns", c_uint64),
        ("transfer_ns", c_uint64),
        ("accuracy_calls", c_uint64),
        ("nmse", c_double),
        ("mean_nmse", c_double),
        ("zeros", c_double),
        ("mean_zeros", c_double),
        ("limits", c_double),
        ("mean_limits", c_double),
        ("residual_norm", c_double),
        ("mean_residual_norm", c_double),
        ("lost_errors", c_uint64),
        ("shadow_calls", c_uint64),
        ("shadow_bytes", c_uint64),
        ("shadow_nmse", c_double),
        ("mean_shadow_nmse", c_double),
        ("shared_bytes", c_uint64),
        ("predicted_calls", c_uint64),
        ("repaired_calls", c_uint64),
    ]


class RecordStruct(ctypes.Structure):
    """isgqx_call_record_t."""

    _fields_ = [
        ("size", c_size_t),
        ("sequence", c_uint64),
        ("algorithm", c_char * 32),
        ("transport", c_char * 32),
        ("why", c_char * 96),
        ("input_bytes", c_uint64),
        ("wire_bytes", c_uint64),
        ("own_bytes", c_uint64),
        ("time_ns", c_uint64),
    ]


class ConfigVar(ctypes.Structure):
    """isgq_config_var_t."""

    _fields_ = [("size", c_size_t), ("name", c_char_p), ("default_value", c_char_p), ("value", c_char_p), ("help", c_char_p)]


ALLGATHER = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_size_t)

_COMM = c_void_p
_STREAM = c_void_p

# Arguments of each function; all but those of TEXTS and NOTHING return a status.
FUNCTIONS = {
    "isgq_get_version": [POINTER(c_int)],
    "isgq_get_unique_id": [POINTER(UniqueId)],
    "isgq_comm_init_rank": [POINTER(_COMM), c_int, UniqueId, c_int, POINTER(Config)],
    "isgq_comm_init_env": [POINTER(_COMM), POINTER(Config)],
    "isgq_comm_init_oob": [POINTER(_COMM), c_int, c_int, ALLGATHER, c_void_p, POINTER(Config)],
    "isgq_comm_split": [_COMM, c_int, c_int, POINTER(_COMM), POINTER(Config)],
    "isgq_comm_finalize": [_COMM],
    "isgq_comm_destroy": [_COMM],
    "isgq_comm_abort": [_COMM],
    "isgq_comm_get_sequence": [_COMM, POINTER(c_uint64)],
    "isgq_comm_wait_for": [_COMM, c_uint64, c_uint32, POINTER(c_int)],
    "isgq_comm_test": [_COMM, c_uint64, POINTER(c_int)],
    "isgq_comm_count": [_COMM, POINTER(c_int)],
    "isgq_comm_user_rank": [_COMM, POINTER(c_int)],
    "isgq_comm_get_async_error": [_COMM, POINTER(c_int)],
    "isgq_comm_get_stats": [_COMM, POINTER(StatsStruct)],
    "isgq_comm_reset_stats": [_COMM],
    "isgq_mem_alloc": [POINTER(c_void_p), _COMM, c_size_t],
    "isgq_mem_free": [c_void_p, _COMM],
    "isgq_quantizer_create": [POINTER(c_void_p), c_char_p],
    "isgq_quantizer_max_bytes": [c_void_p, c_int, c_size_t, POINTER(c_size_t)],
    "isgq_tensor_create": [POINTER(c_void_p), c_char_p, c_size_t],
    "isgq_tensor_shape": [c_void_p, c_size_t, c_size_t],
    "isgq_tensor_reset": [c_void_p],
    "isgq_tensor_save": [c_void_p, c_void_p, POINTER(c_size_t)],
    "isgq_tensor_load": [c_void_p, c_void_p, c_size_t],
    "isgq_allreduce": [c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, _COMM, _STREAM, POINTER(CallOptions)],
    "isgq_allreduce_factored": [POINTER(Factors), c_size_t, c_void_p, c_int, c_int, c_void_p, _COMM, _STREAM, POINTER(CallOptions)],
    "isgq_reduce_scatter": [c_void_p, c_void_p, c_size_t, c_int, c_int, c_void_p, _COMM, _STREAM, POINTER(CallOptions)],
    "isgq_allgather": [c_void_p, c_void_p, c_size_t, c_int, c_void_p, _COMM, _STREAM, POINTER(CallOptions)],
    "isgq_broadcast": [c_void_p, c_void_p, c_size_t, c_int, c_int, _COMM, _STREAM],
    "isgq_barrier": [_COMM, _STREAM],
    "isgq_group_start": [],
    "isgq_group_end": [],
    "isgq_group_refuse": [_COMM, c_int, c_char_p],
    "isgq_get_config_var": [c_size_t, POINTER(ConfigVar)],
    "isgqx_last_call": [_COMM, POINTER(RecordStruct)],
    "isgqx_own_bytes": [_COMM, POINTER(c_uint64)],
}
TEXTS = {"isgq_get_error_string": [c_int], "isgq_get_last_error": [], "isgq_comm_get_last_error": [_COMM]}
NOTHING = {"isgq_quantizer_destroy": [c_void_p], "isgq_tensor_destroy": [c_void_p]}


def _candidates() -> list[str]:
    named = os.environ.get("ISGQ_PYTHON_LIBRARY")
    if named:
        return [named]  # asked for by name: no other will do
    beside = pathlib.Path(__file__).parent / "lib" / SONAME
    return [str(beside), SONAME] if beside.exists() else [SONAME]


def _open() -> ctypes.CDLL:
    reasons = []
    for name in _candidates():
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    raise ImportError(
        f"isgqcoll: cannot load {SONAME} ({'; '.join(reasons)}); install libisgqcoll, add its folder to LD_LIBRARY_PATH, "
        "or let ISGQ_PYTHON_LIBRARY name the file"
    )


def _dotted(code: int) -> str:
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}"


def load() -> ctypes.CDLL:
    """The library with all prototypes declared. ImportError names what is missing, too old or too new."""
    library = _open()
    for table, result in ((FUNCTIONS, c_int), (TEXTS, c_char_p), (NOTHING, None)):
        for name, arguments in table.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise ImportError(f"isgqcoll: {library._name} has no {name}: it is not libisgqcoll, or older than this package") from None
            function.argtypes, function.restype = arguments, result
    version = c_int()
    library.isgq_get_version(ctypes.byref(version))
    if version.value // 100 != SERIES:
        raise ImportError(f"isgqcoll: {library._name} is version {_dotted(version.value)}; this package is for {_dotted(SERIES * 100).rpartition('.')[0]}")
    return library


lib = load()


def version() -> str:
    """Of the library that is loaded: "0.1.0"."""
    code = c_int()
    lib.isgq_get_version(ctypes.byref(code))
    return _dotted(code.value)
