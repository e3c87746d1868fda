/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Modules: parts with a heavy dependency (UCX, hwloc, BLAS) are shared objects of our own, loaded when first needed.
 *
 * isgqcoll-NAME.so exports one symbol, `iq_module_NAME`, a const table whose type the owner's header declares. A module calls
 * back into the library only through the services table it is given (it links nothing of the library).
 */
#ifndef ISGQ_BASE_MODULE_H
#define ISGQ_BASE_MODULE_H

#include "base/log.h"
#include "base/status.h"

#include <stdbool.h>

typedef struct iq_services {
    isgq_result_t (*fail)(isgq_result_t code, const char *file, int line, const char *format, ...)
        __attribute__((format(printf, 4, 5)));
    int (*log_enabled)(iq_log_level_t level);
    void (*log_write)(iq_log_level_t level, const char *format, ...) __attribute__((format(printf, 2, 3)));
} iq_services_t;

/* First member of every module's table. */
typedef struct iq_module {
    int abi;                                      /* IQ_MODULE_ABI of the build */
    void (*start)(const iq_services_t *services); /* called once, before anything else */
} iq_module_t;

#define IQ_MODULE_ABI ISGQ_VERSION_CODE

/* The table of module `name`, loading it at the first call; NULL with the reason as this thread's last error. Any thread. */
const iq_module_t *iq_module_load(const char *name);

/* Has this process loaded a library of that name, whoever did it? Loads nothing. */
bool iq_library_in_use(const char *name);

#endif
