"""A head of FuxiCTR trained on one label with one seed; runs in FuxiCTR's own environment.

    python tests/bench/fuxictr_heads.py '{"tables": "…", "head": "DeepFM", "label": "is_click", …}'

Training, early stopping, the weights that are kept and every layer are the library's. Its wheel
leaves out the scripts that join the layers to DeepFM, DCNv2, PNN and DIN, so that this is said
here, as its documentation describes them. The last line is one JSON object.

Shapes: B impressions.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import (
    CrossNetV2,
    Dice,
    DIN_Attention,
    FactorizationMachine,
    FeatureEmbedding,
    FeatureEmbeddingDict,
    InnerProductInteraction,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor, nn

DATASET_ID = "tables"
HISTORY, TARGET = "history", "item_id"
Inputs = dict[str, Tensor]


class Ranker(BaseModel):
    """What the four heads share: an embedding of every field, and the library's training."""

    def __init__(self, feature_map: FeatureMap, settings: dict[str, Any], *, folder: str) -> None:
        super().__init__(
            feature_map,
            model_id=settings["head"],
            embedding_regularizer=settings["embedding_l2"] or None,
            early_stop_patience=settings["patience"],
            model_root=folder,
            metrics=["AUC", "logloss"],
            verbose=0,
        )
        self.width = settings["embedding_width"]
        self.hidden = list(settings["hidden"])
        self.build(feature_map, settings)
        self.compile("adam", "binary_crossentropy", settings["lr"])
        self.reset_parameters()
        self.initialise_left_out()
        self.model_to_device()

    def initialise_left_out(self) -> None:
        """Give the linear part's weights of the history the scale of all others.

        They belong to a field that shares its vectors, and the library passes over those when it
        initialises: with N(0, 1) as torch leaves them its DeepFM starts at a loss of 1.8 and ends
        0.06 AUC lower.
        """
        for module in self.modules():
            if isinstance(module, FeatureEmbeddingDict):
                layers = module.embedding_layers
                if HISTORY in layers and layers[HISTORY] is not layers[TARGET]:
                    module.embedding_initializer(layers[HISTORY].weight[1:])

    def build(self, feature_map: FeatureMap, settings: dict[str, Any]) -> None:
        """Make the layers."""
        raise NotImplementedError

    def logit(self, fields: Inputs) -> Tensor:
        """Logit of each impression, [B, 1]."""
        raise NotImplementedError

    def forward(self, batch: Inputs) -> Inputs:
        """Click probabilities [B, 1] under the library's key."""
        return {"y_pred": self.output_activation(self.logit(self.get_inputs(batch)))}


class DeepFM(Ranker):
    """The library's factorisation machine, linear part included, and an MLP, added."""

    def build(self, feature_map: FeatureMap, settings: dict[str, Any]) -> None:
        self.embedding_layer = FeatureEmbedding(feature_map, self.width)
        self.machine = FactorizationMachine(feature_map)
        width = feature_map.sum_emb_out_dim()
        self.deep = MLP_Block(width, self.hidden, output_dim=1)

    def logit(self, fields: Inputs) -> Tensor:
        vector_BFE = self.embedding_layer(fields)
        return self.machine(fields, vector_BFE) + self.deep(vector_BFE.flatten(1))


class DCNv2(Ranker):
    """The library's cross network beside an MLP (its structure `parallel`)."""

    def build(self, feature_map: FeatureMap, settings: dict[str, Any]) -> None:
        self.embedding_layer = FeatureEmbedding(feature_map, self.width)
        width = feature_map.sum_emb_out_dim()
        self.cross = CrossNetV2(width, settings["cross_layers"])
        self.deep = MLP_Block(width, self.hidden)
        self.out = nn.Linear(width + self.hidden[-1], 1)

    def logit(self, fields: Inputs) -> Tensor:
        x_BX = self.embedding_layer(fields, flatten_emb=True)
        return self.out(torch.cat([self.cross(x_BX), self.deep(x_BX)], dim=1))


