#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The examples against the installed package: CMake builds all of them, and the indented lines of their README are run as a reader would
# (those of the Python ones are the business of test/python).
# Usage: examples_test.sh BUILD_DIR CMAKE CC CXX LIBDIR      exit status 77 without Open MPI or Fashion-MNIST, when all but these runs was fine
set -eu

build=$1 cmake=$2 cc=$3 cxx=$4 libdir=$5
examples=$(cd "$(dirname "$0")/../../docs/examples" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for variable in "${!ISGQ_@}"; do
    unset "$variable"
done
missing=""

"$cmake" --install "$build" --prefix "$work/prefix" >"$work/install.log"
export PKG_CONFIG_PATH=$work/prefix/$libdir/pkgconfig LD_LIBRARY_PATH=$work/prefix/$libdir
cp -r "$examples" "$work/examples"
cd "$work/examples"

# What the README's words mean here. Warnings are errors: people copy these files into projects of theirs.
cmake() {
    if [ "$1" = -B ]; then
        set -- "$@" -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx"
    fi
    "$cmake" "$@"
}
cc() { "$cc" -Wall -Wextra -Wconversion -Wshadow -Werror "$@"; }
c++() { "$cxx" -Wall -Wextra -Wconversion -Wshadow -Werror "$@"; }
mpirun() {
    if ! command -v mpirun.openmpi >/dev/null; then
        missing="no Open MPI"
    elif [[ $3 == *train* ]] && [ ! -e /usr/share/datasets/fashion-mnist ]; then
        missing="no Fashion-MNIST"
    else
        mpirun.openmpi --allow-run-as-root --oversubscribe "$@"
    fi
}

expect() { grep -qE "$1" output || { cat output; echo "that is not /$1/"; exit 1; }; }

lines=0
while IFS= read -r line; do
    lines=$((lines + 1))
    echo "\$ $line"
    eval "$line" >output 2>&1 </dev/null || { cat output; echo "failed"; exit 1; }
    case $missing$line in
    mpirun*allreduce*) expect '^2 ranks, 1000000 values: [0-9]+ bytes sent exactly, [0-9]+ with four bits a value; relative error 0[.]0[0-9]+$' ;;
    mpirun*train*) expect '^[0-9.]+ MB sent; .*; ranks agree$' ;; # and its status says that the loss fell
    esac
done < <(sed -n 's/^    //p' README.md | grep -E '^(cmake|cc|c\+\+|mpirun .*\./[a-z_]*) ?')

[ "$lines" -ge 9 ] || { echo "the README has $lines lines to run"; exit 1; }
for program in *.c *.cpp; do
    name=${program%.*}
    [ "${program##*.}" = c ] || name=${name}_cpp
    [ -x "build/$name" ] && [ -x "$name" ] || { echo "$program was not built in both ways"; exit 1; }
done
[ -z "$missing" ] || { echo "$missing"; exit 77; }
