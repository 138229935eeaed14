"""The memory-mapped index: what goes in comes out, what it cannot hold is refused, and it stays small and quick."""

import copy
import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.data import index_arrays
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import Index, build_index
from yolov7.data.index_arrays import ARRAYS
from yolov7.errors import DataError

IMAGES = [
    {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
    {"id": 3, "file_name": "sub/ü.png", "width": 20, "height": 30},
    {"id": 9, "file_name": "empty.jpg", "width": 10, "height": 10},
]
CATEGORIES = [{"id": 40, "name": "late"}, {"id": 5, "name": "early"}]
ANNOTATIONS = [
    {"id": 1, "image_id": 3, "category_id": 40, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6]]},
    {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0.5, 0.25, 10, 20], "area": 77.5},
    {"id": 3, "image_id": 3, "category_id": 5, "bbox": [5, 5, 10, 10], "iscrowd": 1,
     "segmentation": {"counts": [0, 600], "size": [30, 20]}},
    {"id": 4, "image_id": 3, "category_id": 5, "bbox": [2, 2, 8, 8],
     "segmentation": [[2, 2, 10, 2, 10, 10, 2, 10], [3, 3, 4, 4], [5, 5, 6, 5, 6, 6]]},
]  # fmt: skip


def annotations(images=IMAGES, records=ANNOTATIONS, categories=CATEGORIES):
    return CocoAnnotations(
        path=Path("train.json"),
        images=copy.deepcopy(images),
        annotations=copy.deepcopy(records),
        categories=copy.deepcopy(categories),
    )


@pytest.fixture
def index(tmp_path):
    return build_index(annotations(), tmp_path / "images", tmp_path / "index")


def test_everything_comes_back(index, tmp_path):
    assert len(index) == 3 and index.num_boxes == 4 and index.has_polygons
    assert index.class_names == ("early", "late") and index.category_ids == (5, 40)
    assert [index.image_id(i) for i in range(3)] == [7, 3, 9]
    assert [index.size(i) for i in range(3)] == [(50, 100), (30, 20), (10, 10)]
    assert index.image_path(1).resolve() == (tmp_path / "images/sub/ü.png").resolve()
    np.testing.assert_array_equal(index.boxes(0), np.float32([[0.5, 0.25, 10.5, 20.25]]))
    np.testing.assert_array_equal(index.boxes(1), np.float32([[1, 2, 4, 6], [5, 5, 15, 15], [2, 2, 10, 10]]))
    assert index.boxes(2).shape == (0, 4) and index.boxes(0).dtype == np.float32
    np.testing.assert_array_equal(index.labels(1), [1, 0, 0])
    np.testing.assert_array_equal(index.annotation_ids(1), [1, 3, 4])
    np.testing.assert_array_equal(index.crowd(1), [False, True, False])
    np.testing.assert_array_equal(index.areas(0), [77.5])
    np.testing.assert_array_equal(index.areas(1), [12, 100, 64])
    np.testing.assert_array_equal(index.coco_boxes(0), [[0.5, 0.25, 10, 20]])
    np.testing.assert_array_equal(index.class_counts(), [2, 1])


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("piece", [1, 2, 3])
def test_arrays_written_in_pieces_are_whole_ones(tmp_path, monkeypatch, piece, in_order):
    records = sorted(ANNOTATIONS, key=lambda record: [7, 3].index(record["image_id"])) if in_order else ANNOTATIONS
    whole = build_index(annotations(records=records), tmp_path, tmp_path / "whole")
    monkeypatch.setattr(index_arrays, "_PIECE", piece)
    build_index(annotations(records=records), tmp_path, tmp_path / "pieces")
    assert whole.annotation_ids(1).tolist() == [1, 3, 4]
    for name in (*(f"{name}.npy" for name in ARRAYS), "index.json"):
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    for name in ARRAYS:
        np.save(tmp_path / "saved.npy", np.load(tmp_path / "whole" / f"{name}.npy"))
        assert (tmp_path / "saved.npy").read_bytes() == (tmp_path / "whole" / f"{name}.npy").read_bytes(), name