class PNN(Ranker):
    """The fields and their inner products before an MLP."""

    def build(self, feature_map: FeatureMap, settings: dict[str, Any]) -> None:
        self.embedding_layer = FeatureEmbedding(feature_map, self.width)
        fields = feature_map.num_fields
        self.products = InnerProductInteraction(fields, output="inner_product")
        width = feature_map.sum_emb_out_dim() + fields * (fields - 1) // 2
        self.deep = MLP_Block(width, self.hidden, output_dim=1)

    def logit(self, fields: Inputs) -> Tensor:
        vector_BFE = self.embedding_layer(fields)
        return self.deep(torch.cat([vector_BFE.flatten(1), self.products(vector_BFE)], dim=1))


class DIN(Ranker):
    """The library's attention of the target over the history, then an MLP with Dice."""

    def build(self, feature_map: FeatureMap, settings: dict[str, Any]) -> None:
        self.embedding_layer = FeatureEmbeddingDict(feature_map, self.width)
        units = list(settings["attention_hidden"])
        self.attention = DIN_Attention(self.width, units, hidden_activations="Dice")
        dice = [Dice(width) for width in self.hidden]
        width = feature_map.sum_emb_out_dim()
        self.deep = MLP_Block(width, self.hidden, hidden_activations=dice, output_dim=1)

    def logit(self, fields: Inputs) -> Tensor:
        vectors = self.embedding_layer(fields)
        mask_BL = fields[HISTORY].long() != 0
        vectors[HISTORY] = self.attention(vectors[TARGET], vectors[HISTORY], mask_BL)
        return self.deep(self.embedding_layer.dict2tensor(vectors, flatten_emb=True))


HEADS: dict[str, Callable[..., Ranker]] = {
    "deepfm": DeepFM, "dcnv2": DCNv2, "pnn": PNN, "din": DIN,
}  # fmt: skip


def read_feature_map(tables: Path, settings: dict[str, Any]) -> FeatureMap:
    """The fields of the table; DIN is given the history item by item."""
    feature_map = FeatureMap(DATASET_ID, str(tables))
    feature_map.load(
        str(tables / "feature_map.json"), {"embedding_dim": settings["embedding_width"]}
    )
    feature_map.labels = [settings["label"]]
    if settings["head"] == "din":
        del feature_map.features[HISTORY]["feature_encoder"]
    feature_map.set_column_index()
    return feature_map


def main() -> None:
    """Train, restore the best epoch, score the splits that are asked for."""
    settings = json.loads(sys.argv[1])
    tables = Path(settings["tables"])
    torch.set_num_threads(1)
    seed_everything(settings["seed"])
    feature_map = read_feature_map(tables, settings)
    files = {split: str(tables / f"{split}.npz") for split in ("train", "valid", "test")}
    loader = {"feature_map": feature_map, "batch_size": settings["batch_size"], "num_workers": 0,
              "data_format": "npz"}  # fmt: skip
    train, valid = RankDataLoader(
        stage="train", train_data=files["train"], valid_data=files["valid"], shuffle=True, **loader
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, DATASET_ID).mkdir()
        model = HEADS[settings["head"]](feature_map, settings, folder=folder)
        start = time.process_time()
        model.fit(train, validation_data=valid, epochs=settings["max_epochs"])
        cpu_s = time.process_time() - start
        scores = {}
        for split in settings["splits"]:
            of_split = RankDataLoader(stage="test", test_data=files[split], shuffle=False, **loader)
            scores[split] = model.predict(of_split)
    np.savez(settings["scores"], **{name: one.astype(np.float32) for name, one in scores.items()})
    print(json.dumps({"cpu_s": cpu_s, "epochs": model._epoch_index + 1,
                      "parameters": sum(p.numel() for p in model.parameters())}))  # fmt: skip


if __name__ == "__main__":
    main()
