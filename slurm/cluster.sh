# A Slurm cluster of several nodes on one machine, to be sourced: a network namespace and a host name for
# each node, a bridge between them, one controller, one key, all in a temporary directory, all gone at the
# end.
#
#   start_cluster NODES CPUS    sets $work, exports SLURM_CONF; nodes are n1, n2, ... at 10.99.<x>.1, .2, ...
#   stop_node n2                its daemon is killed and its network is down
#
# Needs root, ip, nsenter and Debian's slurm-wlm and munge: `cluster_is_possible` says what is missing.

PATH=$PATH:/usr/sbin:/sbin
pids=()
declare -A slurmd_pids

cluster_is_possible() {
    local program
    [ "$(id -u)" -eq 0 ] || { echo "not root"; return 1; }
    for program in slurmctld slurmd munged sbatch srun scontrol scancel ip nsenter unshare; do
        command -v "$program" >/dev/null || { echo "$program is not installed"; return 1; }
    done
}

# Polls until "$@" succeeds, for two minutes.
eventually() {
    local attempt
    for ((attempt = 0; attempt < 600; attempt++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.2
    done
    echo "$0: did not happen within two minutes: $*" >&2
    return 1
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# Interface names have 15 characters: a tag of this process tells clusters apart.
make_network() {
    local node
    tag=$(printf %x $$)
    subnet=10.99.$(($$ % 250))
    ip link add "lsb$tag" type bridge
    ip addr add "$subnet.254/24" dev "lsb$tag"
    ip link set "lsb$tag" up
    for node in $(seq "$nodes"); do
        ip netns add "ls$tag-n$node"
        ip link add "lsv$tag.$node" type veth peer name eth0 netns "ls$tag-n$node"
        ip link set "lsv$tag.$node" master "lsb$tag" up
        ip -n "ls$tag-n$node" addr add "$subnet.$node/24" dev eth0
        ip -n "ls$tag-n$node" link set eth0 up
        ip -n "ls$tag-n$node" link set lo up
        echo "$subnet.$node n$node" >>"$work/hosts"
    done
    echo "127.0.0.1 localhost" >>"$work/hosts"
}

# Runs "$@" as node $1 sees the world.
on_node() {
    local node=$1
    shift
    nsenter --net="/run/netns/ls$tag-$node" unshare --uts --mount sh -c \
        'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"' \
        sh "$node" "$work/hosts" "$@"
}

start_cluster() {
    nodes=$1
    local cpus=$2 node host cgroup=cgroup/v1
    host=$(hostname -s)
    work=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-slurm.XXXXXX")
    chmod 755 "$work"
    # At once: what follows, and the end of this, must never speak to a cluster that is there already.
    export SLURM_CONF=$work/slurm.conf
    trap stop_cluster EXIT
    trap 'exit 130' INT TERM
    make_network
    mkdir -p "$work"/{munge,state,spool,submit}
    chmod 700 "$work/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$work/munge/key")
    # --force: a socket under /tmp, and a key that is not root's, are wanted here.
    munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge.socket" \
        --pid-file="$work/munge/pid" --seed-file="$work/munge/seed" \
        --log-file="$work/munge/log" >"$work/munged.log" 2>&1 &
    pids+=($!)
    eventually test -S "$work/munge.socket"

    cat >"$work/slurm.conf" <<CONF
ClusterName=lockstep
SlurmctldHost=$host($subnet.254)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool/%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdTimeout=20
InactiveLimit=0
MessageTimeout=30
SlurmctldParameters=idle_on_node_suspend
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$(for node in $(seq "$nodes"); do
    echo "NodeName=n$node NodeAddr=$subnet.$node NodeHostname=n$node CPUs=$cpus State=UNKNOWN"
done)
PartitionName=test Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=9 PreemptMode=OFF
CONF
    # No cgroup is needed here, and the one for version 2 would want systemd.
    case "$(slurmd -V)" in "slurm 2"[4-9]* | "slurm 23.11"*) cgroup=disabled ;; esac
    echo "CgroupPlugin=$cgroup" >"$work/cgroup.conf"
    slurmctld -D -f "$SLURM_CONF" >"$work/slurmctld.log" 2>&1 &
    pids+=($!)
    for node in $(seq "$nodes"); do start_node "n$node"; done
    eventually all_nodes_are_idle
}

start_node() {
    ip -n "ls$tag-$1" link set eth0 up
    on_node "$1" slurmd -D -N "$1" -f "$SLURM_CONF" >>"$work/slurmd-$1.log" 2>&1 &
    slurmd_pids[$1]=$!
}

# Like a machine that loses its power: all that runs there is killed, and nobody says goodbye.
stop_node() {
    ip -n "ls$tag-$1" link set eth0 down
    kill_node "$1"
}

kill_node() {
    local pid
    for pid in $(ip netns pids "ls$tag-$1" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    wait "${slurmd_pids[$1]:-}" 2>/dev/null || true
}

all_nodes_are_idle() {
    [ "$(sinfo --noheader --Node --partition=test --format=%T | grep -cx idle)" -eq "$nodes" ]
}

stop_cluster() {
    local code=$? index node
    trap - EXIT
    if [ "$code" -ne 0 ]; then
        tail -n 60 "$work"/slurm*.log "$work"/submit/*.out 2>/dev/null || true
    fi
    scancel --quiet --user="$(id -un)" 2>/dev/null || true
    for node in $(seq "$nodes"); do kill_node "n$node"; done
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
        kill "${pids[index]}" 2>/dev/null || true
        wait "${pids[index]}" 2>/dev/null || true
    done
    for node in $(seq "$nodes"); do
        ip link delete "lsv$tag.$node" 2>/dev/null || true
        ip netns delete "ls$tag-n$node" 2>/dev/null || true
    done
    ip link delete "lsb$tag" 2>/dev/null || true
    rm -rf "$work"
    exit "$code"
}

# The state and exit code of a job, such as `COMPLETED 0:0`.
state_of() {
    scontrol --oneliner show job "$1" |
        sed -En 's/.* JobState=([A-Z_]+) .* ExitCode=([0-9]+:[0-9]+).*/\1 \2/p'
}

has_ended() {
    case "$(state_of "$1")" in COMPLETED* | FAILED* | CANCELLED* | TIMEOUT* | NODE_FAIL*) ;; *) return 1 ;; esac
}
