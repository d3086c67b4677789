#!/bin/bash
# Measures the inputs of the prediction of a step, and the steps themselves, and prints both:
#
#   benches/check_prediction.sh OUT [scaling options]     such as --data DIR --max-others 0.03
#
# CPU ranks 2 to 4 over shared memory, with buckets of 1, 4 and 25 MiB, overlapped and not; and, where
# slurm/bench_test.sh can make its cluster, one to three nodes over links of 10 and 1 Gb/s. Needs
# `cargo build --release -p benches -p launcher -p trainer --features benches/mpi,trainer/mpi`.
set -euo pipefail

out=${1:?where to leave records}
shift
bin=$(cd "$(dirname "$0")/../target/release" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
config=$here/../configs/resnet18.yaml
bytes=65536,262144,1048576,4194304,16908584
variants=()
for mib in 1 4 25; do
    variants+=(--variant "overlap-$mib:comm.overlap=on,comm.bucket_cap_mib=$mib")
    variants+=(--variant "after-$mib:comm.overlap=off,comm.bucket_cap_mib=$mib")
done
common=(--configs "$config" --batch-per-rank 64 --no-peers "${variants[@]}")
mkdir -p "$out/shm"

tables=()
for ranks in 2 3 4; do
    "$bin/all_reduce" --ranks $ranks --bytes $bytes --json "$out/shm/all_reduce-$ranks.json"
    tables+=("$out/shm/all_reduce-$ranks.json")
done
"$bin/scaling" --cpu 2,3,4 "${common[@]}" --out "$out/shm" "$@"
"$bin/scaling" check "$out/shm/results.json" "${tables[@]}"

status=0
"$here/../slurm/bench_test.sh" "$out" "$@" || status=$?
# Exit code 9: such a cluster cannot be made here, and the script has said so.
[ "$status" -eq 9 ] || exit "$status"
