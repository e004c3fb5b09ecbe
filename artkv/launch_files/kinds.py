"""What `artkv launch` can write; nothing here takes time to import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A file of launch/.

    source: its name there. summary: what it is for. start: the command that follows, `FILE` being the written file;
    empty where another command reads it.
    """

    source: str
    summary: str
    start: str = ""

    @property
    def default_name(self) -> str:
        """The name that it is written under where none is given."""
        return self.source.removesuffix(".example")


KINDS = {
    "local": Kind("train_local.sh", "all GPUs of this machine", "bash FILE my.yaml"),
    "multinode": Kind("train_multinode.sh", "the hosts of a hostfile, over pdsh and ssh", "bash FILE my.yaml"),
    "hostfile": Kind("hostfile.example", "the hosts that multinode reads"),
    "deepspeed-env": Kind("deepspeed_env.example", "variables of multinode's ranks; name it .deepspeed_env"),
    "slurm": Kind("train.sbatch", "Slurm, one task a GPU", "sbatch FILE"),
    "slurm-deepspeed": Kind("train_deepspeed.sbatch", "Slurm, one DeepSpeed launcher a node", "sbatch FILE"),
    "slurm-cache": Kind("cache.sbatch", "Slurm: the frozen encoders' features", "sbatch FILE"),
    "slurm-evaluate": Kind("evaluate.sbatch", "Slurm: a checkpoint's scores", "sbatch FILE"),
    "slurm-sweep": Kind(
        "sweep.sbatch", "Slurm: the runs of a sweep, as an array", "SWEEP=sweep.yaml sbatch --array=0-14 FILE"
    ),
    "kubernetes": Kind("jobset.yaml", "Kubernetes: a JobSet, which starts pods again", "kubectl apply -f FILE"),
    "skypilot": Kind("skypilot.yaml", "SkyPilot: machines of a cloud, preempted or not", "sky jobs launch FILE"),
}
