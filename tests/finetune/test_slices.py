import numpy as np
import pyarrow as pa

from data_prep.dataset import Dataset
from finetune.slices import head_items, slice_masks, slice_text


def test_slices_follow_from_counts_content_and_position(dataset: Dataset) -> None:
    impressions = dataset.impressions("test")
    masks = slice_masks(dataset, impressions)
    item = impressions["item_row"].to_numpy()
    count_N = dataset.items["train_count"].to_numpy()[item]
    assert (masks["cold"] == (count_N == 0)).all()
    assert masks["tail"][masks["cold"]].all()
    assert not (masks["head"] & masks["tail"]).any()
    has_image_N = dataset.items["has_image"].to_numpy(zero_copy_only=False)[item]
    assert (masks["missing_image"] == ~has_image_N).all()
    place_N = impressions["position"].to_numpy()
    assert (masks["position_first"] == (place_N == place_N.min())).all()
    assert (masks["position_first"] ^ masks["position_later"]).all()
    assert all(slice_text(name) for name in masks)


def test_a_modality_that_every_item_has_and_one_position_make_no_slice(dataset: Dataset) -> None:
    impressions = dataset.impressions("test").drop_columns(["position"])
    same = impressions.append_column("position", pa.array(np.ones(len(impressions))))
    assert not any(name.startswith("position") for name in slice_masks(dataset, same))
    has = dataset.items["has_text"].to_numpy(zero_copy_only=False)
    assert ("missing_text" in slice_masks(dataset, same)) == (has.any() and not has.all())


def test_head_items_are_the_fewest_that_have_half_of_the_events() -> None:
    assert head_items(np.array([1, 50, 0, 30, 19])).tolist() == [False, True, False, False, False]
    assert head_items(np.array([1, 49, 0, 30, 20])).tolist() == [False, True, False, True, False]
    assert head_items(np.array([2, 2, 2])).all()  # of one count: all or none
    assert not head_items(np.zeros(3, int)).any()
