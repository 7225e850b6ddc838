"""Job scripts: written, checked by bash, submitted to a stand-in for sbatch, and run as the first node runs them."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import UcllmError
from pipeline.launch import batch
from pipeline.launch.cluster import load

COMMAND = ["/w/my work/ucllm", "train", "pretrain", "--set", "data.input=it's $HOME"]


def _checked(script: str, folder: Path) -> Path:
    path = folder / "job.sh"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return path


def test_a_slurm_script_asks_for_what_the_guides_ask_for(tmp_path: Path) -> None:
    script = batch.job_script(load("gcp-play"), (2, 8), COMMAND, Path("/w/my 100%/log"), "gpt 0.125B")
    lines = [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]
    for option in (
        "--partition=g2",
        "--nodes=2",
        "--gpus-per-node=8",
        "--cpus-per-task=48",
        "--time=06:00:00",
        "--job-name=gpt_0.125B",
        '--output="/w/my 100%%/log/%x-%j.log"',
    ):
        assert option in lines
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert script.splitlines()[-1] == f"exec {shlex.join(COMMAND)}"
    _checked(script, tmp_path)


def test_what_a_cluster_does_not_say_is_not_asked_for() -> None:
    script = batch.job_script(load("gcp-honban"), (1, 8), ["true"], Path("/l"), "x")
    assert "--time" not in script
    assert "module" not in script.replace("`module`", "")
    more = dataclasses.replace(load("gcp-honban"), submit_options=("--mem=370G",))
    assert "#SBATCH --mem=370G\n" in batch.job_script(more, (1, 8), ["true"], Path("/l"), "x")


def test_an_sge_script_asks_for_what_the_guides_ask_for(tmp_path: Path) -> None:
    script = batch.job_script(load("abci"), (2, 8), COMMAND, Path("/w/log"), "0.125B")
    lines = [line[3:] for line in script.splitlines() if line.startswith("#$ ")]
    assert {"-l rt_AF=2", "-l h_rt=12:00:00", "-l USE_SSH=1", "-v SSH_PORT=2222"} <= set(lines)
    assert {"-N ucllm-0.125B", "-o /w/log/0.125B-$JOB_ID.log"} <= set(lines)
    assert "source /etc/profile.d/modules.sh\nmodule purge\nmodule load python/3.11 cuda/11.8 hpcx/2.12\n" in script
    _checked(script, tmp_path)
    assert "-l rt_AG.small=1" in batch.job_script(load("abci"), (1, 1), COMMAND, Path("/w/log"), "x")


def test_a_folder_that_a_script_cannot_name_is_refused() -> None:
    for name, folder in (("abci", "/w/my log"), ("abci", "/w/$x"), ("gcp-play", "/w/a\nb")):
        with pytest.raises(UcllmError) as caught:
            batch.job_script(load(name), (1, 8), ["true"], Path(folder), "x")
        assert caught.value.problems[0].code == "submit.folder"


def test_without_a_scheduler_there_is_no_script() -> None:
    with pytest.raises(UcllmError) as caught:
        batch.job_script(load("local"), (1, 1), ["true"], Path("/l"), "x")
    assert caught.value.problems[0].code == "submit.no-scheduler"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def _command(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_the_exit_code_of_the_command_is_the_jobs_and_its_words_arrive(tmp_path: Path, commands: Path) -> None:
    _command(
        commands, "train", f'printf "%s\\n" "$@" "$SRUN_CPUS_PER_TASK" > {shlex.quote(str(tmp_path / "got"))}\nexit 12'
    )
    modules = tmp_path / "modules.sh"
    modules.write_text('module() { echo "module $*" "$NOT_SET" >> "$0.log"; }\n', encoding="utf-8")
    cluster = dataclasses.replace(load("gcp-play"), modules=("cuda/11.8",), modules_from=str(modules))
    script = _checked(batch.job_script(cluster, (1, 8), ["train", *COMMAND], tmp_path, "x"), tmp_path)
    env = {**os.environ, "SLURM_CPUS_PER_TASK": "48"}
    done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 12, done.stderr
    assert (tmp_path / "got").read_text(encoding="utf-8").splitlines() == [*COMMAND, "48"]
    assert Path(f"{script}.log").read_text(encoding="utf-8").split() == [
        "module",
        "purge",
        "module",
        "load",
        "cuda/11.8",
    ]


def test_a_module_that_does_not_load_ends_the_job(tmp_path: Path, commands: Path) -> None:
    _command(commands, "train", "exit 0")
    modules = tmp_path / "modules.sh"
    modules.write_text('module() { [ "$1" = purge ]; }\n', encoding="utf-8")
    cluster = dataclasses.replace(load("gcp-play"), modules=("cuda/0",), modules_from=str(modules))
    script = _checked(batch.job_script(cluster, (1, 8), ["train"], tmp_path, "x"), tmp_path)
    assert subprocess.run(["bash", str(script)], capture_output=True, timeout=30).returncode == 1


@pytest.mark.parametrize("answer", ["4711", "4711;cluster-b"])
def test_a_submitted_job_has_a_number(tmp_path: Path, commands: Path, answer: str) -> None:
    _command(commands, "sbatch", f'cp "${{@: -1}}" {shlex.quote(str(tmp_path / "seen.sh"))}\necho "{answer}"')
    folder = tmp_path / "my runs"
    folder.mkdir()
    script = _checked(batch.job_script(load("gcp-play"), (2, 8), COMMAND, folder, "x"), folder)
    assert batch.submit(script, load("gcp-play")) == "4711"
    assert (tmp_path / "seen.sh").read_text(encoding="utf-8") == script.read_text(encoding="utf-8")


def test_what_sbatch_says_when_it_refuses_is_passed_on(tmp_path: Path, commands: Path) -> None:
    _command(commands, "sbatch", 'echo "sbatch: error: AssocGrpSubmitJobsLimit" >&2; exit 1')
    with pytest.raises(UcllmError) as caught:
        batch.submit(tmp_path / "job.sh", load("gcp-play"))
    problem = caught.value.problems[0]
    assert problem.code == "submit.refused"
    assert "AssocGrpSubmitJobsLimit" in problem.why


def test_an_answer_that_is_no_number_is_a_refusal(tmp_path: Path, commands: Path) -> None:
    _command(commands, "sbatch", "echo maintenance")
    with pytest.raises(UcllmError) as caught:
        batch.submit(tmp_path / "job.sh", load("gcp-play"))
    assert "maintenance" in caught.value.problems[0].why


def test_without_sbatch_the_command_is_in_the_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UcllmError) as caught:
        batch.submit(tmp_path / "job.sh", load("gcp-play"))
    assert caught.value.problems[0].code == "submit.no-sbatch"
    assert f"sbatch --parsable {tmp_path}/job.sh" in caught.value.problems[0].hint


def test_for_sge_the_user_submits_with_the_exact_command(tmp_path: Path) -> None:
    with pytest.raises(UcllmError) as caught:
        batch.submit(tmp_path / "job.sh", load("abci"))
    assert caught.value.problems[0].code == "submit.by-hand"
    assert f"qsub -g YOUR_GROUP {tmp_path}/job.sh" in caught.value.problems[0].hint
