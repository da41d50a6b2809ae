"""The files in examples/cluster: shell scripts with simulated commands of SLURM, the manifest against its schema."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.commands import PROJECT, SMALL

CLUSTER = PROJECT / "examples" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
# Starts as many processes as the job has tasks, with the variables that srun sets, and returns the largest exit code.
SRUN = """#!{python}
import os, subprocess, sys
count = int(os.environ["SLURM_NTASKS"])
words = [word for word in sys.argv[1:] if not word.startswith("--cpus-per-task=")]
step = {{"SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NUM_NODES": os.environ["SLURM_NNODES"]}}
tasks = []
for rank in range(count):
    own = {{"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}}
    tasks.append(subprocess.Popen(words, env={{**os.environ, **step, **own}}))
sys.exit(max(task.wait() for task in tasks))
"""


def options(script: Path) -> dict[str, str]:
    """The options of sbatch in a script."""
    lines = [line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    return dict(line.partition("=")[::2] for line in lines)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_have_no_syntax_error(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if program := shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
        subprocess.run([program, script], check=True)


def test_each_task_of_an_array_runs_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    script, words = CLUSTER / "slurm-sweep.sh", ["--config", "a file.yaml", "--grid", "model.lr=1,2"]
    assert options(script)["array"] == "0-3" and options(script)["ntasks"] == "1"
    env = {**os.environ, "PYTHON": str(tmp_path / "python"), "SLURM_ARRAY_TASK_ID": "2"}
    done = subprocess.run(["bash", script, *words], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"cli.py sweep {' '.join(words)}\n"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1200)
def test_a_job_of_two_nodes_is_requeued_and_completes_its_run(tmp_path: Path) -> None:
    """Two tasks receive the signal in the second step and agree in the next one to stop; then the job runs again."""
    called, script = tmp_path / "called", CLUSTER / "slurm-train.sh"
    programs = {"srun": SRUN.format(python=sys.executable), "scontrol": f'#!/bin/sh\necho "$@" >> {called}\n'}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cli.py").symlink_to(PROJECT / "cli.py")
    assert options(script)["nodes"] == "2" and options(script)["signal"].startswith("SIGUSR1@")
    job = {"JOB_ID": "77", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "NODELIST": "localhost"}
    env = {**os.environ, **{f"SLURM_{key}": value for key, value in job.items()}, "OMP_NUM_THREADS": "1"}
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "PYTHONPATH": str(PROJECT)}
    words = [*SMALL, "--trainer.callbacks+", "tests.cli.test_train.Signal", "--trainer.log_every_n_steps", "1"]
    run = tmp_path / "runs/digits/version_0"
    for restarts, (signals, code, step) in enumerate([("SIGUSR1", 143, 3), ("", 0, 12)]):
        own = {"SLURM_RESTART_COUNT": str(restarts), "SIGNALS": signals}
        command = ["bash", str(script), *words]
        done = subprocess.run(command, cwd=tmp_path, env=env | own, capture_output=True, text=True, timeout=900)
        assert done.returncode == code, done.stdout + done.stderr
        assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step
        assert done.stdout.count("× 2 processes") == 1
    assert called.read_text() == "requeue 77\n" and [path.name for path in run.parent.iterdir()] == ["version_0"]


def test_the_manifest_starts_one_training_on_all_pods() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    words = dict(word.removeprefix("--").partition("=")[::2] for word in container["args"] if word.startswith("--"))
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == int(words["nnodes"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(words["nproc-per-node"])
    # The first pod is JOB-0, and its address needs the headless service of the subdomain.
    assert words["master-addr"] == f"{name}-0.{pod['subdomain']}" and service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["selector"] == {"job-name": name}
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert container["env"][0]["name"] == "PET_NODE_RANK"
    # The image of the Dockerfile has the package, but not cli.py.
    assert (PROJECT / "configs" / f"{words['config']}.yaml").is_file() and not (PROJECT / words["config"]).exists()
    assert container["args"][container["args"].index("--module") + 1] == "resnet_pl"


def test_the_manifest_follows_its_schema() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for document in yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()):
        validate.validate(document, validate.latest_version(), strict=True)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1200)
def test_a_sharded_network_resumes_exactly_and_is_tested_alone(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}

    def start(processes: int, *words: str) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launcher, str(PROJECT / "cli.py"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    fit = ["fit", *SMALL, "--config", str(CLUSTER / "sharded.yaml"), "--trainer.accelerator", "cpu", "--name"]
    start(2, *fit, "whole")
    start(2, *fit, "part", "--trainer.max_steps", "8")
    start(2, "fit", "--ckpt_path", "last", "--name", "part", "--trainer.max_steps", "-1")
    saved = [tmp_path / f"runs/{name}/version_0/checkpoints/last.ckpt" for name in ("whole", "part")]
    whole, part = (torch.load(path, weights_only=True)["state_dict"] for path in saved)
    assert whole.keys() == part.keys() and all(torch.equal(whole[key], part[key]) for key in whole)
    results = []
    for processes in (1, 2):
        start(processes, "test", "--ckpt_path", str(saved[0]), "--output", f"by{processes}")
        results.append(json.loads((tmp_path / f"by{processes}/results.json").read_text()))
    assert results[0]["images"] == results[1]["images"] == 360 and results[0]["top1"] == results[1]["top1"]
