#!/usr/bin/env bash
# Start a small real Slurm on this machine: slurmctld and a slurmd for each of some nodes, with no
# systemd. For tests only: every daemon runs as root, at 127.0.0.1.
#
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
#   tests/start-slurm.sh FOLDER      state, logs, pid files and a munge key of its own
#   tests/stop-slurm.sh FOLDER       ends what is in FOLDER, and removes it
#
# Nodes claim what they have not: 16 cores, 128 GB, and 2 GPUs, which are links to /dev/null. Slurm
# then hands the GPUs out for real, by CUDA_VISIBLE_DEVICES.
#
# A daemon that is up is left alone and one that is missing is started, so a node that was killed
# comes back with a second call. There is no accounting: sacct says that it is disabled.
set -euo pipefail

FOLDER=${1:?Expected a folder for the state of Slurm}
NODES=${SLURM_TEST_NODES:-2}
CPUS=${SLURM_TEST_CPUS:-16}
MEM=${SLURM_TEST_MEM:-128000}
GPUS=${SLURM_TEST_GPUS:-2}
PORT=${SLURM_TEST_PORT:-16817}

# Not SLURM_CONF: Snakemake's plugin removes all SLURM_* variables before it calls srun in a job.
CONF=/etc/slurm
MARK="# written by tests/start-slurm.sh"
HOST=$(hostname -s 2>/dev/null || hostname)
SOCKET=$FOLDER/munge/socket

die() {
    printf 'start-slurm: %s\n' "$*" >&2
    exit 1
}

running() { # running PIDFILE PROGRAM: the pid is alive, and is that program
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -r "/proc/$pid/cmdline" ] || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "$2"
}

wait_for() { # wait_for SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

[ "$(id -u)" = 0 ] || die "expected to run as root: slurmd starts jobs as their users"
for program in munged munge slurmctld slurmd sinfo; do
    command -v $program >/dev/null || die "expected the program $program, found none; see the top of this file"
done
if [ -e $CONF/slurm.conf ] && ! grep -qxF "$MARK" $CONF/slurm.conf; then
    die "expected no $CONF/slurm.conf, found one that this script did not write: a Slurm is set up here"
fi
if [ -e $CONF/slurm.conf ] && ! grep -qxF "StateSaveLocation=$FOLDER/state" $CONF/slurm.conf; then
    die "expected no other test Slurm, but $CONF/slurm.conf belongs to one: stop it first"
fi

mkdir -p "$FOLDER"/{munge,state,log,run,dev,spool} $CONF
chmod 755 "$FOLDER" "$FOLDER/munge" # munged refuses folders that others may write to

[ -s "$FOLDER/munge/key" ] || (umask 077 && head -c 128 /dev/urandom >"$FOLDER/munge/key")
if ! running "$FOLDER/run/munged.pid" munged; then
    rm -f "$SOCKET" "$SOCKET.lock"
    munged --key-file="$FOLDER/munge/key" --socket="$SOCKET" --pid-file="$FOLDER/run/munged.pid" \
        --log-file="$FOLDER/log/munged.log" --seed-file="$FOLDER/munge/seed" ||
        die "munged did not start; see $FOLDER/log/munged.log"
fi
wait_for 10 munge -S "$SOCKET" -n || die "munged does not answer; see $FOLDER/log/munged.log"

# The daemons listen on the address of this machine's name, and are found if that is 127.x; with any
# other name they have to listen on all addresses, and munge refuses who has not this key.
LISTEN=""
case "$(getent ahostsv4 "$(hostname)" | awk 'NR==1 {print $1}')" in
127.*) LISTEN="CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" ;;
esac

cat >$CONF/slurm.conf <<CONFIG
$MARK
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
$LISTEN
AuthType=auth/munge
AuthInfo=socket=$SOCKET,cred_expire=10
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool/%n
SlurmctldPidFile=$FOLDER/run/slurmctld.pid
SlurmdPidFile=$FOLDER/run/slurmd-%n.pid
SlurmctldLogFile=$FOLDER/log/slurmctld.log
SlurmdLogFile=$FOLDER/log/slurmd-%n.log
JobCompType=jobcomp/filetxt
JobCompLoc=$FOLDER/log/jobs.log
# works in any container: no cgroups, no pinning
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# nodes may claim more than there is
SlurmdParameters=config_overrides
GresTypes=gpu
# quick reactions
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5,sched_min_interval=100000,batch_sched_delay=0
KillWait=2
SlurmdTimeout=10
ReturnToService=2
NodeName=node[1-$NODES] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[$((PORT + 1))-$((PORT + NODES))] CPUs=$CPUS RealMemory=$MEM Gres=gpu:$GPUS State=UNKNOWN
PartitionName=main Nodes=node[1-$NODES] Default=YES DefaultTime=01:00:00 State=UP
CONFIG
# The digit that ends a device's name is what CUDA_VISIBLE_DEVICES gets.
for gpu in $(seq 0 $((GPUS - 1))); do ln -sfn /dev/null "$FOLDER/dev/gpu$gpu"; done
printf '%s\nNodeName=node[1-%s] Name=gpu File=%s\n' "$MARK" "$NODES" \
    "$FOLDER/dev/gpu[0-$((GPUS - 1))]" >$CONF/gres.conf

if ! running "$FOLDER/run/slurmctld.pid" slurmctld; then
    slurmctld || die "slurmctld did not start; see $FOLDER/log/slurmctld.log"
fi
wait_for 20 scontrol ping || die "slurmctld does not answer; see $FOLDER/log/slurmctld.log"
for number in $(seq "$NODES"); do
    node=node$number
    mkdir -p "$FOLDER/spool/$node"
    running "$FOLDER/run/slurmd-$node.pid" slurmd || slurmd -N $node ||
        die "the slurmd of $node did not start; see $FOLDER/log/slurmd-$node.log"
done

all_up() {
    local states
    states=$(sinfo -h -N -o %T) && [ -n "$states" ] && ! grep -qvE '^(idle|mixed|allocated|completing)$' <<<"$states"
}
wait_for 30 all_up || die "a node is not up; see $FOLDER/log/"
