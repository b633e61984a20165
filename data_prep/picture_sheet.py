"""Items as cards for a page: a small picture inside the page, id, popularity and texts."""

import base64
import io
import json
import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset import Dataset
from data_prep.events import Int64
from data_prep.html_page import Html, escape, join
from data_prep.records import JSON_MEMBER, ItemRecord

logger = logging.getLogger(__name__)

POPULAR_SHARE = 0.1
"""Popular is the tenth of the warm items with the most training events."""
_TEXT_CHARACTERS = 120
_JPEG_QUALITY = 80


def choose_items(
    train_count_I: Int64, eligible_I: NDArray[np.bool_], *, size: int, seed: int
) -> tuple[Int64, Int64]:
    """Rows of popular and of cold items, half of `size` each, in the order of the rows.

    Where one kind has too few, the other fills the sheet as far as it can.
    """
    random = np.random.default_rng(seed)
    warm = np.flatnonzero(eligible_I & (train_count_I > 0))
    ranked = warm[np.argsort(-train_count_I[warm], kind="stable")]
    top = ranked[: max(int(len(ranked) * POPULAR_SHARE), size)]
    cold = np.flatnonzero(eligible_I & (train_count_I == 0))
    num_cold = min(size // 2, len(cold))
    num_popular = min(size - num_cold, len(top))
    num_cold = min(size - num_popular, len(cold))
    return (
        np.sort(random.choice(top, num_popular, replace=False)),
        np.sort(random.choice(cold, num_cold, replace=False)),
    )


class ItemCards:
    """Makes cards of items; only what is shown is read."""

    def __init__(self, dataset: Dataset, train_count_I: Int64) -> None:
        self.train_count_I = train_count_I
        self.content = dataset.content()

    def cards(self, rows: Iterable[int], *, side: int, kind: str = "") -> Html:
        """The items in these rows, pictures at most `side` pixels wide or high."""
        cards = (self._card(int(row), side=side) for row in rows)
        return Html(f'<div class="cards {kind}">{join(cards)}</div>')

    def item_id(self, row: int) -> object:
        """The id that the raw tables gave the item."""
        return json.loads(self.content.members(row)[JSON_MEMBER])["item_id"]

    def _card(self, row: int, *, side: int) -> Html:
        record = self.content.read(row)
        texts = [Html(f"<span>{escape(_shortened(text))}</span>") for text in record.texts.values()]
        shown = Html("<br>").join(texts) if texts else "<small>no text</small>"
        count = self.train_count_I[row]
        known = f"train_count {count:,}" if count else "cold"
        return Html(
            f'<div class="card">{_picture(record, row=row, side=side)}'
            f"<b>{escape(self.item_id(row))}</b><small>row {row:,}</small>"
            f"<small>{known}</small>{shown}</div>"
        )


def _picture(record: ItemRecord, *, row: int, side: int) -> Html:
    """The picture, or the first frame where there is none."""
    shown = record.image or next(iter(record.frames), None)
    if shown is None:
        return Html('<span class="none">no picture</span>')
    try:
        payload = thumbnail(shown, side=side)
    except Exception as error:  # decoders meet any bytes and raise anything; the card says so
        logger.warning("item row %d: its picture cannot be shown (%s)", row, error)
        return Html('<span class="none">cannot be decoded</span>')
    text = base64.b64encode(payload).decode()
    return Html(f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{text}">')


def thumbnail(payload: bytes, *, side: int) -> bytes:
    """The picture as a JPEG that fits into a square of `side` pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(payload)) as picture:
        picture.draft("RGB", (2 * side, 2 * side))
        small = picture.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _TEXT_CHARACTERS else flat[: _TEXT_CHARACTERS - 1] + "…"
