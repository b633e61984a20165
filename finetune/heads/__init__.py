"""CTR heads, one file each, all of one shape: `HeadInputs` in, a logit an impression out."""

from finetune.heads.base import Head, HeadInputs, InputLayout
from finetune.heads.dcnv2 import DCNv2
from finetune.heads.deepfm import DeepFM
from finetune.heads.din import DIN

HEADS: dict[str, type[Head]] = {"deepfm": DeepFM, "dcnv2": DCNv2, "din": DIN}

__all__ = ["DIN", "HEADS", "DCNv2", "DeepFM", "Head", "HeadInputs", "InputLayout"]
