"""CTR heads, one file each, all of one shape: `HeadInputs` in, a logit an impression out."""

from finetune.heads.autoint import AutoInt
from finetune.heads.base import Head, HeadInputs, InputLayout, initialise
from finetune.heads.bst import BST
from finetune.heads.dcnv2 import DCNv2
from finetune.heads.deepfm import DeepFM
from finetune.heads.dien import DIEN
from finetune.heads.din import DIN
from finetune.heads.finalmlp import FinalMLP
from finetune.heads.fm import FM
from finetune.heads.lr import LR
from finetune.heads.pnn import PNN
from finetune.heads.xdeepfm import XDeepFM
from finetune.settings import HeadName

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

__all__ = ["HEADS", "Head", "HeadInputs", "InputLayout", "initialise"]
