"""Every setting with its default, once. The command line and the library both read it from here."""

from dataclasses import dataclass
from typing import Literal

EntityKind = Literal["name", "code", "country"]
RelationKind = Literal["event-code", "base-code", "root-code", "event-quad"]
TimeSource = Literal["auto", "added", "event"]
ModelType = Literal["counts", "tirgn", "regcn"]
MaskMode = Literal["multiply", "exclude"]
Precision = Literal["auto", "bf16", "f32"]
Optimiser = Literal["adam", "adamw"]
Schedule = Literal["constant", "cosine"]
DeviceChoice = Literal["auto", "gpu", "cpu"]
SplitName = Literal["train", "valid", "test"]
RefitSplit = Literal["valid", "test"]
OF_THE_RUN = ("device", "max_time", "checkpoint_interval", "checkpoint_seconds")  # no setting of what is trained
ONLY_MEMORY = ("block_size", "remat")  # a refit may need less than what it refits
Protocol = Literal["single-step", "multi-step"]
FilterName = Literal["time", "static", "raw"]

DEFAULT_DATASET = "data/gdelt"
DEFAULT_MODEL_DIR = "models/tkg"
PARITY_TOLERANCE = 1e-4  # of log-probabilities, PyTorch against JAX


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How GDELT rows become facts."""

    entity: EntityKind = "name"  # which actor column names an entity
    relation: RelationKind = "event-code"  # which event column names a relation
    granularity: str = "1d"  # width of a time step: 15min, 1h, 1d, 1w ...
    time: TimeSource = "auto"  # DATEADDED, SQLDATE, or by the day the row was added
    num_days: int = 30  # the last days kept; 0 keeps all
    max_events: int = 0  # facts kept, thinned per timestamp in proportion; 0 keeps all
    min_mentions: int = 0  # rows with fewer NumMentions are dropped
    min_entity_count: int = 1  # entities in fewer distinct facts are dropped, one pass
    keep_self_pairs: bool = False  # keep rows that name the same entity twice
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)  # shares of the timestamps, in order
    seed: int = 0  # of the thinning


SAMPLE_CONFIG = IngestConfig(granularity="1h", num_days=0)  # of the bundled sample


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What defines a model: with the arrays, all that is needed to rebuild it."""

    model_type: ModelType = "counts"
    num_entities: int
    num_relations: int  # without inverses
    embedding_dim: int = 200  # d
    num_layers: int = 2  # graph convolutions per snapshot
    num_channels: int = 50  # of the decoder's convolution
    kernel_width: int = 3  # of the decoder's convolution
    dropout: float = 0.2  # graph layers, decoder input, feature map, hidden
    history_length: int = 7  # k, snapshots evolved
    history_rate: float = 0.3  # weight of the history (copy) mode, TiRGN
    history_window: int = 50  # steps the history vocabulary looks back; 0 = all
    history_mask_mode: MaskMode = "multiply"  # what the mask does to unseen entities, TiRGN
    num_words: int = 0  # of the static entity-word graph; 0 = no such graph
    num_static_edges: int = 0  # of the static entity-word graph
    static_angle: float = 10.0  # degrees a step by which entities may turn from their static embedding
    count_prior: bool = False  # add the score of a counting model to the logits of entities
    half_lives: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0)  # steps after which a count weighs half, of counts
    num_countries: int = 0  # that labels name, of counts; 0 = entities of the subject's country are as any other
    num_paths: int = 0  # entities a subject has not met that counts look at, those that paths lead to; 0 = none

    @property
    def is_counting(self) -> bool:
        """Whether it counts all facts of the past: the counting model, and a network with one beside it."""
        return self.count_prior or self.model_type == "counts"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int = 100
    lr: float = 1e-3
    train_window: int = 0  # steps at the end of train whose facts are learned; 0 = all
    batch_size: int = 1024  # queries, two for each fact, per optimiser step; 0 = a whole timestamp
    block_size: int = 1024  # distinct queries of a step scored at once; larger steps go block by block
    num_negatives: int = 0  # entities a step's softmax is estimated from; 0 = all, exactly
    label_smoothing: float = 0.0  # share of a target's weight that all candidates divide
    patience: int = 15  # epochs without a better valid MRR
    eval_interval: int = 1  # epochs between validations
    checkpoint_interval: int = 10  # epochs between saves of the last state
    checkpoint_seconds: float = 600.0  # most seconds between these, inside an epoch too
    grad_clip: float = 1.0  # global norm
    optimiser: Optimiser = "adam"  # adam adds the weight decay to the gradient, adamw to the update
    weight_decay: float = 1e-5
    schedule: Schedule = "constant"  # of the learning rate; cosine ends at 0 after the last epoch
    warmup_epochs: float = 0.0  # over which the learning rate rises from 0
    task_weight: float = 0.7  # entity loss; relation loss has the rest
    static_weight: float = 0.5  # of the static constraint, where there is a static graph
    precision: Precision = "auto"  # of matrix products; auto = bf16 on GPU, f32 on CPU
    remat: bool | None = None  # recompute the evolution in the backward pass; None = on GPU
    device: DeviceChoice = "auto"
    seed: int = 0
    max_time: float = 0.0  # seconds after which training stops and saves; 0 = none
    through: SplitName = "train"  # the last split that is learned from
    refit_epochs: int = 0  # epochs of a refit, which ends where another training was best; 0 = no refit

    @property
    def last_epoch(self) -> int:
        """After which training ends at the latest."""
        return self.refit_epochs or self.epochs
