"""What a trained model says without a modality: which one carries the gain?"""

import dataclasses
from collections.abc import Iterator

from data_prep.dataset import Dataset
from finetune.content import Content
from finetune.content_items import FrozenItems
from finetune.embeddings import Embeddings
from finetune.model import CtrModel
from finetune.settings import FitConfig


def knock_outs(
    config: FitConfig, model: CtrModel, *, dataset: Dataset, content: Content | None
) -> Iterator[tuple[str, Content]]:
    """Content as if no item had a modality, by the modality's name.

    While a pair is looked at, the model reads those vectors. Codes stay those of the whole
    content. Rungs whose vectors are not the frozen ones of the release have no knock-outs.

    Raises:
        ValueError: vectors of another release, or of every modality.
    """
    if content is None or content.rung.vectors != "aligned" or "tuned" in content.rung.parts:
        return
    assert model.fields.content is not None
    assert content.release is not None
    items, of = model.fields.content.items, content.release.fingerprint
    assert isinstance(items, FrozenItems)
    for folder in config.knock_outs:
        blind = Embeddings.open(folder, dataset, knock_out=True)
        if blind.release_fingerprint != of:
            raise ValueError(
                f"knock_outs: found {folder} of release {blind.release_fingerprint[:12]}, expected "
                f"{of[:12]} as in {config.embeddings_dir}; re-run python -m pretrain embed "
                "--without with this release"
            )
        item_IW, event_ID = blind.item_vectors("aligned"), blind.item_vectors("event")
        whole = items.item_IW
        items.item_IW = item_IW.to(whole.device)
        try:
            name = "+".join(blind.without)
            yield name, dataclasses.replace(content, item_IW=item_IW, event_ID=event_ID)
        finally:
            items.item_IW = whole
