/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floating-point environment that codecs compute in: the default one, whatever the caller's is. Callers may flush denormals or round
 * differently; codecs must not, and the caller gets back what it had, flags included.
 *
 * fegetenv and fesetenv take as long as a tenth of a small call. On x86-64 codecs compute in SSE registers alone, whose environment is one
 * register that costs nothing to read; only a caller who has changed the x87's too is sent the long way.
 */
#ifndef ISGQ_CORE_FLOAT_ENV_H
#define ISGQ_CORE_FLOAT_ENV_H

#include <fenv.h>
#include <stdbool.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

typedef struct iq_float_env {
    unsigned mxcsr;
    bool whole; /* all of it was changed */
    fenv_t caller;
} iq_float_env_t;

#if defined(__x86_64__)

#define IQ_MXCSR_DEFAULT 0x1f80u /* round to nearest, no flushing, nothing traps, no flag */
#define IQ_MXCSR_FLAGS 0x3fu
#define IQ_X87_DEFAULT 0x037fu

static inline bool iq_float_env_needs_whole(void)
{
    unsigned short control;
    __asm__ volatile("fnstcw %0" : "=m"(control));
    return control != IQ_X87_DEFAULT;
}

static inline void iq_float_env_enter(iq_float_env_t *env)
{
    env->whole = iq_float_env_needs_whole();
    env->mxcsr = _mm_getcsr();
    if (env->whole) {
        fegetenv(&env->caller);
        fesetenv(FE_DFL_ENV);
    } else if ((env->mxcsr & ~IQ_MXCSR_FLAGS) != IQ_MXCSR_DEFAULT) {
        _mm_setcsr(IQ_MXCSR_DEFAULT);
    }
}

static inline void iq_float_env_leave(const iq_float_env_t *env)
{
    if (env->whole)
        fesetenv(&env->caller);
    else if (_mm_getcsr() != env->mxcsr)
        _mm_setcsr(env->mxcsr);
}

#else

static inline void iq_float_env_enter(iq_float_env_t *env)
{
    fegetenv(&env->caller);
    fesetenv(FE_DFL_ENV);
}

static inline void iq_float_env_leave(const iq_float_env_t *env) { fesetenv(&env->caller); }

#endif

#endif
