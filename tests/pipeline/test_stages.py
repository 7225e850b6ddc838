"""Which checks a call of some stages waits for."""

from __future__ import annotations

from pipeline.stages import STAGES, required

LISTED = (
    *("machine.disk", "machine.driver", "machine.gpu-arch", "env.python", "env.packages", "ops.apex"),
    *("source.megatron", "build.helpers", "credentials.huggingface", "data.recipe", "data.corpus"),
)
ENVIRONMENT = {"env.python", "env.packages"}
TRAINING = ENVIRONMENT | {
    *("machine.driver", "machine.gpu-arch", "ops.apex", "source.megatron", "build.helpers", "data.recipe"),
}


def test_what_each_stage_waits_for() -> None:
    assert required(["corpus"], LISTED) == ENVIRONMENT
    assert required(["upload-pretrained"], LISTED) == ENVIRONMENT, "a login is not required"
    assert required(["pretrain"], LISTED) == TRAINING | {"data.corpus"}
    assert required(["convert"], LISTED) == ENVIRONMENT | {"source.megatron"}
    assert required(["finetune"], LISTED) == ENVIRONMENT | {"machine.driver", "machine.gpu-arch"}


def test_what_an_earlier_stage_of_the_call_makes_need_not_be_there() -> None:
    assert required([info.name for info in STAGES], LISTED) == TRAINING
    assert required(["pretrain", "corpus"], LISTED) == TRAINING | {"data.corpus"}, "only an earlier one"


def test_what_a_profile_does_not_list_does_not_count() -> None:
    assert required(["pretrain"], ("env.python",)) == {"env.python"}
    assert required([info.name for info in STAGES], ()) == set()
