#!/usr/bin/env bash
# Process 1 of a node of the test cluster: makes its namespaces look like a machine and starts its daemons.
# mini_cluster.py starts it as `bash node.sh FOLDER NAME` in fresh net, uts, ipc, mnt and pid namespaces.
set -euo pipefail
folder=$1
name=$2

hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/ssh_config" /etc/ssh/ssh_config # plain `ssh n1`, as deepspeed and pdsh call it, finds the key
mount -t tmpfs tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mkdir /run/sshd /run/munge /run/slurm

ip link set lo up
if [ "$name" = head ]; then # the switch that the nodes are plugged into
  ip link add br0 type bridge
  ip addr add "$(awk '$2 == "head" { print $1 }' /etc/hosts)/24" dev br0
  ip link set br0 up
else # the other end of a cable, which mini_cluster.py lays
  until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
  ip addr add "$(awk -v name="$name" '$2 == name { print $1 }' /etc/hosts)/24" dev eth0
  ip link set eth0 up
fi

/usr/sbin/sshd -f "$folder/sshd_config" -E "$folder/log/sshd.$name"
munged --key-file="$folder/munge.key" --socket=/run/munge/munge.socket.2 --pid-file=/run/munge/munged.pid \
  --log-file=/run/munge/munged.log --seed-file=/run/munge/munged.seed --num-threads=2
export SLURM_CONF=$folder/slurm.conf
if [ "$name" = head ]; then slurmctld; else slurmd -N "$name"; fi

touch "$folder/$name.up"
# Process 1 must not end, and bash reaps what its namespace orphans while it waits.
while :; do
  sleep 3600 &
  wait $! || true
done
