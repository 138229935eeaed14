"""The borders of YOLOv6's published figures."""

from yolov7.model import list_variants
from yolov7.model.variants.borders import BORDERS, published_border

LOAD_SIZES = {"n": 638, "t": 634, "s": 638, "m": 628, "l": 632, "l-relu": 638}
"""Long sides of 2.0 as released, in inputs of 640."""


def test_borders_of_2_0_are_what_the_load_sizes_leave():
    assert {f"yolov6-{size}": 640 - load for size, load in LOAD_SIZES.items()}.items() <= BORDERS.items()


def test_networks_without_a_border():
    assert published_border("yolov6v3-m6") == 64
    assert published_border("yolov7-tiny") == published_border("yolov9-c") == published_border("my-own") == 0


def test_every_network_of_the_family_has_one():
    assert sorted(BORDERS) == sorted(list_variants("yolov6"))