def test_polygons_are_ragged_and_run_lengths_count_as_none(index):
    assert index.polygons(0) == [[]] and index.polygons(2) == []
    first, crowd, third = index.polygons(1)
    assert len(first) == 1 and crowd == [] and len(third) == 2  # the ring of two points is none
    np.testing.assert_array_equal(first[0], [[1, 2], [4, 2], [4, 6]])
    np.testing.assert_array_equal(third[1], [[5, 5], [6, 5], [6, 6]])


def test_crowds_repetitions_and_outside_boxes_are_left_out_of_training(tmp_path, caplog):
    records = [
        *ANNOTATIONS,
        {"id": 5, "image_id": 7, "category_id": 5, "bbox": [0.5, 0.25, 10, 20]},
        {"id": 6, "image_id": 7, "category_id": 40, "bbox": [0.5, 0.25, 10, 20]},
        {"id": 7, "image_id": 7, "category_id": 40, "bbox": [200, 10, 5, 5]},
        {"id": 8, "image_id": 7, "category_id": 40, "bbox": [50, 10, 0, 5]},
    ]
    index = build_index(annotations(records=records), tmp_path, tmp_path / "index")
    np.testing.assert_array_equal(index.trainable(0), [True, False, True, False, False])
    np.testing.assert_array_equal(index.trainable(1), [True, False, True])
    boxes, images = index.all_sizes()
    np.testing.assert_array_equal(boxes, np.float32([[10, 20], [10, 20], [3, 4], [8, 8]]))
    np.testing.assert_array_equal(images, np.float32([[100, 50], [100, 50], [20, 30], [20, 30]]))
    assert "1 boxes are exact repetitions" in caplog.text and "2 boxes are empty or outside" in caplog.text


def test_pickling_reopens_instead_of_copying(index):
    data = pickle.dumps(index)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data).boxes(1), index.boxes(1))


def test_a_moved_project_still_finds_its_images(tmp_path):
    build_index(annotations(), tmp_path / "old/images", tmp_path / "old/index/train")
    (tmp_path / "old").rename(tmp_path / "new")
    index = Index.open(tmp_path / "new/index/train")
    assert index.image_path(0).resolve() == (tmp_path / "new/images/a.jpg").resolve()
    assert Index.open(tmp_path / "new/index/train", image_root="else").image_path(0) == Path("else/a.jpg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "annotation 2: image_id 99 names no image"),
        ({"category_id": 6}, "annotation 2: category_id 6 names no category"),
        ({"bbox": [0, 0, float("nan"), 1]}, "annotation 2: the box is not finite"),
        ({"bbox": [0, 0, 1, 1e300]}, "annotation 2: the box is not finite"),
        ({"id": 1}, "annotation 1: annotation id given twice"),
    ],
)
def test_annotations_that_cannot_be_represented_are_refused(tmp_path, change, message):
    records = [*ANNOTATIONS[:1], {**ANNOTATIONS[1], **change}, *ANNOTATIONS[2:]]
    with pytest.raises(DataError, match=f"train.json: {message}"):
        build_index(annotations(records=records), tmp_path, tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, "image 7: image id given twice"),
        ({"width": 0}, "image 3: width is 0"),
        ({"height": 10.5}, "image 3: height is 10.5"),
        ({"height": float("nan")}, "image 3: height is nan"),
        ({"file_name": "../x.jpg"}, "leads out of the image folder"),
        ({"file_name": "a/../../x.jpg"}, "leads out of the image folder"),
        ({"file_name": "/etc/passwd"}, "leads out of the image folder"),
        ({"file_name": "C:\\x.jpg"}, "leads out of the image folder"),
    ],
)
def test_images_that_cannot_be_represented_are_refused(tmp_path, change, message):
    images = [IMAGES[0], {**IMAGES[1], **change}, IMAGES[2]]
    with pytest.raises(DataError, match=message):
        build_index(annotations(images=images), tmp_path, tmp_path / "index")


def test_empty_lists_and_repeated_categories(tmp_path):
    with pytest.raises(DataError, match="no images"):
        build_index(annotations(images=[], records=[]), tmp_path, tmp_path / "index")
    with pytest.raises(DataError, match="no categories"):
        build_index(annotations(records=[], categories=[]), tmp_path, tmp_path / "index")
    with pytest.raises(DataError, match="category 5: category id given twice"):
        build_index(annotations(categories=[*CATEGORIES, CATEGORIES[1]]), tmp_path, tmp_path / "index")
    index = build_index(annotations(records=[]), tmp_path, tmp_path / "index")
    assert index.boxes(0).shape == (0, 4) and not index.has_polygons and index.polygons(0) == []


