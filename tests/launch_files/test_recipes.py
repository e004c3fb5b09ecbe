"""The files for Kubernetes, SkyPilot and images: what the peers' own models take, and what artkv needs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from artkv.supervisor.supervising import run_dir_of
from tests.test_launch_scripts import TELL

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
# Of a task of SkyPilot's, of which it takes no others. Its own reader took the file by hand; see docs/containers.md.
SKYPILOT_KEYS = {"name", "resources", "workdir", "file_mounts", "envs", "setup", "run"}


def jobset() -> Any:
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text(encoding="utf-8"))


def pods() -> Any:
    """The template of its only job."""
    (job,) = jobset()["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def skypilot() -> Any:
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text(encoding="utf-8"))


def lost(given: Any, taken: Any, place: str = "") -> list[str]:
    """What a model has not taken of a document: keys that it does not know."""
    if isinstance(given, dict):
        unknown = [f"{place}.{key}" for key in given if key not in taken]
        return unknown + [
            one for key in given if key in taken for one in lost(given[key], taken[key], f"{place}.{key}")
        ]
    if isinstance(given, list):
        return [one for number, item in enumerate(given) for one in lost(item, taken[number], f"{place}.{number}")]
    return [] if given == taken else [place]


def test_the_job_set_is_one_for_the_models_made_of_its_schema() -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    given = jobset()
    assert lost(given, models.JobsetV1alpha2JobSet.from_dict(given).to_dict()) == []
    given["spec"]["failurePolicy"]["maxRestart"] = 1
    (job,) = given["spec"]["replicatedJobs"]
    job["template"]["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    assert lost(given, models.JobsetV1alpha2JobSet.from_dict(given).to_dict()) == [
        ".spec.failurePolicy.maxRestart",
        ".spec.replicatedJobs.0.template.spec.template.spec.terminationGracePeriod",
    ]


def test_the_job_sets_numbers_and_names_belong_together() -> None:
    spec = pods()
    (container,) = spec["template"]["spec"]["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert spec["completionMode"] == "Indexed"  # sets JOB_COMPLETION_INDEX
    assert given["NODES"] == str(spec["parallelism"]) == str(spec["completions"])
    assert given["GPUS"] == container["resources"]["limits"]["nvidia.com/gpu"]
    name, (job,) = jobset()["metadata"]["name"], jobset()["spec"]["replicatedJobs"]
    assert given["MASTER"] == f"{name}-{job['name']}-0-0.{name}"  # the first pod's name, by JobSet's rule
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 180
    # Wrong input and wrong usage, which no other start would mend: the job fails by its policy, and the set by its own.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1, 2])
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert jobset()["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_a_task_of_skypilots_has_no_key_that_it_does_not_know() -> None:
    assert skypilot().keys() == SKYPILOT_KEYS
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", skypilot()[part]], check=True)


@pytest.mark.parametrize(("nodes", "restarts"), [("1", "20"), ("2", "0")])
def test_a_node_starts_its_ranks_under_a_supervisor(nodes: str, restarts: str, tmp_path: Path) -> None:
    """Which understands the command: it reads the config for the run's folder out of it."""
    (tmp_path / "artkv" / "bin").mkdir(parents=True)
    program = tmp_path / "artkv" / "bin" / "artkv"
    program.write_text(f"#!{sys.executable}\n{TELL}")
    program.chmod(0o755)
    (tmp_path / "my.yaml").write_text("run: {output_dir: out}\n")
    script = pods()["template"]["spec"]["containers"][0]["args"][0]
    more = {"NODES": nodes, "GPUS": "8", "MASTER": "first", "JOB_COMPLETION_INDEX": "1"}
    environment = {
        "PATH": f"{program.parent}:{os.defpath}", "HOME": str(tmp_path), "TOLD": str(tmp_path / "told"),
        "CONFIG": str(tmp_path / "my.yaml"), **more,
    }  # fmt: skip
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    words = json.loads((tmp_path / "told").read_text())
    assert words[:5] == ["artkv", "supervise", "--restarts", restarts, "--"]
    for option, value in (
        ("--nnodes", nodes), ("--node_rank", "1"), ("--nproc_per_node", "8"), ("--master_addr", "first"),
        ("--resume", "auto"),
    ):  # fmt: skip
        assert words[words.index(option) + 1] == value
    assert run_dir_of(words[5:]).name == "out"


