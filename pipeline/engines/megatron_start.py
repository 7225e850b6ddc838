"""Started in each process of a Megatron-DeepSpeed training, before ``pretrain_gpt.py``: what its environment lacks.

    python megatron_start.py [--local_rank=N] …/Megatron-DeepSpeed/pretrain_gpt.py FLAGS…

The checkout stays as it was cloned. Each measure is one function below, with its reason; those that the environment
does not need do nothing. Then the script runs as if Python had been called with it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import runpy
import signal
import sys
import threading
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

#: The folder where every process leaves its number: ``HOST-RANK`` (:mod:`pipeline.engines.megatron_run`).
RANKS = "UCLLM_RANKS"
#: ``HOST PID`` of the stage's process that started all this.
STAGE = "UCLLM_STAGE"
#: Seconds between two looks at whether it lives.
LOOK_S = 2.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Take the measures, then run the script."""
    words = sys.argv[1:]
    script = next(word for word in words if word.endswith(".py"))
    die_with_the_launcher()
    die_with_the_stage()
    open_many_files()
    leave_number()
    sys.argv = [script, *(word for word in words if word != script)]
    # As Python does for a script; our own folder is not one to import from.
    here = os.path.realpath(Path(__file__).parent)
    others = [place for place in sys.path if not place or os.path.realpath(place) != here]
    sys.path[:] = [str(Path(script).parent), *others]
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        stand_in_for_intel_extensions()
        talk_over_gloo()
        sort_gradients_of_a_cpu()
        gather_without_gradients()
    log_to_wandb()
    runpy.run_path(script, run_name="__main__")


def die_with_the_launcher() -> None:
    """A launcher that is killed takes its processes with it, instead of leaving them on the GPUs."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_the_stage() -> None:
    """Between it and this process DeepSpeed has two launchers, of which one outlives a killed parent and trains on."""
    host, _blank, number = os.environ.get(STAGE, "").partition(" ")
    if host != os.uname().nodename or not number.isdigit():
        return  # another node: it ends when the others do

    def follow() -> None:
        while True:
            time.sleep(LOOK_S)
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGKILL)
            except PermissionError:
                pass

    threading.Thread(target=follow, daemon=True).start()


def open_many_files() -> None:
    """On nodes reached by ssh the soft limit is a shell's; the published guides raise it in ``~/.bashrc``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def leave_number() -> None:
    """So that a request to stop reaches the training itself, not its launchers, which would kill it."""
    folder = os.environ.get(RANKS)
    if folder:
        name = f"{os.uname().nodename}-{os.environ.get('RANK', '0')}"
        Path(folder, name).write_text(f"{os.getpid()}\n", encoding="ascii")


def stand_in_for_intel_extensions() -> None:
    """DeepSpeed 0.12's CPU accelerator imports Intel's two packages, and needs nothing of them with backend gloo.

    (``deepspeed/accelerator/cpu_accelerator.py``, ``real_accelerator.py``.)
    """
    for name in ("intel_extension_for_pytorch", "oneccl_bindings_for_pytorch"):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)  # transformers asks for it
        sys.modules.setdefault(name, module)


def talk_over_gloo() -> None:
    """DeepSpeed's CPU accelerator talks over Intel's oneCCL, whatever ``--distributed-backend`` says.

    (Megatron's ``_initialize_distributed`` calls ``deepspeed.init_distributed()`` without it.)
    """
    from deepspeed.accelerator import get_accelerator

    get_accelerator()._communication_backend_name = "gloo"


def sort_gradients_of_a_cpu() -> None:
    """DeepSpeed 0.12.4 sorts gradients by types it names ``torch.cpu.FloatTensor``, which torch does not have.

    (``deepspeed/runtime/engine.py``, ``split_half_float_double_sparse``: ``tensor.type()`` says ``torch.FloatTensor``.)
    """
    from deepspeed.runtime import engine

    def split(tensors: list[Any]) -> list[tuple[str, list[Any]]]:
        buckets: dict[str, list[Any]] = {}
        for tensor in tensors:
            buckets.setdefault(tensor.type(), []).append(tensor)
        return list(buckets.items())

    engine.split_half_float_double_sparse = split


def gather_without_gradients() -> None:
    """ZeRO gathers weights into one tensor; gloo writes into views of it, which torch forbids where gradients are kept.

    (``deepspeed/runtime/zero/stage_1_and_2.py``, ``step``; NCCL writes the tensor in whole.)
    """
    from torch import distributed

    gather = distributed.all_gather_into_tensor

    def detached(output_tensor: Any, input_tensor: Any, *rest: Any, **named: Any) -> Any:
        return gather(output_tensor.detach(), input_tensor.detach(), *rest, **named)

    distributed.all_gather_into_tensor = detached


def log_to_wandb() -> None:
    """Megatron at the guide's tag logs to a run of W&B if there is one, and starts none. Its last process logs."""
    if os.environ.get("WANDB_MODE", "disabled") == "disabled":
        return
    if int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        import wandb

        wandb.init()


if __name__ == "__main__":
    main()
