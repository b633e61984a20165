"""The content ladder: frozen item vectors, and what a head is told about a user and a target.

Rungs with the same parts have the same architecture and differ in their vectors alone, so that a
difference between two of them is a difference between their vectors. What a part adds to them is
in `content_fields.py`.

Shapes: I items (one zero row more for no item), W width of a rung's item vectors, N impressions,
L history length, S similarities, D width of the released space, B impressions of a batch,
T tiers.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.dataset import Dataset
from finetune.code_fields import ItemCodes
from finetune.content_rate import ContentRate
from finetune.content_settings import ContentConfig
from finetune.data import CtrData, Impressions
from finetune.embeddings import Embeddings
from finetune.pair_cosines import centred, mean_vector, pair_cosines, summarised
from finetune.rungs import Rung, parse_rung
from finetune.settings import FitConfig, InputConfig
from finetune.sim_tier import tier_counts
from pretrain.look_ahead import refuse_look_ahead

if TYPE_CHECKING:
    from pretrain import Release

CHUNK_BYTES = 64 << 20
"""Most bytes of gathered vectors held at once."""


@dataclass(frozen=True)
class ContentFeatures:
    """One split's content, computed once and frozen."""

    user_UW: Tensor
    """Distinct user vectors, zero where the history is empty."""
    user_index_N: Tensor
    """Each impression's row of `user_UW`."""
    similarity_NS: Tensor
    """Cosines as in content_settings.SIMILARITIES, standardised; NaN where the history or content
    is missing. With the part `rate` that of the target's content behind them."""
    tiers_NT: Tensor | None = None
    """How many of the history's items are in each tier of similarity; None without that part."""
    user_centre_W: Tensor | None = None
    """What was taken from the user vectors, with the part `rate`."""

    def user_vectors(self, rows_B: Tensor) -> Tensor:
        """User vectors of these impressions."""
        return self.user_UW[self.user_index_N[rows_B]]


