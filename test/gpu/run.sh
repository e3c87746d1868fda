#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Everything that needs a GPU, in one command: build, tests over every way that messages can take, benchmark, the same work in PyTorch, isgq_perf, isgq_train,
# compute-sanitizer. Needs gcc, g++, CMake, the CUDA toolkit and python3; uses what else is there. Every step has a time limit, and what has run is written
# down at once.
set -u
export LC_ALL=C
root=$(cd "$(dirname "$0")/../.." && pwd) || exit 2
here=$root/test/gpu

usage() {
    cat <<END
usage: test/gpu/run.sh [--out DIR] [--build DIR | --prebuilt DIR] [--build-only] [--arch LIST] [--data DIR]
                       [--limit SECONDS]

  --out DIR        where gpu-report.json and gpu-report.logs/ go [the repository's root]
  --build DIR      where to build [build/gpu]
  --build-only     build, and run nothing: for a machine without a GPU. Nothing but libc, threads and CUDA is linked, so that DIR/bin and
                   DIR/lib can be taken to another machine
  --prebuilt DIR   run what --build-only built, wherever bin/ and lib/ lie now
  --arch LIST      CMAKE_CUDA_ARCHITECTURES [this machine's GPU, or the project's default]
  --data DIR       the four files of Fashion-MNIST, compressed with gzip or not [/usr/share/datasets/fashion-mnist]
  --limit SECONDS  for everything together; steps that do not begin in time are not run [520]

Exit status: 0 if all tests passed, 1 if one failed, 2 for wrong usage or a build that fails, 77 if there is no GPU.
END
}

out=$root build=$root/build/gpu prebuilt='' build_only='' arch='' data=/usr/share/datasets/fashion-mnist limit=520
while [ $# -gt 0 ]; do
    case $1 in
        --build-only) build_only=yes ;;
        --help | -h) usage; exit 0 ;;
        --out | --build | --prebuilt | --arch | --data | --limit)
            [ $# -ge 2 ] || { usage >&2; exit 2; }
            printf -v "${1#--}" %s "$2"
            shift ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
PATH=$PATH:/usr/local/cuda/bin:/sbin
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/cuda/lib64 # cuBLASLt and NCCL are loaded by name

query() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }

# ---- building ----

# Sets arch to this machine's GPU where there is one.
choose_arch() {
    local capability
    capability=$(query compute_cap | tr -d .)
    [ -n "$arch" ] || ! [[ $capability =~ ^[0-9]+$ ]] || arch=$capability
}

build_all() {
    local dependency others=AUTO options=(-DCMAKE_BUILD_TYPE=Release -DISGQ_WITH_CUDA=ON)
    [ -z "$build_only" ] || others=OFF
    choose_arch
    [ -z "$arch" ] || options+=("-DCMAKE_CUDA_ARCHITECTURES=$arch")
    for dependency in UCX HWLOC BLAS SODIUM ZLIB; do
        options+=("-DISGQ_WITH_$dependency=$others")
    done
    if [ -z "${CMAKE_GENERATOR-}" ] && command -v ninja >/dev/null; then
        export CMAKE_GENERATOR=Ninja
    fi
    cmake -S "$root" -B "$build" "${options[@]}" && cmake --build "$build" --parallel "$(nproc)" --target gpu_tests
}

if [ -n "$build_only" ]; then
    build_all || exit 2
    echo "built: take $build/bin and $build/lib along, and run test/gpu/run.sh --prebuilt DIR there"
    exit 0
fi

if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
    echo "no GPU here: nvidia-smi lists none"
    exit 77
fi
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
logs=$out/gpu-report.logs
rm -rf "$logs" && mkdir -p "$logs" || exit 2

# ---- what has run ----

describe() {
    local commit=unknown
    if git -C "$root" rev-parse HEAD >/dev/null 2>&1; then
        commit=$(git -C "$root" rev-parse HEAD)
        git -C "$root" diff --quiet HEAD 2>/dev/null || commit="$commit with changes"
    fi
    cat <<END
date=$(date -u +%Y-%m-%dT%H:%M:%SZ)
commit=$commit
gpu=$(query name)
driver=$(query driver_version)
compute_capability=$(query compute_cap)
memory=$(query memory.total)
cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: *\([0-9.]*\).*/\1/p' | head -n 1)
nvcc=$(nvcc --version 2>/dev/null | sed -n 's/.*, V\([0-9.]*\).*/\1/p')
compiler=$(cc --version 2>/dev/null | head -n 1)
processors=$(nproc)
kernel=$(uname -r)
nccl=${ISGQ_NCCL_LIB:-none}
END
}

