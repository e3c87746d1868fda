#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Install, move the tree, and use it from there as a stranger: find_package and pkg-config, C and C++, programs and modules.
# Usage: install_test.sh BUILD_DIR CMAKE CC CXX LIBDIR
set -eu

build=$1 cmake=$2 cc=$3 cxx=$4 libdir=$5
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset ISGQ_MODULE_DIR LD_LIBRARY_PATH

"$cmake" --install "$build" --prefix "$work/first" >"$work/install.log"
mv "$work/first" "$work/second"
prefix=$work/second

if grep -rIl "$work/first\|$build" "$prefix/$libdir/cmake" "$prefix/$libdir/pkgconfig" "$prefix/include"; then
    echo "the files above hold absolute paths" >&2
    exit 1
fi

run() {
    echo "\$ ${1##*/}"
    "$@" >"$work/output" 2>&1 || { cat "$work/output"; echo "$* failed" >&2; exit 1; }
}

# CMake
run "$cmake" -S "$here/consumer" -B "$work/consumer" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx"
run "$cmake" --build "$work/consumer"
run "$work/consumer/consumer_c"
run "$work/consumer/consumer_cxx"

# pkg-config
export PKG_CONFIG_PATH=$prefix/$libdir/pkgconfig
read -ra flags <<<"$(pkg-config --cflags --libs isgqcoll)"
run "$cc" -std=c11 "$here/consumer/consumer.c" -o "$work/plain_c" "${flags[@]}" -Wl,-rpath,"$prefix/$libdir"
run "$cxx" -std=c++11 -x c++ "$here/consumer/consumer.c" -o "$work/plain_cxx" "${flags[@]}" -Wl,-rpath,"$prefix/$libdir"
run "$work/plain_c"
run "$work/plain_cxx"

# The example in the README, as a reader would copy it, on two ranks.
sed -n '/^```c$/,/^```$/p' "$here/../../README.md" | sed '/^```$/q' | grep -v '^```' >"$work/example.c"
run "$cc" -std=c11 -Wall -Wextra -Werror "$work/example.c" -o "$work/example" "${flags[@]}" -Wl,-rpath,"$prefix/$libdir"
ISGQ_JOB=$work ISGQ_RANK=1 ISGQ_NRANKS=2 "$work/example" >"$work/other" 2>&1 &
run env ISGQ_JOB="$work" ISGQ_RANK=0 ISGQ_NRANKS=2 "$work/example"
wait $!
grep -q '^rank 0: 1$' "$work/output"

# And the lines of C++ below it.
{
    printf '#include <isgqcoll.hpp>\n#include <vector>\nint main()\n{\n'
    sed -n '/^```cpp$/,/^```$/p' "$here/../../README.md" | grep -v '^```'
    echo '}'
} >"$work/example.cpp"
run "$cxx" -std=c++17 -Wall -Wextra -Werror "$work/example.cpp" -o "$work/example_cxx" "${flags[@]}" -Wl,-rpath,"$prefix/$libdir"
run env ISGQ_JOB="$work" ISGQ_RANK=0 ISGQ_NRANKS=1 "$work/example_cxx"

# The library's name says which versions are compatible, and programs find it wherever the tree lies.
version=$(pkg-config --modversion isgqcoll)
test -e "$prefix/$libdir/libisgqcoll.so.${version%.*}"
run "$prefix/bin/isgq_info"
if ldd "$prefix/bin/isgq_info" | grep -q "$build"; then
    echo "the installed isgq_info uses the build tree's library" >&2
    exit 1
fi
for module in "$build"/lib/isgqcoll/*.so; do
    [ ! -e "$module" ] || test -e "$prefix/$libdir/isgqcoll/${module##*/}"
done
