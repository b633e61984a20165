"""Both kinds of attention against slow twins; what a state may know; features of users."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.samples import Samples
from pretrain.user_blocks import Block, HstuBlock, time_buckets
from pretrain.user_encoder import UserEncoder, UserEncoderConfig
from pretrain.user_features import (
    UserColumn,
    UserFeatures,
    encode_users,
    fit_user_columns,
    unknown_users,
)

WIDTH, LENGTH = 8, 6
COLUMNS = (
    UserColumn(name="age", kind="categorical", values=("old", "young")),
    UserColumn(name="income", kind="numeric", mean=10.0, std=2.0),
)
HOUR = 3_600_000


def encoder(**settings: object) -> UserEncoder:
    torch.manual_seed(0)
    columns = COLUMNS if settings.get("features") else ()
    config = UserEncoderConfig(
        layers=2, heads=2, dropout=0.0, history_length=LENGTH, **settings  # type: ignore[arg-type]
    )  # fmt: skip
    made = UserEncoder(config, width=WIDTH, columns=columns)
    for parameter in made.parameters():  # away from the zeros and small numbers of the start
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def history(counts: list[int]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask_BL = torch.arange(LENGTH) < torch.tensor(counts)[:, None]
    times_BL = (torch.rand(len(counts), LENGTH) * 1e9).long().sort(1).values * mask_BL
    return {
        "events_BLD": torch.randn(len(counts), LENGTH, WIDTH),
        "mask_BL": mask_BL,
        "times_BL": times_BL,
    }


KINDS = [(a, f) for a in ("sasrec", "hstu") for f in ("add", "nova")]
USERS = torch.tensor([[1.0, 0.5], [0.0, float("nan")], [2.0, -1.0]])


def users_of(made: UserEncoder) -> dict[str, Tensor]:
    return {"users_BC": USERS} if made.features is not None else {}


@pytest.mark.parametrize(("attention", "fusion"), KINDS)
@pytest.mark.parametrize("features", [(), ("age", "income")])
def test_a_state_knows_nothing_of_later_events_nor_of_padding(
    attention: str, fusion: str, features: tuple[str, ...]
) -> None:
    made = encoder(attention=attention, fusion=fusion, features=features)
    given = history([6, 3, 0])
    whole = made(**given, **users_of(made))
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(3, LENGTH + 1))
    other = {name: tensor.clone() for name, tensor in given.items()}
    other["events_BLD"][:, 3:] += 5.0
    other["times_BL"][0, 3:] += 7 * HOUR
    changed = made(**other, **users_of(made))
    torch.testing.assert_close(changed[:, :4], whole[:, :4])
    assert (changed[0, 4:] - whole[0, 4:]).abs().amax(1).min() > 1e-3
    # Cut to the longest history of a batch, every state that exists stays what it is.
    cut = {name: tensor[1:, :3] for name, tensor in given.items()}
    users = {name: tensor[1:] for name, tensor in users_of(made).items()}
    torch.testing.assert_close(made(**cut, **users), whole[1:, :4])


@pytest.mark.parametrize(("attention", "fusion"), KINDS)
@pytest.mark.parametrize("order", ["time", "set"])
def test_every_parameter_and_input_gets_a_gradient(attention: str, fusion: str, order: str) -> None:
    made = encoder(attention=attention, fusion=fusion, order=order, features=("age", "income"))
    made.train()
    given = history([6, 3, 0])
    given["events_BLD"].requires_grad_(True)
    states = made(**given, users_BC=USERS)
    (states * torch.randn_like(states)).sum().backward()
    unused = {"position_SD", "gap.weight"} if order == "set" else set()
    for name, parameter in made.named_parameters():
        if name not in unused:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    grad = given["events_BLD"].grad
    assert grad is not None
    assert grad[given["mask_BL"]].abs().sum(1).min() > 0
    assert not grad[~given["mask_BL"]].any()


def test_hstu_is_its_equations_written_out() -> None:
    torch.manual_seed(0)
    block = HstuBlock(WIDTH, heads=2, dropout=0.0, num_states=9, in_time=True).eval()
    x_SD, times_S = torch.randn(4, WIDTH), torch.tensor([0, 0, 5000, 90_000])
    found = block(
        x_SD[None],
        allowed_BSS=torch.ones(1, 4, 4, dtype=torch.bool).tril(),
        times_BS=times_S[None],
    )[0]
    assert block.place_bias is not None
    assert block.time_bias is not None
    plain = block.norm_1(x_SD)
    u, v = F.silu(block.uv(plain)).chunk(2, -1)
    q, k = F.silu(block.qk(plain)).chunk(2, -1)
    attended = torch.zeros(4, WIDTH)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for i in range(4):
            for j in range(i + 1):
                seconds = max(1.0, abs(int(times_S[i] - times_S[j])) / 1000)
                bias = block.place_bias.weight[i - j, head]
                bias = bias + block.time_bias.weight[int(np.log2(seconds)), head]
                attended[i, part] += F.silu(q[i, part] @ k[j, part] + bias) / 9 * v[j, part]
    expected = x_SD + block.out(block.norm_2(attended) * u)
    torch.testing.assert_close(found, expected)


def test_time_buckets_are_powers_of_two_seconds() -> None:
    times_BS = torch.tensor([[0, 1_000, 2_000, 2 * HOUR, 2**62]])
    assert time_buckets(times_BS)[0, 0].tolist() == [0, 0, 1, 12, 39]


@pytest.mark.parametrize("kind", ["sasrec", "hstu"])
def test_novas_values_are_pure_item_vectors(kind: str) -> None:
    """Where a state can attend to one place only, side information changes nothing."""
    torch.manual_seed(0)
    block = (
        Block(WIDTH, heads=2, dropout=0.0, nova=True)
        if kind == "sasrec"
        else HstuBlock(WIDTH, heads=2, dropout=0.0, num_states=3, in_time=False, nova=True)
    )
    x_BSD, sides = torch.randn(1, 3, WIDTH), [torch.randn(1, 3, WIDTH) for _ in range(2)]
    own, causal = torch.eye(3, dtype=torch.bool)[None], torch.ones(1, 3, 3, dtype=torch.bool).tril()
    mixed = [block(x_BSD, allowed_BSS=causal, side_BSD=side) for side in sides]
    assert (mixed[0] - mixed[1]).abs().max() > 1e-3
    if kind == "sasrec":  # HSTU's weight of a single place still depends on query and key
        alone = [block(x_BSD, allowed_BSS=own, side_BSD=side) for side in sides]
        torch.testing.assert_close(alone[0], alone[1])


def test_features_tell_users_without_a_history_apart() -> None:
    for fusion in ("add", "nova"):
        made = encoder(fusion=fusion, features=("age", "income"))
        states = made(**history([0, 0, 0]), users_BC=USERS)[:, 0]
        assert (states[0] - states[1]).abs().max() > 1e-3


def table() -> pa.Table:
    return pa.table(
        {
            "user_row": [0, 1, 2, 3],
            "age": ["young", "old", None, "ancient"],
            "income": [8.0, 12.0, None, 900.0],
            "likes": [["a"], [], None, ["b"]],
        }
    )


TYPES = {"age": "categorical", "income": "numeric", "likes": "multi"}


def test_vocabularies_and_scales_are_of_training_users_only() -> None:
    train_U = np.array([True, True, True, False])
    columns = fit_user_columns(table(), types=TYPES, names=("age", "income"), train_U=train_U)
    assert columns == COLUMNS
    codes_UC = encode_users(table(), columns)
    assert codes_UC[:, 0].tolist() == [2, 1, 0, 0]
    assert codes_UC[:, 1].nan_to_num(-9).tolist() == [-1, 1, -9, 445]
    assert torch.equal(unknown_users(1, columns)[0].isnan(), torch.tensor([False, True]))
    again = tuple(UserColumn(**json.loads(json.dumps(vars(column)))) for column in columns)
    assert again == columns


@pytest.mark.parametrize("name", ["likes", "shoe_size"])
def test_a_column_that_cannot_be_read_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected some of \['age', 'income'\]"):
        fit_user_columns(table(), types=TYPES, names=(name,), train_U=np.ones(4, bool))


def test_features_of_a_table_without_them_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 'age'"):
        encode_users(table().drop_columns(["age"]), COLUMNS)


def test_a_users_vector_is_the_sum_of_its_columns() -> None:
    made = UserFeatures(COLUMNS, width=3)
    found = made(USERS)
    category, number = (column.weight for column in made.columns)
    torch.testing.assert_close(found[0], category[1] + 0.5 * number[:, 0])
    torch.testing.assert_close(found[1], category[0] + number[:, 1])


def test_padding_is_cut_to_the_longest() -> None:
    history_BL = np.array([[4, 5, -1, -1], [6, -1, -1, -1]])
    targets_BT = np.array([[7, -1, -1], [-1, -1, -1]])
    cut = Samples(history_BL, history_BL * 10, targets_BT, targets_BT * 0).without_padding()
    assert cut.history_BL.tolist() == [[4, 5], [6, -1]]
    assert cut.times_BL.shape == (2, 2)
    assert cut.targets_BT.tolist() == [[7], [-1]]
    empty = Samples(history_BL * 0 - 1, history_BL, targets_BT, targets_BT).without_padding()
    assert empty.history_BL.shape == (2, 1)


def test_settings_of_an_older_release_still_load(tmp_path: Path) -> None:
    old = {"layers": 1, "heads": 2, "dropout": 0.2, "history_length": 30, "order": "time"}
    config = UserEncoderConfig(**old)  # type: ignore[arg-type]
    assert (config.attention, config.fusion, config.features) == ("sasrec", "add", ())
    names = {name for name, _ in UserEncoder(config, width=8).named_parameters()}
    assert {"start_D", "position_SD", "gap.weight", "blocks.0.qkv.weight"} <= names


@pytest.mark.parametrize("attention", ["sasrec", "hstu"])
def test_training_starts_from_the_mean_with_a_bounded_gradient(attention: str) -> None:
    torch.manual_seed(0)
    config = UserEncoderConfig(attention=attention, heads=2, dropout=0.0, history_length=LENGTH)  # type: ignore[arg-type]
    made = UserEncoder(config, width=WIDTH)
    given = history([LENGTH, 0])
    states_BSD = made(**given)
    mean_D = F.normalize(given["events_BLD"][0].mean(0), dim=0)
    torch.testing.assert_close(states_BSD[0, -1], mean_D, atol=0.02, rtol=0)
    (states_BSD * torch.randn_like(states_BSD)).sum().backward()
    assert made.out.bias.grad is not None
    assert made.out.bias.grad.norm() < 1e5  # of a state of length 0 it would be 1e12
