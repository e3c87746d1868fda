#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Compiles the kernels for 64-bit ARM, lets them compute under qemu and compares with what this CPU's rows make of the same values.
# Usage: check_rows.sh SOURCES DIGEST BUILD, where DIGEST is rows_digest for this CPU. ARM_CC and ARM_RUN name other programs; 77: skipped.
set -euo pipefail
sources=$1 digest=$2 build=$3
compiler=${ARM_CC-aarch64-linux-gnu-gcc} emulator=${ARM_RUN-qemu-aarch64}
for program in "$compiler" "$emulator"; do
    if ! command -v "$program" >/dev/null; then
        echo "rows.arm skipped: no $program here (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)"
        exit 77
    fi
done
cd "$sources"
# Static, so that no ARM libraries need be found at run time.
"$compiler" -std=c11 -D_GNU_SOURCE -O3 -ffp-contract=off -static -I. -Wall -Wextra -Werror kernels/kernels.c kernels/cpu/scalar.c \
    kernels/cpu/stream.c kernels/cpu/neon.c test/arm/rows_digest.c -lm -o "$build/rows_digest_arm"
"$digest" >"$build/rows_here.txt"
"$emulator" "$build/rows_digest_arm" >"$build/rows_arm.txt" 2>"$build/rows_arm.log" || {
    cat "$build/rows_arm.log"
    exit 1
}
cat "$build/rows_arm.log"
grep -qx "row neon" "$build/rows_arm.log"
[ -s "$build/rows_here.txt" ]
diff "$build/rows_here.txt" "$build/rows_arm.txt"
