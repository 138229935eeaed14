"""What random networks keep of an image: the measure, the depths, and the command."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest
import torch

from yolov7.errors import ConfigError, DataError
from yolov7.figures import information
from yolov7.figures.command import outcome
from yolov7.figures.information import explained, kept
from yolov7.figures.stacks import BLOCKS, KINDS, STAGE, random_stack

SIDE = 32


def scene(seed: int = 0, side: int = SIDE) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def target():
    return torch.rand(24, 16, generator=torch.Generator().manual_seed(3))


def test_the_image_itself_has_one_and_a_constant_or_an_unrelated_map_zero(target):
    red = torch.rand(24, 16, generator=torch.Generator().manual_seed(4))
    identity = explained(torch.stack((red, 2 * target - red)), target)
    assert identity.share == pytest.approx(1, abs=1e-6)
    assert np.allclose(identity.image, target.numpy(), atol=1e-4)
    assert explained(torch.full((3, 24, 16), 7.0), target).share == 0
    unrelated = torch.randn(6, 24, 16, generator=torch.Generator().manual_seed(5))
    assert explained(unrelated, target).share < 0.05


def test_half_of_the_variance_is_a_half():
    signal, noise = torch.randn(2, 96, 96, generator=torch.Generator().manual_seed(6))
    assert explained(signal[None], signal + noise).share == pytest.approx(0.5, abs=0.03)


def test_a_cell_is_predicted_by_the_regression_that_has_not_seen_it():
    """With as many channels as cells a fit on all of them would be perfect."""
    generator = torch.Generator().manual_seed(7)
    features, wanted = torch.randn(64, 8, 8, generator=generator), torch.randn(8, 8, generator=generator)
    assert explained(features, wanted).share < 0.3


def test_an_image_of_one_brightness_is_refused(target):
    with pytest.raises(DataError, match="one brightness"):
        explained(torch.randn(2, 24, 16), torch.full_like(target, 0.25))


def longest_path(y: torch.Tensor) -> int:
    """Convolutions on the longest path of the graph that computed `y`."""
    depths: dict[object, int] = {}
    pending = [y.grad_fn]
    while pending:
        node = pending[-1]
        before = [parent for parent, _ in node.next_functions if parent is not None]
        unknown = [parent for parent in before if parent not in depths]
        if unknown:
            pending += unknown
        else:
            pending.pop()
            own = type(node).__name__ == "ConvolutionBackward0"
            depths[node] = own + max((depths[parent] for parent in before), default=0)
    return depths[y.grad_fn]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_the_depths_are_convolutions_on_the_longest_path(kind, blocks):
    stack = random_stack(kind, seed=0, depth=100, channels=8, blocks=blocks)
    found = [(depth, longest_path(y), y.shape) for depth, y in stack.maps(torch.rand(1, 3, SIDE, SIDE))]
    assert [depth for depth, _, _ in found] == [counted for _, counted, _ in found]
    assert {STAGE, 2 * STAGE} <= set(stack.depths) and len(stack.depths) == 2 * (1 + blocks)
    assert {shape for _, _, shape in found} == {(1, 8, SIDE // 2, SIDE // 2)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "VGG"}, "kind: 'VGG' is none of PlainNet"),
        ({"depth": 60}, "depth: 60 is not a multiple of 50"),
        ({"channels": 6}, "channels: 6"),
        ({"blocks": 3}, "blocks: 3 is none of 1, 2, 4"),
    ],
)
def test_networks_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        random_stack(**{"kind": "GELAN", "seed": 0, **arguments})


def test_a_seed_is_a_network_and_moves_no_other():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (random_stack("GELAN", seed=seed, depth=50, channels=8) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_a_plain_network_loses_more_than_the_others():
    found = {kind: kept(kind, scene(side=64), [0], depth=50) for kind in KINDS}
    plain = found.pop("PlainNet")
    assert plain.depths == (2, 50) and plain.shares[0, 0] > 0.9
    for one in found.values():
        assert plain.shares[0, 1] + 0.1 < one.shares[0, 1] < one.shares[0, 0]


def test_the_command_writes_what_it_prints_and_the_same_each_time(tmp_path, capsys):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), scene(side=48))
    common = ["--image", str(path), "--size", "32", "--depth", "50", "--seed", "3", "--seeds", "2"]
    for name in ("a", "b"):
        information.main([*common, "--out", str(tmp_path / name)])
    printed = capsys.readouterr().out
    for name in ("information.jpg", "information.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    drawn = cv2.imread(str(tmp_path / "a/information.jpg"))
    assert drawn.shape[0] > 8 * information.SHOWN_SIDE and drawn.std() > 20
    svg = (tmp_path / "a/information.svg").read_text()
    wanted = kept("GELAN", information.prepared(path, 32), [3, 4], depth=50)
    curve = re.search(r"<title>GELAN: (.*?)</title>", svg)[1]
    assert curve == ", ".join(
        f"{depth} {share:.3f}" for depth, share in zip(wanted.depths, wanted.shares.mean(0), strict=True)
    )
    low, high = wanted.shares[:, 1].min(), wanted.shares[:, 1].max()
    assert f"{wanted.shares[:, 1].mean():.2f} ({low:.2f}-{high:.2f})" in printed


def test_mistakes_are_one_line(tmp_path, capsys):
    path = tmp_path / "none.jpg"
    assert outcome(lambda: information.main(["--image", str(path)])) == 2
    assert capsys.readouterr().err == f"error: {path}: no such image file\n"
    with pytest.raises(SystemExit, match="2"):
        information.main(["--size", "ten", "--image", "x"])
    error = capsys.readouterr().err
    assert error.startswith("error: argument --size: invalid int value") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100"], "--size: 100 is not a multiple of 8 from 32 to 1024"),
        (["--size", "4096"], "--size: 4096"),
        (["--seeds", "0"], "--seeds: at least 1"),
        (["--depth", "10"], "depth: 10 is not a multiple of 50"),
    ],
)
def test_numbers_out_of_range(tmp_path, arguments, message):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), scene())
    with pytest.raises(ConfigError, match=message):
        information.main(["--image", str(path), "--out", str(tmp_path / "o"), *arguments])
    assert not (tmp_path / "o").exists()


def test_an_image_of_one_colour_says_so_and_writes_nothing(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full((40, 60, 3), 90, np.uint8))
    with pytest.raises(DataError, match="one brightness"):
        information.main(["--image", str(path), "--out", str(tmp_path / "o"), "--size", "32"])
    assert not (tmp_path / "o").exists()