def test_a_machine_keeps_its_run_on_its_disk_and_a_copy_on_the_bucket(tmp_path: Path) -> None:
    programs = tmp_path / "artkv" / "bin"
    programs.mkdir(parents=True)
    trains = 'import pathlib\npathlib.Path(sys.argv[-1].partition("=")[2], "checkpoint").touch()\nsys.exit(75)\n'
    for name, text in {"artkv": TELL + trains, "rsync": TELL}.items():
        (programs / name).write_text(f"#!{sys.executable}\n{text}")
        (programs / name).chmod(0o755)
    (tmp_path / "my.yaml").write_text("{}\n")
    environment = {
        "PATH": os.defpath, "HOME": str(tmp_path), "TOLD": str(tmp_path / "told"),
        "CONFIG": str(tmp_path / "my.yaml"), "OUTPUT_DIR": str(tmp_path / "a bucket"),
    }  # fmt: skip
    ended = subprocess.run(["bash", "-c", skypilot()["run"]], env=environment, check=False, timeout=60)
    assert ended.returncode == 75  # the training's
    restored, trained, saved = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    run, bucket = str(tmp_path / "run"), str(tmp_path / "a bucket")
    assert restored[-3:] == ["--update", f"{bucket}/", f"{run}/"]  # a job that fails is started again on its machine
    assert saved[-3:] == ["--delete-after", f"{run}/", f"{bucket}/"]
    assert restored[0] == saved[0] == "rsync"
    assert run_dir_of(trained[trained.index("--") + 1 :]) == Path(run)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    found = subprocess.run([hadolint, LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_what_is_kept_lies_in_the_volume_of_the_image_and_of_the_pods() -> None:
    """Which a user without a home folder can write, and which the next container has."""
    dockerfile = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    in_image = dict(re.findall(r"\b(\w+)=(/data\S+)", dockerfile))
    assert in_image.keys() == {"ARTKV_CACHE", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "HF_HOME"}
    (container,) = pods()["template"]["spec"]["containers"]
    in_pods = {variable["name"]: variable["value"] for variable in container["env"]}
    assert {name: in_pods[name] for name in in_image} == in_image


def test_both_images_have_what_triton_compiles_with() -> None:
    installs = [
        re.findall(r"apt-get install (.+?)(?: &&|$)", (LAUNCH / name).read_text(encoding="utf-8"), re.M)
        for name in ("Dockerfile", "artkv.def")
    ]
    assert installs == [["--yes --no-install-recommends gcc libc6-dev"]] * 2


def test_both_images_are_built_of_the_same_files_on_the_same_base() -> None:
    """And those are all that setup.py reads."""
    dockerfile = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
    definition = (LAUNCH / "artkv.def").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M) for name in line.split()}
    assert copied == set(re.findall(r"^    (\S+) /opt/source/\1$", definition, re.M))
    assert all((LAUNCH.parent / name).exists() for name in copied)
    assert {"setup.py", "README.md", "artkv", "ds_configs", "launch", "constraints.txt"} <= copied
    (base,) = re.findall(r"^ARG BASE=(\S+)$", dockerfile, re.M)
    assert re.findall(r"^From: (\S+)$", definition, re.M) == [base]
    assert re.search(r":\d+\.\d+\.\d+", base)
    # The user of the pods, by number: by name Kubernetes could not tell that it is not root.
    user = pods()["template"]["spec"]["securityContext"]
    assert re.findall(r"^USER (\S+)$", dockerfile, re.M) == [f"{user['runAsUser']}:{user['runAsGroup']}"]
