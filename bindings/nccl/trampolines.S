/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A function for every symbol of NCCL that jumps to wherever its entry of iq_nccl_table says. Arguments stay where the caller put them, so
 * no prototype is needed. Entries begin at the second half of each function, which asks iq_nccl_resolve for the address, once.
 */

#if defined(__x86_64__)

    .text
    .macro TRAMPOLINE name
    .globl \name
    .type \name, @function
    .balign 16
\name:
    endbr64
    jmp *(iq_nccl_table + 8 * index)(%rip)
first_\name:
    pushq $index
    jmp resolve
    .size \name, . - \name
    .pushsection .data.rel.local, "aw"
    .quad first_\name
    .popsection
    .set index, index + 1
    .endm

    .pushsection .data.rel.local, "aw"
    .balign 8
    .globl iq_nccl_table
    .hidden iq_nccl_table
    .type iq_nccl_table, @object
iq_nccl_table:
    .popsection
    .set index, 0
#define X(name) TRAMPOLINE name
#include "bindings/nccl/nccl_symbols.def"
#undef X

/* On the stack: the index, the caller's return address. Everything that may carry an argument is kept: 6 words, 8 vectors, al. */
    .type resolve, @function
resolve:
    .cfi_startproc
    .cfi_def_cfa_offset 16
    pushq %rbp
    .cfi_def_cfa_offset 24
    .cfi_offset %rbp, -24
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    andq $-16, %rsp
    subq $192, %rsp
    movq %rdi, 0(%rsp)
    movq %rsi, 8(%rsp)
    movq %rdx, 16(%rsp)
    movq %rcx, 24(%rsp)
    movq %r8, 32(%rsp)
    movq %r9, 40(%rsp)
    movq %rax, 48(%rsp)
    movups %xmm0, 64(%rsp)
    movups %xmm1, 80(%rsp)
    movups %xmm2, 96(%rsp)
    movups %xmm3, 112(%rsp)
    movups %xmm4, 128(%rsp)
    movups %xmm5, 144(%rsp)
    movups %xmm6, 160(%rsp)
    movups %xmm7, 176(%rsp)
    movq 8(%rbp), %rdi
    call iq_nccl_resolve
    movq %rax, %r11
    movq 0(%rsp), %rdi
    movq 8(%rsp), %rsi
    movq 16(%rsp), %rdx
    movq 24(%rsp), %rcx
    movq 32(%rsp), %r8
    movq 40(%rsp), %r9
    movq 48(%rsp), %rax
    movups 64(%rsp), %xmm0
    movups 80(%rsp), %xmm1
    movups 96(%rsp), %xmm2
    movups 112(%rsp), %xmm3
    movups 128(%rsp), %xmm4
    movups 144(%rsp), %xmm5
    movups 160(%rsp), %xmm6
    movups 176(%rsp), %xmm7
    leave
    .cfi_def_cfa %rsp, 16
    addq $8, %rsp
    .cfi_def_cfa_offset 8
    jmp *%r11
    .cfi_endproc
    .size resolve, . - resolve

#elif defined(__aarch64__)

    .text
    .macro TRAMPOLINE name
    .globl \name
    .type \name, %function
    .balign 16
\name:
    hint #34 /* bti c */
    adrp x16, iq_nccl_table
    add x16, x16, :lo12:iq_nccl_table
    ldr x16, [x16, #(8 * index)]
    br x16
first_\name:
    hint #36 /* bti j */
    mov x17, #index
    b resolve
    .size \name, . - \name
    .pushsection .data.rel.local, "aw"
    .quad first_\name
    .popsection
    .set index, index + 1
    .endm

    .pushsection .data.rel.local, "aw"
    .balign 8
    .globl iq_nccl_table
    .hidden iq_nccl_table
    .type iq_nccl_table, %object
iq_nccl_table:
    .popsection
    .set index, 0
#define X(name) TRAMPOLINE name
#include "bindings/nccl/nccl_symbols.def"
#undef X

/* Kept: eight words, the place of a large result, eight vectors, frame and return address. */
    .type resolve, %function
resolve:
    .cfi_startproc
    stp x29, x30, [sp, #-224]!
    .cfi_def_cfa_offset 224
    .cfi_offset 29, -224
    .cfi_offset 30, -216
    mov x29, sp
    stp x0, x1, [sp, #16]
    stp x2, x3, [sp, #32]
    stp x4, x5, [sp, #48]
    stp x6, x7, [sp, #64]
    str x8, [sp, #80]
    stp q0, q1, [sp, #96]
    stp q2, q3, [sp, #128]
    stp q4, q5, [sp, #160]
    stp q6, q7, [sp, #192]
    mov x0, x17
    bl iq_nccl_resolve
    mov x16, x0
    ldp x0, x1, [sp, #16]
    ldp x2, x3, [sp, #32]
    ldp x4, x5, [sp, #48]
    ldp x6, x7, [sp, #64]
    ldr x8, [sp, #80]
    ldp q0, q1, [sp, #96]
    ldp q2, q3, [sp, #128]
    ldp q4, q5, [sp, #160]
    ldp q6, q7, [sp, #192]
    ldp x29, x30, [sp], #224
    br x16
    .cfi_endproc
    .size resolve, . - resolve

#endif

    .section .note.GNU-stack, "", %progbits