# Where the loader does not find NCCL, PyTorch's may be.
find_nccl() {
    local file name
    [ -z "${ISGQ_NCCL_LIB-}" ] || return
    name=$(ldconfig -p 2>/dev/null | sed -n 's/.*libnccl\.so\.2 .*=> //p' | head -n 1)
    for file in "$name" /usr/local/cuda/lib64/libnccl.so.2 \
        "$(python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0] + "/lib/libnccl.so.2")' 2>/dev/null)"; do
        [ -n "$file" ] && [ -e "$file" ] && export ISGQ_NCCL_LIB=$file && return
    done
}
find_nccl
describe >"$logs/meta.txt"

finish() { [ ! -d "$logs" ] || python3 "$here/report.py" "$logs" --json "$out/gpu-report.json" "$@"; }
trap 'finish --quiet' EXIT
trap 'exit 1' INT TERM

phase_end=$limit

# record KIND NAME RESULT SECONDS NOTE
record() {
    printf '%s|%s|%s|%s|%s\n' "$1" "$2" "$3" "$4" "$(tr -d '|\n' <<<"$5" | cut -c 1-300)" >>"$logs/steps.txt"
    printf '%-10s %-10s %-40s %8s s  %s\n' "$3" "$1" "$2" "$4" "$5"
}

# The sanitizer itself may refuse a machine: that is no error of ours.
judge() {
    local kind=$1 name=$2 status=$3
    if [ "$kind" = sanitizer ] && grep -Eqs '(ERROR|RACECHECK) SUMMARY: [1-9]' "$logs/$name.out"; then # of a rank's process
        echo failed
        return
    fi
    case $status in
        0) echo passed ;;
        77) echo skipped ;;
        124 | 137) echo "timed out" ;;
        *) if [ "$kind" = sanitizer ] && ! grep -q 'SUMMARY:' "$logs/$name.out"; then echo "not run"; else echo failed; fi ;;
    esac
}

# Tests say on stdout what failed, and the library logs to stderr; all others complain there.
last_words() {
    local first=$2.err second=$2.out
    [ "$1" != test ] || first=$2.out second=$2.err
    cat "$second" "$first" | grep -v '^ *$' | tail -n 1
}

# step KIND NAME LIMIT COMMAND: its output goes to NAME.out and NAME.err.
step() {
    local kind=$1 name=$2 most=$3 left=$((phase_end - SECONDS)) start=$EPOCHREALTIME status result note=''
    shift 3
    if [ "$left" -lt 5 ]; then
        record "$kind" "$name" "not run" 0.0 "no time was left"
        return
    fi
    { timeout -k 5 $((most < left ? most : left)) "$@" >"$logs/$name.out" 2>"$logs/$name.err" </dev/null; } 2>/dev/null
    status=$?
    result=$(judge "$kind" "$name" "$status")
    [ "$result" = passed ] || note="status $status: $(last_words "$kind" "$logs/$name")"
    record "$kind" "$name" "$result" "$(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $start }")" "$note"
}

# lane COMMAND: beside others, where there are processors for it and nothing is timed.
lanes=$(($(nproc) / 4)) lanes=$((lanes < 1 ? 1 : lanes > 4 ? 4 : lanes))
lane() {
    "$@" &
    while [ "$(jobs -rp | wc -l)" -ge "$lanes" ]; do wait -n; done
}

# tests WAY SECONDS: every case of every program, until there is no time.
tests() {
    local way=$1 program case
    phase_end=$((SECONDS + $2 < limit - 90 ? SECONDS + $2 : limit - 90))
    for program in "$bin"/test_gpu_*; do
        for case in $("$program" --list); do
            if [ "$way" = nccl ]; then # its kernels wait for each other and have to share the GPU
                step test "$way.${program##*/test_gpu_}.$case" 60 "$program" --over "$way" "$case"
            else
                lane step test "$way.${program##*/test_gpu_}.$case" 60 "$program" --over "$way" "$case"
            fi
        done
    done
    wait
}

# nccl_ranks N COMMAND: a process for each rank, on a machine of its own in NCCL's eyes.
nccl_ranks() {
    local nranks=$1 rank status=0 process processes=()
    shift
    export NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_MNNVL_ENABLE=0 NCCL_NET_PLUGIN=none NCCL_PROTO=Simple NCCL_MAX_CTAS=2
    for ((rank = 0; rank < nranks; rank++)); do
        NCCL_HOSTID=rank-$rank ISGQ_TRANSPORTS=local,shm,nccl ISGQ_RANK=$rank ISGQ_NRANKS=$nranks "$@" &
        processes+=($!)
    done
    for process in "${processes[@]}"; do
        wait "$process" || status=$?
    done
    return "$status"
}
export -f nccl_ranks

