#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Stands for ssh where an MPI starts ranks in perf/compare's lab: netns_agent.sh [OPTIONS] ADDRESS COMMAND...
# NETLAB_HOSTS names the hosts' namespaces; the last number of the address says which of them is meant. A hostname of its own
# keeps an MPI from taking the hosts for one.
while [ "${1#-}" != "$1" ]; do shift; done
number=${1##*.}
shift
host=$(echo "$NETLAB_HOSTS" | cut -d, -f"$number")
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"
