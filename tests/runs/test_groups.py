"""The optimizer's groups of each recipe with an authors' source: as in the authors' code. Those of published
runs are in tests/nets."""

import contextlib
import io
import re
from fnmatch import fnmatchcase

import pytest
import torch
import yaml
from tiny import tiny_model

from runs import models
from runs.config import CONF, expand
from runs.methods import make_method
from runs.record import NOT_SETTINGS
from runs.training.checkpoint import make_optimizer, optimizer_groups

pytestmark = pytest.mark.parity

#: Of each recipe with an authors' source, on a task: learning rate and weight decay by the end of a
#: parameter's name (the first that fits); of AdamW's second betas LoRA+'s alone is not torch's. Written from
#: the files named, and not from conf. None: the authors' optimizer or model is another, and the rate is this
#: project's.
AUTHORS = {
    # leo-yangli/VB-LoRA 2fa62a7, ecd7c14, NLU/NLU/scripts_vblora_qv/roberta_base_{mrpc,stsb}.sh;
    # src/transformers/trainer.py, create_optimizer: no weight_decay for bank and logits; optimization.py,
    # AdamW: 0 by default
    ("vblora", "roberta_base", "mrpc"): {
        "vblora_logits_?.*": (1e-2, 0),
        "vblora_vector_bank.*": (1e-3, 0),
        "bias": (4e-3, 0),
        "*": (4e-3, 0.1),
    },
    ("vblora", "roberta_base", "stsb"): {
        "vblora_logits_?.*": (1e-2, 0),
        "vblora_vector_bank.*": (1e-3, 0),
        "bias": (2e-2, 0),
        "*": (2e-2, 0.1),
    },
    # KaiyangLi1992/Uni-LoRA e622e78, NLU/NLU/scripts_unilora_qv/roberta_base_{cola,qnli}.sh; the trainer is
    # VB-LoRA's, theta its vector bank
    ("unilora", "roberta_base", "cola"): {
        "unilora_theta_d.*": (5e-3, 0),
        "bias": (5e-3, 0),
        "*": (5e-3, 0.1),
    },
    ("unilora", "roberta_base", "qnli"): {
        "unilora_theta_d.*": (5e-3, 0),
        "bias": (2e-4, 0),
        "*": (2e-4, 0.1),
    },
    # Chaos96/fourierft ace4fe4, 1b660d1, experiments/GLUE/cola-base-best.sh, NLU_GLUE.py, args.py
    ("fourierft", "roberta_base", "cola"): {"fourierft_spectrum.*": (0.12, 0), "*": (8e-3, 0)},
    # nikhil-ghosh-berkeley/loraplus a38d3e0, glue/scripts/run_roberta_lora.sh (lr 5e-5, ratio 80, no weight
    # decay); lora_plus.py: B's rate for B and for what has one dimension
    ("lora_plus", "roberta_base", "mnli"): {
        "A": (5e-5, 0),
        "B": (4e-3, 0),
        "bias": (4e-3, 0),
        "*": (5e-5, 0),
    },
    # MohammadrezaBanaei/LoRA-XS 3b1ce3b, scripts/run_glue.py and run_glue_pretrained.py (1e-3 is in each
    # grid); main_glue.py and main_glue_from_pretrained.py: torch's AdamW, 0.01 by default, on every parameter
    ("lora_xs", "roberta_large", "cola"): {"R": (1e-3, 0.01), "*": (1e-3, 0.01)},
    ("lora_xs", "roberta_large", "rte"): {"R": (1e-3, 0.01), "*": (1e-3, 0.01)},
    # UCDvision/NOLA d4d3e11, e009fdc, gpt/examples/NLG/scripts/finetune_gpt2m_e2e_qv_nola.sh and
    # gpt/scripts/finetune_gpt2l_e2e_qv_nola.sh
    ("nola", "gpt2_medium", "e2e"): {"a": (5e-3, 0), "b": (5e-3, 0)},
    ("nola", "gpt2_large", "e2e"): {"a": (1e-2, 0), "b": (1e-2, 0)},
    # dongzelian/SSF d9a631e, 28a70a6, train_scripts/vit/vtab/{cifar_100,flowers102,resisc45}/train_ssf.sh;
    # optim_factory.py, param_groups_weight_decay: no decay of what has one dimension
    ("ssf", "vit_base", "cifar100"): {"weight": (5e-3, 5e-5), "*": (5e-3, 0)},
    ("ssf", "vit_base", "flowers102"): {"weight": (5e-3, 5e-5), "*": (5e-3, 0)},
    ("ssf", "vit_base", "resisc45"): {"weight": (2e-3, 5e-5), "*": (2e-3, 0)},
    # TonAnh/VeRA-plus a18c772, df8cce1, scripts/vera_plus/rte.sh; vera-plus.py: torch's AdamW on two groups
    ("vera_plus", "roberta_base", "rte"): {
        "b": (4e-3, 0.01),
        "c": (4e-3, 0.01),
        "d": (4e-3, 0.01),
        "*": (1e-2, 0.01),
    },
    # microsoft/LoRA 3732c24, c18b175, examples/NLU/roberta_base_mrpc.sh and src/transformers/trainer.py;
    # examples/NLG/README.md and src/optimizer.py (one group)
    ("lora", "roberta_base", "mrpc"): {"bias": (4e-4, 0), "*": (4e-4, 0.1)},
    ("lora", "gpt2_medium", "e2e"): {"*": (2e-4, 0.01)},
    ("vera", "gpt2_medium", "e2e"): {"*": (None, 0.01)},
    ("vera", "gpt2_large", "e2e"): {"*": (None, 0.01)},
    # r-three/t-few 0423695, src/utils/Config.py: weight_decay 0, of IA3 alone (the head is this project's)
    ("ia3", "roberta_base", "rte"): {"ia3_l.*": (None, 0), "bias": (None, 0), "*": (None, 0.01)},
    # Zeju1997/oft 5f024e5, oft-db/train_dreambooth_oft.py: 1e-2; the parameter starts at 0
    ("oft", "roberta_base", "rte"): {"oft_R.*": (None, 0.01), "bias": (None, 0), "*": (None, 0.01)},
}
#: Classes of peft that compute on weights as they are installed, or train more on an outline without them:
#: these are compared on a small model, but for counts.
NEED_WEIGHTS = ("ShiraConfig", "FrodConfig", "AdamssConfig", "AdaLoraConfig")


