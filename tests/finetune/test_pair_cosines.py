import pytest
import torch
import torch.nn.functional as F

from finetune import pair_cosines as module
from finetune.pair_cosines import pair_cosines


@pytest.mark.parametrize("products", [0, 10**9])
def test_both_ways_equal_a_product_a_pair(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRODUCTS_A_PAIR", products)
    monkeypatch.setattr(module, "CHUNK_BYTES", 400)
    monkeypatch.setattr(module, "CHUNK_IMPRESSIONS", 13)
    generator = torch.Generator().manual_seed(0)
    item_IW = F.normalize(torch.randn(21, 6, generator=generator), dim=1)
    item_IW[-1] = 0
    item_N = torch.randint(20, (40,), generator=generator)
    history_NL = torch.randint(-1, 20, (40, 5), generator=generator, dtype=torch.int32)
    found = pair_cosines(item_IW, item_N, history_NL)
    for row in range(40):
        for place in range(5):
            expected = item_IW[history_NL[row, place]] @ item_IW[item_N[row]]
            torch.testing.assert_close(found[row, place], expected)
    assert (found[history_NL < 0] == 0).all()
