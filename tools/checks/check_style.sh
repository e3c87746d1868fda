#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Rules that a compiler does not check: licence line, tabs, lengths, unique names, calls that a library must not make.
# Usage: check_style.sh [ROOT]
set -u
cd "${1:-.}" || exit 2

mapfile -t ours < <(find libisgqcoll kernels bindings tools perf test docs bootstrap .ci CMakeLists.txt -type f \( -name '*.[ch]' -o -name '*.cu' \
    -o -name '*.cpp' -o -name '*.hpp' -o -name '*.def' -o -name '*.map' -o -name '*.py' -o -name '*.sh' -o -name '*.cmake' \
    -o -name CMakeLists.txt -o -name bootstrap -o -path .ci/run \) | sort)
mapfile -t sources < <(printf '%s\n' "${ours[@]}" | grep -E '\.([ch]|cu|[ch]pp)$')
mapfile -t inside < <(printf '%s\n' "${sources[@]}" | grep -v /include/isgqcoll) # not the public headers
mapfile -t library < <(printf '%s\n' "${sources[@]}" | grep -E '^(libisgqcoll|kernels)/')
mapfile -t shipped < <(printf '%s\n' "${sources[@]}" | grep -vE '^test/')
if [ "${#library[@]}" -eq 0 ]; then
    echo "no sources here"
    exit 2
fi

# code_of FILES: "file:line:code", without comments and the texts of strings.
code_of() {
    awk 'FNR == 1 { comment = 0 }
         {
             rest = $0
             code = ""
             gsub(/\\./, "", rest)
             gsub(/"[^"]*"/, "\"\"", rest)
             while (rest != "") {
                 at = index(rest, comment ? "*/" : "/*")
                 if (!comment) code = code (at ? substr(rest, 1, at - 1) : rest)
                 if (!at) break
                 rest = substr(rest, at + 2)
                 comment = !comment
             }
             print FILENAME ":" FNR ":" code
         }' "$@"
}

# long_functions FILES: a function is what stands between "{" and "}" in the first column.
long_functions() {
    awk '/^\{/ { start = FNR } /^\}/ && start { if (FNR - start + 1 > 80) print FILENAME ":" start ": " FNR - start + 1 " lines"; start = 0 }' "$@"
}

# calls NAMES FILES: where one of these functions is called.
calls() {
    local names=$1
    shift
    code_of "$@" | grep -E "(^|[^A-Za-z0-9_.>])($names) *\("
}

# All rules: each prints what breaks it.
rules() {
    for file in "${ours[@]}"; do
        head -3 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0' || echo "$file: no SPDX line at the top"
    done
    grep -nP '\t' "${ours[@]}" | sed 's/$/   <- tab/'
    grep -nE ' +$' "${ours[@]}" | sed 's/$/<- blanks at the end/'
    grep -nE '\b(TODO|FIXME|XXX)\b' "${sources[@]}" | sed 's/$/   <- finish it/'
    long_functions "${sources[@]}" | sed 's/$/ in one function, at most 80/'
    wc -l "${inside[@]}" | awk '$2 != "total" && $1 > 500 { print $2 ": " $1 " lines in one file, at most 500" }'
    for name in $(printf '%s\n' "${sources[@]##*/}" | sort | uniq -d); do
        echo "$name: this file name exists more than once"
    done
    calls 'strcpy|strcat|sprintf|vsprintf|gets|atoi|atol|atof|system' "${shipped[@]}" | sed 's/$/   <- unsafe or unchecked/'
    calls 'exit|_exit|_Exit|abort|assert|printf|vprintf|puts|putchar|perror|signal|sigaction' "${library[@]}" |
        sed 's/$/   <- not in a library/'
    calls 'sleep|usleep' "${library[@]}" | sed 's/$/   <- waits for time instead of an event/'
}

found=$(rules)
if [ -n "$found" ]; then
    echo "$found"
    echo "style: $(wc -l <<<"$found") problems"
    exit 1
fi
echo "style: ${#ours[@]} files, no problems"