def adapted(model, method, classes=2):
    """A method, and the outline of a model that it is installed on."""
    words = {key: model[key] for key in ("architecture", "settings", "modality", "label")}
    method = make_method({key: value for key, value in method.items() if key not in NOT_SETTINGS})
    if getattr(method, "config_class", None) in NEED_WEIGHTS:
        outline = tiny_model(hidden_size=384, num_attention_heads=12, num_hidden_layers=1)
    else:
        outline = models.skeleton(words, classes, None)
    with contextlib.redirect_stderr(io.StringIO()):
        method.adapt(outline)
    return method, outline


@pytest.mark.parametrize(("row", "model", "task"), AUTHORS, ids=["-".join(key) for key in AUTHORS])
def test_a_recipe_has_the_groups_of_its_authors(row, model, task):
    (run,) = expand([f"method={row}", f"model={model}", f"task={task}"])
    method, outline = adapted(run.config["model"], run.config["method"])
    wanted = AUTHORS[row, model, task]
    groups, names = optimizer_groups(method, outline, run.config["train"]), dict(outline.named_parameters())
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name in (name for group in method.parameter_groups(outline).values() for name in group):
        rate, decay = next(value for end, value in wanted.items() if fnmatchcase(f".{name}", f"*.{end}"))
        has = found.pop(id(names[name]))
        assert has[1] == decay, name
        assert rate is None or has[0] == pytest.approx(rate), name
    assert not found
    optimizer = make_optimizer(groups, run.config["train"], torch.device("cpu"))
    beta2 = 0.99 if row == "lora_plus" else 0.999
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, beta2)}


def test_each_recipe_with_an_authors_code_is_compared_with_it():
    for path in sorted((CONF / "recipe").glob("*/*.yaml")):
        source = yaml.safe_load(path.read_text()).get("source") or ""
        if re.search(r"[\w-]+/[\w-]+", source) and not source.startswith("this project's choice"):
            assert any(key[:2] == (path.parent.name, path.stem) for key in AUTHORS), path
