# What the .sbatch files have in common. Sourced by them on the job's first node, before srun starts the
# tasks, which inherit it all; so that one process alone installs into the shared .venv.
# shellcheck shell=bash

# An image takes the environment's place: its python, its artkv.
container=()
if [ -n "${CONTAINER:-}" ]; then
  # shellcheck disable=SC2034 # not all of them can run in one
  container=(apptainer exec --nv "$CONTAINER")
else
  source launch/environment.sh
fi

# srun does not take --cpus-per-task over from sbatch any more, since Slurm 22.05.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# The same number for each start of a run, since sums over another number of threads differ in rounding.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
