#!/usr/bin/env bash
# End the Slurm that start-slurm.sh started with FOLDER, by its pid files, and remove its traces.
set -uo pipefail

FOLDER=${1:?Expected the folder that start-slurm.sh was given}
CONF=/etc/slurm
MARK="# written by tests/start-slurm.sh"

alive() { # alive PID PROGRAM: the pid is alive, and is that program
    [ -r "/proc/$1/cmdline" ] && tr '\0' ' ' <"/proc/$1/cmdline" | grep -q "$2"
}

end() { # end PIDFILE PROGRAM: TERM, and after 10 s KILL
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    alive "$pid" "$2" && kill "$pid"
    for _ in $(seq 100); do
        alive "$pid" "$2" || return 0
        sleep 0.1
    done
    kill -9 "$pid"
}

grep -qxF "StateSaveLocation=$FOLDER/state" $CONF/slurm.conf 2>/dev/null || exit 0
# Jobs first: a slurmd that ends leaves its jobs running.
timeout 5 scancel --full --user="$(id -un)" 2>/dev/null
for _ in $(seq 100); do
    [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
    sleep 0.1
done
for file in "$FOLDER"/run/slurmd-*.pid; do end "$file" slurmd; done
end "$FOLDER/run/slurmctld.pid" slurmctld
end "$FOLDER/run/munged.pid" munged
for file in slurm.conf gres.conf; do
    grep -qxF "$MARK" $CONF/$file && rm -f $CONF/$file
done
rm -rf "$FOLDER"
