#!/bin/bash
# Runs two MPI ranks in two network namespaces that a slow link joins, as if on two machines:
#
#   benches/slow_link.sh RATE -n 2 PROGRAM [ARGUMENTS]     such as 1gbit, as tc has it
#   benches/slow_link.sh --check                           whether this can work here, and if not, why
#
# DELAY, such as 100us, is added each way where the kernel has netem. Needs root, `ip`, `tc`, and Open MPI
# 5's mpirun, on PATH or where `make setup` puts it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
mpirun=$(command -v mpirun || echo "$here/../.deps/venv/bin/mpirun")
name=lockstep-$$

reason() {
    local program
    [ "$(id -u)" -eq 0 ] || { echo "needs root"; return; }
    for program in ip tc unshare "$mpirun"; do
        command -v "$program" >/dev/null || { echo "no $program"; return; }
    done
    "$mpirun" --version | grep -q 'Open MPI) 5' || { echo "$mpirun is not Open MPI 5"; return; }
    ip netns add "$name-check" 2>/dev/null || { echo "no network namespaces here"; return; }
    ip netns del "$name-check"
}

why=$(reason)
[ -z "$why" ] || { echo "slow_link: $why" >&2; exit 9; }
[ "${1:-}" != --check ] || exit 0
rate=${1:?a rate}
[ "${2:-}" = -n ] && [ "${3:-}" = 2 ] || { echo "slow_link: two ranks only: -n 2" >&2; exit 2; }
shift 3

work=$(mktemp -d)
cleanup() {
    ip netns del "$name-0" 2>/dev/null || true
    ip netns del "$name-1" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

for side in 0 1; do
    ip netns add "$name-$side"
    ip -n "$name-$side" link set lo up
done
ip -n "$name-0" link add link0 type veth peer name link1 netns "$name-1"
for side in 0 1; do
    ip -n "$name-$side" address add "10.213.7.$((side + 1))/24" dev "link$side"
    ip -n "$name-$side" link set "link$side" up
    tc -n "$name-$side" qdisc add dev "link$side" root handle 1: tbf rate "$rate" burst 256kb latency 50ms
    [ -z "${DELAY:-}" ] || tc -n "$name-$side" qdisc add dev "link$side" parent 1: netem delay "$DELAY"
done

# What mpirun takes for ssh: the host is the other namespace, with a name of its own.
cat >"$work/agent" <<EOF
#!/bin/sh
shift
exec ip netns exec "$name-1" unshare --uts sh -c 'hostname lockstep-1; eval "\$1"' sh "\$*"
EOF
chmod +x "$work/agent"
ip netns exec "$name-0" "$mpirun" --allow-run-as-root --prtemca plm_ssh_agent "$work/agent" \
    --prtemca plm_ssh_no_tree_spawn 1 --host 10.213.7.1:1,10.213.7.2:1 --map-by node --bind-to none \
    --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include 10.213.7.0/24 -n 2 "$@"