@dataclass
class Content:
    """A rung's vectors, and the features they give."""

    rung: Rung
    item_IW: Tensor
    event_ID: Tensor | None = None
    """Items as events of a history, for the release's user encoder; None: the mean of vectors."""
    release: "Release | None" = None
    config: ContentConfig = field(default_factory=ContentConfig)
    made: dict[bytes, ContentFeatures] = field(default_factory=dict)
    """User vectors and cosines by the impressions they are of; rungs on the same vectors share
    it."""
    codes: ItemCodes | None = None
    """The items' semantic codes; set by `fit` on a rung that has them."""
    mean_S: Tensor | None = None
    std_S: Tensor | None = None
    """Mean and spread of the cosines over the training split; set by `fit`."""
    item_centre_W: Tensor | None = None
    user_centre_W: Tensor | None = None
    """Means that are taken from vectors before they are compared; set by `fit` of a rung with the
    part `rate`. Vectors that share a direction are all alike, and their cosines say more of user
    and item alone than of how they fit."""
    rate: ContentRate | None = None
    """Click rates by content; set by `fit` of such a rung."""

    @property
    def width(self) -> int:
        """Width of the item and user vectors."""
        return self.item_IW.shape[1]

    @property
    def has_rate(self) -> bool:
        """Whether vectors are compared without their means, and items have a rate."""
        return "rate" in self.rung.parts

    def state(self) -> dict[str, Tensor]:
        """What `fit` learnt, as content.safetensors keeps it."""
        assert self.mean_S is not None
        assert self.std_S is not None
        learnt = {"similarity_mean": self.mean_S, "similarity_std": self.std_S}
        if self.rate is not None:
            assert self.item_centre_W is not None
            assert self.user_centre_W is not None
            learnt |= {"item_centre": self.item_centre_W, "user_centre": self.user_centre_W}
            learnt |= self.rate.state()
        return learnt | (self.codes.state() if self.codes else {})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what a finished run had learnt."""
        self.mean_S, self.std_S = state["similarity_mean"], state["similarity_std"]
        if self.has_rate:
            self.item_centre_W, self.user_centre_W = state["item_centre"], state["user_centre"]
            self.rate = ContentRate.restore(state, self.item_IW)
        if "codes" in self.rung.parts:
            self.codes = ItemCodes.restore(state, self.item_IW)

    def fit(self, data: CtrData, *, older: Mapping[str, Tensor] | None = None) -> ContentFeatures:
        """Features of the training split, whose cosines are standardised by their own spread.

        A run that goes on from an older one takes over what that had learnt, `older`: its weights
        expect those cosines, and a row of its code table is a code of those codebooks.
        """
        if older is not None:
            self.restore(older)
            return self.features(data, data.train)
        if self.has_rate:
            self.item_centre_W = mean_vector(self.item_IW)
        raw = self._features(data, data.train)
        self.user_centre_W = raw.user_centre_W
        if self.has_rate:
            self.rate = ContentRate.learn(self.item_IW, data.train.item_N, data.train.label_N)
            assert self.rate.left_out_I is not None
            raw = _with_rate(raw, self.rate.left_out_I[data.train.item_N.long()])
        known = ~raw.similarity_NS.isnan()
        count_S = known.sum(0).clamp(min=1)
        filled_NS = raw.similarity_NS.nan_to_num()
        self.mean_S = filled_NS.sum(0) / count_S
        centred_NS = torch.where(known, raw.similarity_NS - self.mean_S, 0.0)
        std_S = (centred_NS.square().sum(0) / count_S).sqrt()
        self.std_S = torch.where(std_S > 0, std_S, 1.0)
        if "codes" in self.rung.parts:
            self.codes = ItemCodes.learn(self.item_IW, data.train.item_N, config=self.config)
        return self._standardised(raw)

    def features(self, data: CtrData, impressions: Impressions) -> ContentFeatures:
        """Features of another split, standardised as the training split was."""
        raw = self._features(data, impressions)
        if self.rate is not None:
            raw = _with_rate(raw, self.rate.of(self.item_IW)[impressions.item_N.long()])
        return self._standardised(raw)

    def _standardised(self, raw: ContentFeatures) -> ContentFeatures:
        if self.mean_S is None or self.std_S is None:
            raise ValueError(f"rung {self.rung.name}: cosines have no spread yet; call fit")
        similarity_NS = (raw.similarity_NS - self.mean_S) / self.std_S
        return dataclasses.replace(raw, similarity_NS=similarity_NS)

    def _features(self, data: CtrData, impressions: Impressions) -> ContentFeatures:
        """User vectors and cosines, which other rungs on these vectors may have made, and tiers."""
        key = _key(impressions, centred=self.has_rate)
        if key not in self.made:
            self.made[key] = self._vectors_and_cosines(data, impressions)
        tiers_NT = None
        if "simtier" in self.rung.parts:
            tiers_NT = tier_counts(
                data,
                impressions,
                item_IW=centred(self.item_IW, self.item_centre_W),
                tiers=self.config.tiers,
                length=self.config.tier_history,
            )
        return dataclasses.replace(self.made[key], tiers_NT=tiers_NT)

    def _vectors_and_cosines(self, data: CtrData, impressions: Impressions) -> ContentFeatures:
        """User vectors once per distinct history, then cosines per impression, in chunks."""
        # A history is a user's positives up to its end.
        histories = torch.stack([impressions.user_N, impressions.history_end_N], dim=1)
        _, index_N = torch.unique(histories, dim=0, return_inverse=True)
        first_U = torch.zeros(int(index_N.max()) + 1, dtype=torch.int64)
        first_U[index_N] = torch.arange(len(index_N))  # any impression of a history will do
        chunk = max(1, CHUNK_BYTES // (4 * max(self.width, 1)))
        length = max(1, data.history_length)
        item_IW = centred(self.item_IW, self.item_centre_W)
        user_UW = torch.cat(
            [
                self._users(data, impressions, rows_B, item_IW=item_IW)
                for rows_B in torch.split(first_U, max(1, chunk // length))
            ]
        )
        user_centre_W = self.user_centre_W
        if self.has_rate and user_centre_W is None:  # of the training split, in `fit`
            user_centre_W = mean_vector(user_UW)
        user_UW = centred(user_UW, user_centre_W)
        similarity_NS = torch.cat(
            [
                _similarities(item_IW, impressions, rows_B, user_BW=user_UW[index_N[rows_B]])
                for rows_B in torch.split(torch.arange(len(impressions)), chunk)
            ]
        )
        return ContentFeatures(user_UW, index_N, similarity_NS, user_centre_W=user_centre_W)

    def _users(
        self, data: CtrData, impressions: Impressions, rows_B: Tensor, *, item_IW: Tensor
    ) -> Tensor:
        """User vectors [B, W] from the history strictly before each impression."""
        history_BL = impressions.history_rows(rows_B).long()
        some_B1 = (history_BL >= 0).any(1, keepdim=True)
        if self.release is None or self.event_ID is None:
            last = len(item_IW) - 1  # the zero row
            places_BL = torch.where(history_BL >= 0, history_BL, last)
            return F.normalize(F.embedding_bag(places_BL, item_IW, mode="sum"), dim=1)
        users = impressions.user_N[rows_B].numpy()
        times_B = impressions.time_N[rows_B]
        known = users < data.dataset.num_users
        times_BL = torch.zeros_like(history_BL)
        _, known_times = data.positives.histories(
            users[known], times_B.numpy()[known], length=history_BL.shape[1]
        )
        times_BL[torch.from_numpy(known)] = torch.from_numpy(known_times)
        # Row -1, padding, is never read: the release masks it.
        rows = pa.array(users, mask=~known)  # of users that the dataset does not know, null
        user_BD = self.release.encode_histories(
            self.event_ID[:-1], history_BL, times_BL, times_B, users=data.dataset.users.take(rows)
        )
        return torch.where(some_B1, user_BD.float(), 0.0)


def _similarities(
    item_IW: Tensor, impressions: Impressions, rows_B: Tensor, *, user_BW: Tensor
) -> Tensor:
    """Cosines [B, S] of the user and of the history's items to the target."""
    history_BL = impressions.history_rows(rows_B)
    item_B = impressions.item_N[rows_B]
    cosine_BL = pair_cosines(item_IW, item_B, history_BL)
    history_BL = history_BL.long()
    present_I = (item_IW != 0).any(1)
    return summarised(
        cosine_BL,
        (history_BL >= 0) & present_I[history_BL],  # row -1 is the zero row
        target_BW=item_IW[item_B],
        user_BW=user_BW,
    )


