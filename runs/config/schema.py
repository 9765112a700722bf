"""The types of the configuration (conf/config.yaml)."""

from dataclasses import dataclass, field
from typing import Any

from runs.config.launch import Launch, Launcher


@dataclass
class Model:
    """A pretrained backbone: from the hub, a local folder (path), or an installed package. See conf/model."""

    name: str
    label: str
    modality: str
    hub: str | None = None
    revision: str | None = None
    path: str | None = None
    package: str | None = None
    wheel: Any = None  # name==version of a wheel (GGUF, ONNX), or a list of some with hashes: a zip in parts
    sha256: str | None = None  # of model.safetensors, or of the one wheel
    architecture: dict[str, Any] | None = None  # compared with the folder's config.json, unless null
    settings: Any = None  # a mapping: settings of the model's configuration that replace the pretrained ones
    quantise: str | None = None  # nf4: the linear layers in 4 bit


@dataclass
class Train:
    """The settings of training. See conf/config.yaml."""

    epochs: int
    effective_batch: int
    max_length: int
    lr: float
    lr_head: float
    lr_by: Any  # a mapping of the ends of parameters' names to rates
    decay_by: Any  # likewise
    weight_decay: float
    decay_all: bool
    adam_eps: float
    adam_beta2: float
    warmup_ratio: float
    warmup_steps: int | None
    schedule: str
    clip: float | None
    precision: str
    max_steps: int | None
    evaluate_every: int


@dataclass
class Config:
    """The configuration of a run. Task and method are open: their files define their keys and types."""

    model: Model
    task: dict[str, Any]
    method: dict[str, Any]
    train: Train
    seed: int
    data_seed: int
    select: str
    keep: str
    adapter_precision: str
    init_from: str | None
    device: str
    micro_batch: int | None
    gradient_checkpointing: bool
    eval_batch: int
    checkpoint_minutes: float
    output: str
    debug: bool
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass
class Settings(Launch, Config):
    """The configuration of a command: that of its runs, and where and how they are done."""

    launcher: Launcher = field(default_factory=Launcher)  # the launcher's file chooses a subclass
