"""Started in each process of a fine-tuning by llm-jp-sft, before ``train.py``: what a long training needs of it.

    python llm_jp_sft_start.py [--local_rank=N] …/llm-jp-sft/train.py FLAGS…

``train.py`` calls ``trainer.train()`` and saves. With this it continues from the newest whole checkpoint in
``--output_dir``, on SIGTERM ends its step, saves a checkpoint and ends, and fails when the loss is not a number; and
without DeepSpeed it keeps the weights in fp32. The checkout stays as it was cloned.
"""

from __future__ import annotations

import math
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Printed by one process when a training was stopped, with the step.
STOPPED = "ucllm: stopped at step"


def main() -> None:
    """Take the measures, then run the script."""
    words = sys.argv[1:]
    script = next(word for word in words if word.endswith(".py"))
    # As Python does for a script; from the folder that holds this package only what nothing else has.
    rest = [place for place in sys.path if place != str(HERE)]
    sys.path[:] = [str(Path(script).parent), *rest, str(HERE.parent.parent)]
    from pipeline.engines import megatron_start

    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    megatron_start.die_with_the_launcher()
    megatron_start.die_with_the_stage()
    megatron_start.open_many_files()
    megatron_start.leave_number()
    sys.argv = [script, *(word for word in words if word != script)]
    continue_and_stop(asked)
    order_by_the_seed()
    if "--deepspeed" not in words and os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true":
        keep_weights_in_fp32()
    runpy.run_path(script, run_name="__main__")


def continue_and_stop(asked: list[int]) -> None:
    """Let every ``Trainer.train()`` start from the newest whole checkpoint, and end when ``asked`` holds something.

    A training that was asked to stop ends this process: what it would save is not what was wanted.
    """
    from transformers import Trainer

    from pipeline.checkpoints import newest_complete
    from pipeline.engines.llm_jp_sft import CHECKPOINTS

    train = Trainer.train

    def whole(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        watch = _watcher_class()(asked)
        trainer.add_callback(watch)
        start = newest_complete(Path(trainer.args.output_dir), CHECKPOINTS)
        if start is not None:
            kwargs["resume_from_checkpoint"] = str(start)
        result = train(trainer, *args, **kwargs)
        if watch.stopped:
            if trainer.is_world_process_zero():
                print(STOPPED, trainer.state.global_step, flush=True)
            sys.exit(0)
        return result

    Trainer.train = whole


def order_by_the_seed() -> None:
    """Draw the order of the conversations from the seed alone.

    The Trainer seeds its sampler with the next random number, which depends on how many were drawn before: a training
    that is continued within an epoch would see some conversations twice in it and others never.
    (4.37: ``_get_train_sampler``; torch's ``RandomSampler`` goes on in a generator of its own from epoch to epoch, and
    the Trainer draws the epochs that it skips.)
    """
    import torch
    from transformers import Trainer

    def sampler(trainer: Any, dataset: Any = None) -> Any:
        generator = torch.Generator()
        generator.manual_seed(trainer.args.seed)
        rows = trainer.train_dataset if dataset is None else dataset
        return torch.utils.data.RandomSampler(rows, generator=generator)

    Trainer._get_train_sampler = sampler


def keep_weights_in_fp32() -> None:
    """Compute in bf16 with weights in fp32, as DeepSpeed does.

    ``train.py`` loads them in bf16, where an update smaller than half of a weight's last digit is lost: with a learning
    rate of 1e-5, 97 of 100 weights of a small GPT-2 were the same after 80 steps, and the loss had not fallen.
    """
    import torch
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def in_fp32(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{**kwargs, "torch_dtype": torch.float32})

    AutoModelForCausalLM.from_pretrained = in_fp32


def _watcher_class() -> Any:
    """The ``TrainerCallback``; a function, because transformers is imported only here."""
    from transformers import TrainerCallback

    from pipeline.checkpoints import mark_complete
    from pipeline.engines.llm_jp_sft import CHECKPOINTS

    class Watcher(TrainerCallback):  # type: ignore[misc]  # transformers is not analysed: pyproject.toml
        def __init__(self, asked: list[int]) -> None:
            self.asked, self.stopped = asked, False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  the Trainer's
            if state.global_step < state.max_steps and _anywhere(bool(self.asked), args.device):
                self.stopped = control.should_training_stop = control.should_save = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
            # Before the step is saved: nothing could be continued from such weights.
            if not math.isfinite(float((logs or {}).get("loss", 0.0))):
                raise FloatingPointError(f"the loss is not a number at step {state.global_step}")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  the Trainer's
            # All processes have written by now: the Trainer waits for them (4.37: _save_checkpoint, its end).
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"{CHECKPOINTS.prefix}{state.global_step}"
                mark_complete(folder, CHECKPOINTS)

    return Watcher


def _anywhere(here: bool, device: Any) -> bool:
    """Whether any process says so: only those of one machine are asked, and all must end at the same step."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return here
    import torch

    flag = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


if __name__ == "__main__":
    main()
