"""All that `trust` asks of one run, as its metrics.json holds it.

Shapes: N impressions.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.dataset import Dataset
from finetune.content import Content
from finetune.groups import group_masks
from finetune.metrics import auc
from finetune.model import CtrModel
from finetune.robustness import disturbances
from finetune.trust import exposure, group_figures
from finetune.trust_settings import TrustConfig


def trust_record(
    config: TrustConfig,
    model: CtrModel,
    *,
    dataset: Dataset,
    impressions: pa.Table,
    slices: dict[str, NDArray[np.bool_]],
    label_N: NDArray[np.float32],
    score_N: NDArray[np.float32],
    content: Content | None,
    rescore: Callable[[Content], NDArray[np.float32]],
) -> dict[str, Any]:
    """Groups, exposure and robustness of a trained model on one split.

    Args:
        config: what is asked.
        model: the trained model.
        dataset: where groups are looked up.
        impressions: the split, as the dataset has it.
        slices: membership of each impression, by slice; `cold` marks new items.
        label_N: what came of the impressions, 0 or 1.
        score_N: the model's scores.
        content: the rung's content, None where it has none.
        rescore: the model's scores with other content.
    """
    robustness: dict[str, dict[str, dict[str, float]]] = {}
    for kind, level, disturbed in disturbances(config, model, content=content):
        scores = rescore(disturbed)
        cold = slices["cold"]
        robustness.setdefault(kind, {})[f"{level:g}"] = {
            "auc": auc(label_N, scores),
            "auc_cold": auc(label_N[cold], scores[cold]),
        }
    shown = exposure(
        impressions["user_row"].to_numpy(),
        impressions["item_row"].to_numpy(),
        score_N=score_N,
        new_N=slices["cold"],
        k=config.exposure_k,
    )
    masks = group_masks(config, dataset, impressions, slices=slices)
    return {
        "groups": group_figures(label_N, score_N, masks=masks),
        "exposure": asdict(shown),
        "robustness": robustness,
    }
