"""CTR heads, one file each, all of one shape: `HeadInputs` in, a logit an impression out.

Heads of several labels (`TASK_HEADS`) give the outputs of every task side by side.
"""

from finetune.heads.autoint import AutoInt
from finetune.heads.base import Head, HeadInputs, InputLayout, initialise
from finetune.heads.bst import BST
from finetune.heads.dcnv2 import DCNv2
from finetune.heads.deepfm import DeepFM
from finetune.heads.dien import DIEN
from finetune.heads.din import DIN
from finetune.heads.esmm import ESMM
from finetune.heads.finalmlp import FinalMLP
from finetune.heads.fm import FM
from finetune.heads.lr import LR
from finetune.heads.mmoe import MMoE
from finetune.heads.ple import PLE
from finetune.heads.pnn import PNN
from finetune.heads.shared_bottom import SharedBottom
from finetune.heads.task_base import TaskHead
from finetune.heads.two_arms import TwoArms
from finetune.heads.xdeepfm import XDeepFM
from finetune.settings import HeadName, TaskHeadName

HEADS: dict[HeadName, type[Head]] = {
    "lr": LR,
    "fm": FM,
    "deepfm": DeepFM,
    "pnn": PNN,
    "dcnv2": DCNv2,
    "xdeepfm": XDeepFM,
    "finalmlp": FinalMLP,
    "autoint": AutoInt,
    "din": DIN,
    "dien": DIEN,
    "bst": BST,
}

TASK_HEADS: dict[TaskHeadName, type[TaskHead]] = {
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "ple": PLE,
    "esmm": ESMM,
    "two_arms": TwoArms,
}

__all__ = [
    "HEADS",
    "TASK_HEADS",
    "Head",
    "HeadInputs",
    "InputLayout",
    "TaskHead",
    "initialise",
]
