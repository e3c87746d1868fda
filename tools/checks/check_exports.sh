#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What the built library shows and what it asks for: exactly the functions that the headers promise, and none that ends the process,
# prints or installs signal handlers. Modules show their table only.
# Usage: check_exports.sh BUILD_DIR SOURCE_DIR
set -u
build=$1 source=$2 problems=0
library=$build/lib/libisgqcoll.so

complain() {
    echo "$*"
    problems=$((problems + 1))
}

exported=$(nm -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort -u)
promised=$(cat "$source"/libisgqcoll/include/*.h | tr '\n' ' ' | grep -oE 'ISGQ_API [^;(]*\(' | grep -oE 'isgqx?_[a-z0-9_]+ *\($' |
    tr -d ' (' | sort -u)
if [ -z "$exported" ] || [ -z "$promised" ]; then
    echo "$library: no symbols to look at"
    exit 1
fi

for symbol in $(comm -23 <(echo "$exported") <(echo "$promised")); do
    complain "libisgqcoll.so exports $symbol, which no header declares"
done
for symbol in $(comm -13 <(echo "$exported") <(echo "$promised")); do
    complain "a header declares $symbol, but libisgqcoll.so does not export it"
done
for symbol in $(nm -D --undefined-only "$library" | awk '{ sub(/@.*/, "", $2); print $2 }' |
    grep -xE '(_?exit|_Exit|quick_exit|abort|v?printf|__v?printf_chk|puts|putchar|perror|__assert_fail|signal|sigaction|system)'); do
    complain "libisgqcoll.so calls $symbol"
done
for module in "$build"/lib/isgqcoll/*.so; do
    [ -e "$module" ] || continue
    name=${module##*/} name=${name#isgqcoll-} name=${name#isgq-} name=${name%.so} name=${name//-/_} # programs have modules too
    [ "$(nm -D --defined-only "$module" | awk '{ print $3 }')" = "iq_module_$name" ] ||
        complain "${module##*/} must export iq_module_$name and nothing else"
done

echo "exports: $(wc -w <<<"$exported") symbols, $problems problems"
[ "$problems" -eq 0 ]
