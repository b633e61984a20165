"""MAKE: a content model trained on its own, whose output a head is then given (Sheng et al. 2024).

"Enhancing Taobao Display Advertising with Multimodal Representations", arXiv 2407.19467: ids
overfit after one epoch, what is learnt on content needs many. So content gets a model of the click
of its own, with attention from the target to the history and no ids, trained over several epochs;
then it is frozen, and its last layer is a field beside the ids.

Shapes: B impressions, L history length, W width of item vectors, A width of its projection, H
width of the last layer, S similarities, X everything side by side.
"""

import copy
import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.batches import CtrTable, EvalBatches, TrainBatches
from finetune.content_settings import ContentConfig
from finetune.heads.din import ActivationUnit
from finetune.metrics import auc, log_loss

if TYPE_CHECKING:
    from finetune.content_fields import ContentBatch, ContentFields

logger = logging.getLogger(__name__)


class MakeNet(nn.Module):
    """Target, history and user by content alone → a vector, and a logit from it."""

    def __init__(self, content_width: int, *, num_similarities: int, config: ContentConfig) -> None:
        super().__init__()
        width, hidden = config.attention_width, config.make_hidden
        self.width = hidden[-1] + 1
        self.scale = content_width**0.5
        self.item = nn.Linear(content_width, width)
        self.user = nn.Linear(content_width, width)
        self.unit = ActivationUnit(width, config.attention_hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise((4 * width + 2 * num_similarities, *hidden)):
            layers += [nn.Linear(before, after), nn.PReLU()]
        self.net = nn.Sequential(*layers)
        self.out = nn.Linear(hidden[-1], 1)

    def forward(self, items: "ContentBatch") -> tuple[Tensor, Tensor]:
        """What the head is given, the last layer and the logit [B, H + 1]; and the logit [B]."""
        assert items.known_BL is not None
        target_BA, history_BLA = items.each(lambda nW: self.item(nW * self.scale))
        weight_BL = self.unit(target_BA, history_BLA) * items.known_BL
        count_B1 = items.known_BL.sum(1, keepdim=True).clamp(min=1)
        interest_BA = torch.einsum("bl,bla->ba", weight_BL, history_BLA) / count_B1
        user_BA = self.user(items.user_BW * self.scale)
        missing_BS = items.similarity_BS.isnan()
        x_BX = torch.cat(
            [
                target_BA, interest_BA, user_BA, target_BA * interest_BA,
                items.similarity_BS.nan_to_num(), missing_BS.to(target_BA.dtype),
            ],
            dim=1,
        )  # fmt: skip
        hidden_BH = self.net(x_BX)
        logit_B1 = self.out(hidden_BH)
        return torch.cat([hidden_BH, logit_B1], dim=1), logit_B1.squeeze(1)


def train_make(
    fields: "ContentFields",
    *,
    train: CtrTable,
    valid: CtrTable,
    config: ContentConfig,
    batch_size: int,
    seed: int,
) -> list[dict[str, float]]:
    """Train `fields.make` in place and freeze it at its best epoch; a row of figures an epoch.

    A loop of its own, since nothing else of the run is trained here; every rank of a distributed
    run does the same.
    """
    net = fields.make
    assert net is not None
    net.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.make_lr, weight_decay=1e-4)
    history: list[dict[str, float]] = []
    best: tuple[float, dict[str, Any]] = (-1.0, {})
    for epoch in range(config.make_epochs):
        batches = TrainBatches(train, batch_size=batch_size, seed=seed, epoch=lambda: epoch)  # noqa: B023 - read within the epoch
        for batch in batches:
            _, logit_B = net(fields.look_up(batch))
            loss = F.binary_cross_entropy_with_logits(logit_B, batch.label_B)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        label, score = valid.impressions.label_N.numpy(), _scores(fields, valid)
        row = {
            "epoch": float(epoch + 1),
            "val/auc": auc(label, score),
            "val/logloss": log_loss(label, score),
        }
        history.append(row)
        if row["val/auc"] > best[0]:
            best = (row["val/auc"], copy.deepcopy(net.state_dict()))
        best_epoch = max(history, key=lambda one: one["val/auc"])["epoch"]
        if epoch + 1 - best_epoch >= config.make_patience:
            break
    if best[1]:
        net.load_state_dict(best[1])
    logger.info("make: validation AUC %.4f after %d epochs", best[0], len(history))
    net.requires_grad_(False).eval()
    return history


@torch.inference_mode()
def _scores(fields: "ContentFields", table: CtrTable) -> Any:  # noqa: ANN401 - [N] of numpy
    assert fields.make is not None
    parts = [fields.make(fields.look_up(batch))[1] for batch in EvalBatches(table)]
    return torch.sigmoid(torch.cat(parts)).numpy()