def _with_rate(raw: ContentFeatures, rate_N: Tensor) -> ContentFeatures:
    similarity_NS = torch.cat([raw.similarity_NS, rate_N[:, None]], dim=1)
    return dataclasses.replace(raw, similarity_NS=similarity_NS)


def _key(impressions: Impressions, *, centred: bool) -> bytes:
    """Fingerprint of what decides user vectors and cosines."""
    digest = hashlib.sha256()
    for one in (impressions.user_N, impressions.item_N, impressions.time_N):
        digest.update(one.numpy().tobytes())
    digest.update(f"{impressions.histories.length} {centred}".encode())
    return digest.digest()


def open_content(
    name: str,
    inputs: FitConfig,
    *,
    dataset: Dataset,
    seed: int,
    embeddings: Embeddings | None = None,
) -> Content | None:
    """A rung's vectors, after every check that can refuse them; None for `none`.

    `embeddings` stand for those of `inputs.embeddings_dir`, such as a knock-out.
    """
    rung = parse_rung(name)
    if rung.vectors == "none":
        return None
    if inputs.history_length == 0:
        raise ValueError(
            f"history_length: found 0, expected at least 1 for rung {name}, whose user vectors "
            "come from histories; raise it, or fit rung none"
        )
    if inputs.embeddings_dir is None:
        raise ValueError(
            f"embeddings_dir: found none, expected the item vectors of rung {name}; "
            "run python -m pretrain embed and give its folder"
        )
    embeddings = embeddings or Embeddings.open(inputs.embeddings_dir, dataset)
    config = inputs.content
    if rung.vectors == "noise":
        # As wide as `aligned`, so that it has as many weights to overfit with.
        noise = np.random.default_rng([seed, 0x6E6F]).standard_normal(
            (dataset.num_items, embeddings.width), dtype=np.float32
        )
        item_IW = F.normalize(torch.from_numpy(noise), dim=1)
        no_item = torch.zeros(1, embeddings.width)
        return Content(rung, torch.cat([item_IW, no_item]), config=config)
    if rung.vectors == "raw":
        return Content(rung, embeddings.item_vectors("raw"), config=config)
    if rung.vectors == "scratch":
        from finetune.scratch import untrained_release

        release, item_IW, event_ID = untrained_release(inputs.released, embeddings, seed=seed)
        return Content(rung, item_IW, event_ID, release, config)
    release = _open_release(inputs, embeddings, dataset)
    item_IW, event_ID = embeddings.item_vectors("aligned"), embeddings.item_vectors("event")
    return Content(rung, item_IW, event_ID, release, config)


def _open_release(inputs: InputConfig, embeddings: Embeddings, dataset: Dataset) -> "Release":
    from pretrain import load_released

    if inputs.released is None:
        raise ValueError(
            "released: found none, expected the released folder whose user encoder the rung "
            "aligned needs; run python -m pretrain export and give its folder"
        )
    release = load_released(inputs.released)
    if release.fingerprint != embeddings.release_fingerprint:
        raise ValueError(
            f"{embeddings.dir}: found vectors of release {embeddings.release_fingerprint[:12]}, "
            f"expected {release.fingerprint[:12]} ({inputs.released}); "
            "re-run python -m pretrain embed with this release"
        )
    newest = max(release.newest_event, embeddings.newest_event)
    refuse_look_ahead(
        newest,
        dataset,
        source=inputs.released,
        allowed=inputs.allow_look_ahead,
        override="--allow_look_ahead true, which the report records",
    )
    return release
