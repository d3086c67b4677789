#!/bin/bash
# Runs slurm/bench.sh over one to three nodes on a Slurm of its own (see cluster.sh) whose network is
# slowed, and shows steps beside their prediction:
#
#   slurm/bench_test.sh OUT [scaling options]     such as --steps 10 --repeats 1 to see that it works, and
#                                                 --python PYTHON to have PyTorch beside it
#
#   RATES   of each node's link, as tc has them (default "10gbit 1gbit")
#   DELAY   added each way, such as 100us, where the kernel has netem
#   RANKS   of each node (default 1); with more, all-reduce over MPI alone has its turn too
#   BIN     holds the programs, built with MPI (default target/release)
#
# Each node has one core, so nodes share cores where there are more of them. Records: OUT/<rate>. Exit
# code 9 where the cluster is not possible.
set -euo pipefail

out=${1:?where to leave records}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
repository=$(cd "$(dirname "$0")/.." && pwd)
bin=$(cd "${BIN:-$repository/target/release}" && pwd)
. "$repository/slurm/cluster.sh"

missing=$(cluster_is_possible) || { echo "slurm/bench_test.sh: skipped, $missing" >&2; exit 9; }

# Node $1's daemon, and so all that it starts, has one core.
give_one_core() {
    local pid core=$((($1 - 1) % $(nproc)))
    for pid in $(ip netns pids "ls$tag-n$1"); do taskset --all-tasks --pid --cpu-list $core "$pid" >/dev/null; done
}

# Both directions of node $1's link have rate $2.
slow_down() {
    local inside=(tc -n "ls$tag-n$1" qdisc) outside=(tc qdisc) limit=(tbf rate "$2" burst 256kb latency 50ms)
    "${inside[@]}" replace dev eth0 root handle 1: "${limit[@]}"
    "${outside[@]}" replace dev "lsv$tag.$1" root handle 1: "${limit[@]}"
    [ -z "${DELAY:-}" ] || "${inside[@]}" replace dev eth0 parent 1: netem delay "$DELAY"
}

[[ " $* " == *" --python"* ]] || set -- --no-peers "$@"
RANKS=${RANKS:-1}
[ "$RANKS" -eq 1 ] || set -- --variant flat:comm.hierarchical=false "$@"
start_cluster 3 "$RANKS"
for node in 1 2 3; do give_one_core $node; done
cd "$work/submit"
mkdir target
ln -s "$bin" target/release
ln -s "$repository/configs" "$repository/.deps" .
# mpirun refuses root otherwise.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
for rate in ${RATES:-10gbit 1gbit}; do
    for node in 1 2 3; do slow_down $node "$rate"; done
    echo "slurm/bench_test.sh: links of $rate"
    job=$("$repository/slurm/bench.sh" --nodes 1,2,3 --parsable -- --cpu "$RANKS" --configs configs/resnet18.yaml \
        --batch-per-rank 64 --set comm.bucket_cap_mib=4 --variant after:comm.overlap=off "$@")
    until has_ended "$job"; do sleep 1; done
    cat "lockstep-bench-$job.out"
    [ "$(state_of "$job")" = "COMPLETED 0:0" ]
    mkdir -p "$out/$rate"
    cp -r "benches/results/slurm-$job/." "$out/$rate"
done
