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
    wheel: str | None = None  # name==version of a wheel that holds the model as GGUF
    sha256: str | None = None
    # Checked against the folder's config.json; null: whatever it is
    architecture: dict[str, Any] | None = None
    settings: Any = None  # a mapping: of the configuration, other than the pretrained ones
    quantise: str | None = None  # nf4: the linear layers in 4 bit


@dataclass
class Train:
    """What defines the result. See conf/config.yaml."""

    epochs: int
    effective_batch: int
    max_length: int
    lr: float
    lr_head: float
    lr_by: Any  # a mapping of the ends of parameters' names to rates
    weight_decay: float
    decay_all: bool
    adam_eps: float
    warmup_ratio: float
    warmup_steps: int | None
    schedule: str
    clip: float | None
    precision: str
    max_steps: int | None
    evaluate_every: int


@dataclass
class Config:
    """The whole configuration. Task and method are open: their files say which keys there are, and of what
    type."""

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
    """The configuration of a command: a run's, and where and how runs are done, which no record holds."""

    launcher: Launcher = field(default_factory=Launcher)  # of which each one's own type comes with its file
