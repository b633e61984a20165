"""What a run is made of.

The settings live apart from the code they configure, because `--help` must not wait for torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune.command_settings import PredictConfig as PredictConfig
from finetune.command_settings import ReportConfig as ReportConfig
from finetune.content_settings import ContentConfig
from finetune.content_settings import check_setting as _check
from finetune.input_settings import InputConfig as InputConfig
from finetune.reuse_settings import ReuseConfig
from finetune.rungs import parse_rung
from finetune.task_settings import DebiasConfig, PositionConfig, TaskWeights
from finetune.trainer_settings import TrainerConfig as TrainerConfig
from finetune.trust_settings import TrustConfig

HeadName = Literal[
    "lr", "fm", "deepfm", "pnn", "dcnv2", "xdeepfm", "finalmlp", "autoint", "din", "dien", "bst"
]
TaskHeadName = Literal["shared_bottom", "mmoe", "ple", "esmm", "two_arms"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The network that turns fields into a click probability."""

    name: HeadName | TaskHeadName = "din"
    """Fields alone: lr, fm (Rendle 2010), deepfm (Guo et al. 2017), pnn (Qu et al. 2016), dcnv2
    (Wang et al. 2021), xdeepfm (Lian et al. 2018), finalmlp (Mao et al. 2023), autoint (Song et
    al. 2019). Also the history, item by item: din (Zhou et al. 2018), dien (Zhou et al. 2019),
    bst (Chen et al. 2019). Several labels (`tasks`): shared_bottom (Caruana 1997), mmoe (Ma et al.
    2018), ple (Tang et al. 2020), esmm (a click and what follows it, Ma et al. 2018). two_arms: a
    treatment's uplift (TARNet, Shalit et al. 2017)."""

    embedding_width: int = 16
    """Width of one field's vector; every head but lr. bst: a multiple of num_heads."""

    id_std: float = 0.01
    """Standard deviation of the ids' vectors at the start. Where ids are past their best after an
    epoch it matters: on short videos 1e-4, which is FuxiCTR's, gave .002 more validation AUC."""

    hidden: tuple[int, ...] = (128, 64)
    """Widths of the deep part's layers; every head but lr, fm and esmm, which has `tower_hidden`.
    Empty: xdeepfm and autoint have no deep part, finalmlp refuses."""

    dropout: float = 0.2
    """Share of the deep part's units dropped while training; every head but lr and fm. bst drops
    in its transformer too."""

    batch_norm: bool = False
    """Normalise the deep part's layers over the batch, before their activation; every head but lr,
    fm and two_arms."""

    product_type: Literal["inner", "outer"] = "inner"
    """pnn: products of every two fields, or the outer product of all fields' sum."""

    cross_layers: int = 2
    """dcnv2: number of cross layers."""

    low_rank: int | None = None
    """dcnv2: rank of the experts whose mixture stands for a full matrix; null: the full matrix."""

    num_experts: int = 4
    """dcnv2: experts of a mixture. mmoe, ple: experts that tasks share, `hidden` their widths."""

    task_experts: int = 2
    """ple: experts of each task's own, a layer."""

    extraction_layers: int = 1
    """ple: layers of experts, each over the last one's."""

    tower_hidden: tuple[int, ...] = (32,)
    """shared_bottom, mmoe, ple, esmm, two_arms: widths of each task's, or arm's, own layers."""

    cin_hidden: tuple[int, ...] = (16, 16)
    """xdeepfm: feature maps of the compressed interaction network's layers."""

    second_hidden: tuple[int, ...] | None = None
    """finalmlp: widths of the second stream's layers; null: as `hidden`, which is the first's."""

    gate_hidden: tuple[int, ...] = (64,)
    """finalmlp: widths of the gates' layers."""

    attention_layers: int = 2
    """autoint: layers in which fields attend to fields."""

    attention_width: int = 16
    """autoint: width of one attention head."""

    num_heads: int = 2
    """autoint, bst: attention heads. finalmlp: heads of the fusion, a divisor of both streams' last
    width."""

    attention_hidden: tuple[int, ...] = (32,)
    """din: widths of the activation unit's layers."""

    transformer_layers: int = 1
    """bst: layers of the transformer."""

    def __post_init__(self) -> None:
        for key in (
            "hidden",
            "cin_hidden",
            "second_hidden",
            "gate_hidden",
            "attention_hidden",
            "tower_hidden",
        ):
            widths = getattr(self, key) or ()
            _check(all(h > 0 for h in widths), f"head.{key}", widths, "positive widths")
        for key in (
            "embedding_width",
            "cross_layers",
            "num_experts",
            "task_experts",
            "extraction_layers",
            "attention_layers",
            "attention_width",
            "num_heads",
            "transformer_layers",
        ):
            _check(getattr(self, key) > 0, f"head.{key}", getattr(self, key), "at least 1")
        _check(0 <= self.dropout < 1, "head.dropout", self.dropout, "a share in [0, 1)")
        _check(self.id_std > 0, "head.id_std", self.id_std, "above 0")
        rank = self.low_rank
        _check(rank is None or rank > 0, "head.low_rank", rank, "null or at least 1")
        _check(len(self.cin_hidden) > 0, "head.cin_hidden", self.cin_hidden, "at least one layer")
        multiple = f"a multiple of head.num_heads, {self.num_heads}"
        if self.name == "bst":
            width = self.embedding_width
            _check(width % self.num_heads == 0, "head.embedding_width", width, multiple)
        if self.name == "finalmlp":
            for key in ("hidden", "second_hidden"):
                widths = getattr(self, key)
                ok = widths is None or (len(widths) > 0 and widths[-1] % self.num_heads == 0)
                _check(ok, f"head.{key}", widths, f"at least one layer, the last {multiple}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained; ids and everything else are two optimiser groups."""

    batch_size: int = 1024
    """Impressions a step, over every rank together."""

    max_epochs: int = 6
    """Most passes over the training impressions."""

    patience: int = 2
    """Epochs without a better validation AUC before training stops; the best weights are kept."""

    lr: float = 1.0e-3
    """Adam's learning rate for the dense and content parts."""

    weight_decay: float = 1.0e-5
    """Decoupled weight decay of the dense and content parts."""

    id_lr: float = 1.0e-3
    """Adam's learning rate for the embedding table."""

    id_optimizer: Literal["sparse", "dense"] = "sparse"
    """sparse: Adam on the table's rows that a batch reads, whatever the table's size (lazy Adam);
    dense: Adam on the whole table every step, whose momentum moves a row on after it was read, so
    that sparse may want a higher id_lr. ZeRO needs dense."""

    id_l2: float = 1.0e-4
    """L2 penalty on the table's rows that a batch touches (Zhou et al. 2018, section 5.2)."""

    content_l2: float = 0.0
    """The same penalty on the fields made of content: vectors of a few thousand items are learnt by
    heart as ids are, and then say the wrong thing of items that are new."""

    id_epochs: int | None = None
    """Epochs after which the embedding table is frozen, since ids overfit first; null: never."""

    id_reset: Literal["never", "each_epoch"] = "never"
    """`each_epoch`: the embedding table starts anew every epoch while the rest trains on, so that
    ids are never seen twice by the same embedding (MEDA, Liu et al. 2023, arXiv 2305.19531)."""

    id_dropout: float = 0.1
    """Share of user and item ids replaced by the unknown id while training, so that the unknown
    id is trained and a head does not lean on ids alone."""

    negative_rate: float = 1.0
    """Share of the negatives that an epoch trains on, drawn anew for each; predictions are
    corrected for it (He et al. 2014, section 6.3)."""

    grad_clip_norm: float = 10.0
    """Largest gradient norm; 0 switches clipping off."""

    monitor: str | None = None
    """Task whose validation AUC, or normalised Gini, says when to stop; null: the mean over all."""

    task_weights: TaskWeights = "fixed"
    """uncertainty: tasks are weighed by learnt variances (Kendall et al. 2018)."""

    debias: DebiasConfig = field(default_factory=DebiasConfig)
    """Losses that undo what the log's selection does."""

    position: PositionConfig = field(default_factory=PositionConfig)
    """Position as a bias."""

    def __post_init__(self) -> None:
        for key in ("batch_size", "max_epochs", "patience", "lr", "id_lr"):
            value = getattr(self, key)
            _check(value > 0, f"train.{key}", value, "a positive number")
        for key in ("weight_decay", "id_l2", "content_l2", "grad_clip_norm"):
            value = getattr(self, key)
            _check(value >= 0, f"train.{key}", value, "0 or more")
        _check(0 <= self.id_dropout < 1, "train.id_dropout", self.id_dropout, "a share in [0, 1)")
        ok = 0 < self.negative_rate <= 1
        _check(ok, "train.negative_rate", self.negative_rate, "a share in (0, 1]")
        ok = self.id_epochs is None or self.id_epochs >= 1
        _check(ok, "train.id_epochs", self.id_epochs, "null or at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainedConfig(InputConfig):
    """What a single run and the runs of a ladder are made of alike."""

    head: HeadConfig = HeadConfig()
    """The network."""

    train: TrainConfig = TrainConfig()
    """The optimisation."""

    content: ContentConfig = field(default_factory=ContentConfig)
    """What the parts of a rung are made of."""

    judged_on: Literal["test", "valid"] = "test"
    """Split that figures are of: `valid` while settings are chosen, which leaves test closed."""

    trust: TrustConfig = field(default_factory=TrustConfig)
    """What is asked of a trained model beside how well it ranks."""

    knock_outs: tuple[Path, ...] = ()
    """Folders of `python -m pretrain embed --without`: what a finished run on the release's frozen
    vectors would say without a modality."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The machine."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(TrainedConfig):
    """One head on one rung of the content ladder, with one seed."""

    out_dir: Path
    """Run folder to write."""

    rung: str = "none"
    """Content: none, noise and scratch (controls), raw (off-the-shelf features), aligned (the
    release); rate, which is aligned without its vectors; or simtier, content_attention, codes,
    tuned and make, which are aligned and one thing more. Others are combinations, e.g. raw+rate or
    aligned+simtier+codes."""

    seed: int = 0
    """Seeds the initial weights, the order of impressions and the noise vectors."""

    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    """What is taken over from runs before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_rung(self.rung)


@dataclass(frozen=True, kw_only=True)
class LadderConfig(TrainedConfig):
    """Rungs × seeds of one head, side by side in one report."""

    out_dir: Path
    """Folder of metrics.json, report.html and the runs (under ladder/)."""

    rungs: tuple[str, ...] | None = None
    """Rungs to climb, as `rung` of a single run; `none` is what the others are compared with.
    null: none, noise, raw and aligned, without raw where the release is on ids alone."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every rung; at least 3 for a figure that is to be believed."""

    pretrain_metrics: Path | None = None
    """metrics.csv of the pre-training run, for its learning curves in the report."""

    num_resamples: int = 300
    """Bootstrap resamples of the users behind every interval."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rungs is not None:
            _check("none" in self.rungs, "rungs", self.rungs, "`none` among them, to compare with")
            _check(len(set(self.rungs)) == len(self.rungs), "rungs", self.rungs, "each rung once")
            for rung in self.rungs:
                parse_rung(rung)
        ok = len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds)
        _check(ok, "seeds", self.seeds, "different seeds, at least one")
        _check(self.num_resamples >= 10, "num_resamples", self.num_resamples, "at least 10")