# perf WAY RANKS: rows must be there as soon as they are known.
perf() {
    local sweep=(--device cuda -c allreduce -b 1M -e 64M -f 64 -q "none;uniform:bits=8;uniform:bits=4" -J -)
    case $1 in
        cuda_ipc) step perf "perf_$1_$2" 40 stdbuf -oL "$bin/isgq_perf" -n "$2" -w 2 -i 10 "${sweep[@]}" ;;
        staged) step perf "perf_$1_$2" 40 env ISGQ_TRANSPORTS=local,shm stdbuf -oL "$bin/isgq_perf" -n "$2" -w 2 -i 10 "${sweep[@]}" ;;
        nccl)
            if [ -n "${ISGQ_NCCL_LIB-}" ]; then
                step perf "perf_$1_$2" 40 bash -c 'nccl_ranks "$@"' nccl_ranks "$2" stdbuf -oL "$bin/isgq_perf" -w 1 -i 3 "${sweep[@]}"
            else
                record perf "perf_$1_$2" skipped 0.0 "no NCCL was found"
            fi ;;
    esac
}

# sanitize TOOL NAME PROGRAM ARGUMENTS
sanitize() {
    local tool=$1 name=$2
    shift 2
    lane step sanitizer "$tool.$name" 60 "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 99 "$bin/$1" "${@:2}"
}

count() { awk -F '|' -v kind="$1" -v results="$2" '$1 ~ kind && $3 ~ results' "$logs/steps.txt" | wc -l; }

# isgq_train reads .gz files only where there is zlib.
unpack() {
    local name
    mkdir -p "$logs/data" || return 1
    for name in train-images-idx3-ubyte train-labels-idx1-ubyte t10k-images-idx3-ubyte t10k-labels-idx1-ubyte; do
        cp "$data/$name" "$logs/data/" 2>/dev/null || gzip -dc "$data/$name.gz" >"$logs/data/$name" 2>/dev/null || return 1
    done
}

# One epoch of the README's experiment, two ranks on the GPU.
train() {
    if unpack; then
        step train train_2 60 stdbuf -oL "$bin/isgq_train" -n 2 --device cuda --data "$logs/data" --epochs 1 --batch 128 \
            --grad exact,dense,factored,coarse -J -
    else
        record train train_2 skipped 0.0 "no Fashion-MNIST in $data (--data)"
    fi
    rm -rf "$logs/data"
}

# ---- the steps ----

if [ -n "$prebuilt" ]; then
    build=$(cd "$prebuilt" && pwd) || exit 2
    export LD_LIBRARY_PATH=$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
else
    export -f build_all choose_arch query
    export root build arch build_only
    step build build $((limit - 120)) bash -c build_all
fi
bin=$build/bin
if [ ! -x "$bin/bench_gpu" ]; then
    [ -n "$prebuilt" ] && echo "$prebuilt/bin holds no bench_gpu" || tail -n 40 "$logs/build.out" "$logs/build.err"
    exit 2
fi

# The benchmark must have time even if every test hangs.
phase_end=$((limit - 240))
for class in GpuPerf GpuTrain; do
    lane step test "programs.$class" 100 python3 "$root/test/tools/test_device.py" "$bin" "$class"
done
tests cuda_ipc 150

phase_end=$limit
step info isgq_info 20 "$bin/isgq_info"
step bench kernels 40 "$bin/bench_gpu" --kernels --json
step bench calls 40 "$bin/bench_gpu" --calls --json
step torch torch 60 python3 "$here/bench_torch.py"
for ranks in 2 4; do
    perf cuda_ipc "$ranks"
    perf staged "$ranks"
done
finish --quiet
tests staged 60
tests nccl 110

phase_end=$limit
for ranks in 2 4; do
    perf nccl "$ranks"
done
train

if sanitizer=$(command -v compute-sanitizer); then
    for tool in memcheck racecheck; do
        sanitize "$tool" kernels bench_gpu --quick --kernels
        sanitize "$tool" calls bench_gpu --quick --calls
        sanitize "$tool" streams.alone_processes test_gpu_streams alone_processes
        sanitize "$tool" streams.interleaved test_gpu_streams interleaved
        sanitize "$tool" factored_streams.factored_alone test_gpu_factored_streams factored_alone
    done
    wait
else
    record sanitizer compute-sanitizer "not run" 0.0 "there is no compute-sanitizer"
fi

trap - EXIT
finish
passed=$(count '^test$' '^passed$')
failed=$(($(count '^test$' '^(failed|timed out|not run)$') + $(count '^sanitizer$' '^failed$')))
echo "$passed tests passed, $failed failed, $(count '^test$' '^skipped$') skipped; $SECONDS s; $out/gpu-report.json"
[ "$failed" -eq 0 ] || exit 1
if [ "$passed" -eq 0 ]; then
    echo "every test was skipped: CUDA finds no usable GPU here"
    exit 77
fi