def test_a_new_index_replaces_the_old_one_and_nothing_else(tmp_path):
    build_index(annotations(), tmp_path, tmp_path / "index")
    build_index(annotations(records=[]), tmp_path, tmp_path / "index")
    assert Index.open(tmp_path / "index").num_boxes == 0
    with pytest.raises(DataError):
        build_index(annotations(images=[]), tmp_path, tmp_path / "index")
    assert Index.open(tmp_path / "index").num_boxes == 0
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="is not an index"):
        build_index(annotations(), tmp_path, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


@pytest.mark.parametrize("damage", ["missing", "half", "other", "length", "version", "json"])
def test_damaged_folders_are_refused_by_name(index, damage):
    array, description = index.folder / "labels.npy", index.folder / "index.json"
    if damage == "missing":
        array.unlink()
    elif damage == "half":
        array.write_bytes(array.read_bytes()[:-8])
    elif damage == "other":
        np.save(array, np.zeros((4, 2)))
    elif damage == "length":
        np.save(array, np.zeros(3, np.int64))
    elif damage == "version":
        description.write_text(json.dumps({**json.loads(description.read_text()), "format": 99}))
    else:
        description.write_text("{")
    with pytest.raises(DataError, match="build it again"):
        Index.open(index.folder)


def test_a_folder_without_index_is_refused(tmp_path):
    with pytest.raises(DataError, match="no index here"):
        Index.open(tmp_path)


def test_positions_out_of_range(index):
    for i in (-1, 3):
        with pytest.raises(IndexError):
            index.boxes(i)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_annotations_survive(tmp_path_factory, data):
    number = st.floats(-1e4, 1e4, width=32)
    ids = data.draw(st.lists(st.integers(0, 2**60), min_size=1, max_size=6, unique=True))
    images = [{"id": one, "file_name": f"{one}.jpg", "width": 640, "height": 480} for one in ids]
    boxes = data.draw(st.lists(st.tuples(st.sampled_from(ids), st.lists(number, min_size=4, max_size=4)), max_size=20))
    records = [{"id": n, "image_id": i, "category_id": 5, "bbox": box} for n, (i, box) in enumerate(boxes)]
    folder = tmp_path_factory.mktemp("any")
    index = build_index(annotations(images=images, records=records), folder, folder / "index")
    for i, one in enumerate(ids):
        mine = [record for record in records if record["image_id"] == one]
        np.testing.assert_array_equal(index.annotation_ids(i), [record["id"] for record in mine])
        np.testing.assert_array_equal(index.coco_boxes(i), np.reshape([r["bbox"] for r in mine], (-1, 4)))


SCALE = """
    import sys
    import numpy as np
    from pathlib import Path
    from yolov7.data.formats.coco import CocoAnnotations
    from yolov7.data.index import build_index
    from yolov7.memory import peak_memory_gib
    rng = np.random.default_rng(0)
    I, N = 118_287, 860_001
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(I)]
    owners = rng.integers(0, I, N).tolist()
    records = [
        {"id": n, "image_id": o, "category_id": 1 + n % 80, "bbox": [n % 500 + 0.5, 10.25, 20.125, 30.0], "iscrowd": 0}
        for n, o in enumerate(owners)
    ]
    categories = [{"id": c, "name": str(c)} for c in range(1, 81)]
    coco = CocoAnnotations(path=Path("x"), images=images, annotations=records, categories=categories)
    index = build_index(coco, Path("images"), Path(sys.argv[1]))
    print(len(index), index.num_boxes, peak_memory_gib())
"""


@pytest.mark.slow
def test_an_index_of_the_size_of_coco_is_built_in_2_gb(tmp_path):
    out = tmp_path / "index"
    program = [sys.executable, "-c", textwrap.dedent(SCALE), os.fspath(out)]
    images, boxes, gigabytes = subprocess.run(program, check=True, capture_output=True, text=True).stdout.split()
    assert (int(images), int(boxes)) == (118_287, 860_001)
    assert float(gigabytes) < 2
    index = Index.open(out)
    assert sum(len(index.boxes(i)) for i in range(0, len(index), 1000)) > 0
