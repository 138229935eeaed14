"""Properties of every variant of every family, from its record."""

import json
from dataclasses import fields, replace

import pytest

import yolov7
from yolov7.catalogue import VariantInfo, listed_infos, listed_names, listed_recipes, sections
from yolov7.errors import ModelError
from yolov7.model import blocks
from yolov7.model.info import variant_info
from yolov7.model.spec_json import library_kinds, network_from_json, network_to_json
from yolov7.model.variants import (
    FAMILIES,
    VARIANTS,
    family_of,
    find_record,
    find_variant,
    list_variants,
    recipe_of,
    yolov7_tiny,
)
from yolov7.presets import PRESETS

PAIRS = [(family, name) for family in FAMILIES for name in family.variants]
NAMES = [name for _, name in PAIRS]
MINE = replace(yolov7_tiny(), name="mine")


def test_the_families_share_no_name():
    assert list_variants() == NAMES == list(VARIANTS) and len(set(NAMES)) == len(NAMES)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_variants_of_one_family(family):
    assert yolov7.list_variants(family=family.name) == list(family.variants)


def test_an_unknown_family_names_the_known_ones():
    with pytest.raises(ModelError, match=r"unknown family 'yolov77' \(known: yolov7"):
        yolov7.list_variants(family="yolov77")


@pytest.mark.parametrize(("family", "name"), PAIRS, ids=NAMES)
def test_the_record_of_a_variant(family, name):
    record = find_record(name)
    assert family_of(name) is family and record is family.variants[name]
    assert find_variant(name) == record.network() and record.network().name == name
    assert record.recipe == recipe_of(name) and record.recipe in PRESETS[family.name]
    published = record.published
    if published is not None:
        assert 0 < published.ap < 100 and published.source and published.split in ("test-dev", "val2017")
        assert published.image_size % 32 == 0
        for lower in (published.ap50, published.ap75):
            assert lower is None or published.ap < lower < 100
        if published.speed is not None:
            assert published.fps == published.speed.fps > 0 and published.speed.device and published.speed.precision


@pytest.mark.parametrize(("family", "name"), PAIRS, ids=NAMES)
def test_the_cost_of_a_variant(family, name):
    row = variant_info(name)
    assert row.family == family.name and row.published == find_record(name).published
    assert row.parameters_training >= row.parameters_deploy_unfused > row.parameters_deploy > 0
    assert row.gflops_training >= row.gflops_deploy > 0
    assert all(row.image_size % stride == 0 for stride in row.strides)
    (listed,) = listed_infos([name])
    assert listed == row, "the catalogue is out of date: run `python -m yolov7.model.info`"
    (section,) = sections([listed])
    assert section.title == family.title and section.rows[1][0] == name
    assert VariantInfo.from_json(json.loads(json.dumps(row.as_json()))) == row


def test_the_catalogue_lists_every_variant_in_order():
    assert listed_names() == NAMES == [row.variant for row in listed_infos()]
    assert listed_recipes() == {name: recipe_of(name) for name in NAMES}
    with pytest.raises(ModelError, match=r"unknown variant 'yolov7-tinny' \(did you mean 'yolov7-tiny'"):
        listed_infos(["yolov7", "yolov7-tinny"])


@pytest.mark.parametrize(("family", "name"), PAIRS, ids=NAMES)
def test_a_network_survives_json(family, name):
    network = find_variant(name)
    assert network_from_json(json.loads(json.dumps(network_to_json(network)))) == network


def test_every_kind_has_a_name_of_its_own():
    kinds = [*blocks.KINDS, *(kind for family in FAMILIES for kind in family.kinds)]
    assert len({kind.__name__ for kind in kinds}) == len(set(kinds))
    assert {kind.__name__ for kind in kinds} | {"Network", "Stage"} == set(library_kinds())
    assert all(item.init for kind in kinds for item in fields(kind))


def test_a_network_of_ones_own_has_no_family_and_the_p5_recipe():
    assert recipe_of("mine") == "p5"
    with pytest.raises(ModelError, match=r"unknown variant 'yolov7-tinny' \(did you mean 'yolov7-tiny'"):
        find_record("yolov7-tinny")
    with pytest.raises(ModelError, match="unknown variant"):
        family_of("mine")
    row = variant_info(MINE)
    assert row.family is None and row.published is None


def test_info_has_a_section_per_family():
    rows = [*listed_infos(["yolov7-tiny", "yolov7-tiny-silu"]), variant_info(MINE)]
    first, own = sections(rows)
    assert first.title == "YOLOv7" and [row[0] for row in first.rows[1:]] == ["yolov7-tiny", "yolov7-tiny-silu"]
    assert first.note == "FPS: one V100, fp16, batch 1, without suppression."
    assert own.title == "Networks of your own" and own.note == "" and own.rows[1][0] == "mine"
