"""Objects that a training leaves out: counted by reason and class, with the setting that would keep them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from small_detector import SIDE, small_detector
from small_gelan import small_gelan_detector
from small_training import parameters, trainer, training_data

from yolov7.config import AlignedLoss, AnchorLoss, train_parameters
from yolov7.data.dataset import TrainDataset
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.loss import AlignedCriterion, create_criterion
from yolov7.train.loop import Trainer
from yolov7.train.records import Outcome
from yolov7.train.summary import as_text, facts, unused_as_markdown
from yolov7.train.unused import (
    OUTLINE,
    OUTSIDE,
    REPEATED,
    SMALL,
    THIN,
    UNREADABLE,
    find_unused,
    report_unused,
)

UNMATCHED = AnchorLoss.unmatched
WIDE = 2 * SIDE  # the images' long side: half of every length remains at the training size
GOOD = (20, 20, 40, 40)


def index_of(folder, boxes, classes=("cat", "dog"), images=2, **more):
    """An index of grey images; `boxes` are (image, class, bbox) or (image, class, bbox, further fields)."""
    records = [{"id": i, "file_name": f"{i}.png", "width": WIDE, "height": SIDE} for i in range(images)]
    annotations = [
        {"id": n, "image_id": box[0], "category_id": box[1], "bbox": list(box[2]), **(box[3] if len(box) > 3 else {})}
        for n, box in enumerate(boxes, 1)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(classes)]
    folder.mkdir(exist_ok=True)
    for record in records:
        cv2.imwrite(str(folder / record["file_name"]), np.full((SIDE, WIDE, 3), 99, np.uint8))
    return build_index(CocoAnnotations(folder / "a.json", records, annotations, categories), folder, folder / "index")


def found(index, params, **more):
    model = small_detector(index.num_classes)
    criterion = create_criterion(model, image_size=params.image_size, **params.loss.model_dump())
    return find_unused(index, params, criterion, stride=model.stride, **more)


def lost(index, params) -> dict[str, list[int]]:
    return {reason: counts.tolist() for reason, counts in found(index, params).counts.lost.items()}


def samples_with_labels(index, params, label: int, epochs: int = 40) -> float:
    """Share of the samples, image by image, in which some object of a class is left."""
    plain = params.augment.model_copy(update={"mosaic": 0.0, "translate": 0.0})
    dataset = TrainDataset(index, image_size=params.image_size, augment=plain, seed=0)
    return float(np.mean([label in dataset[epoch, 0].labels for epoch in range(epochs)]))


REASONS = {
    "crowd": ((0, 1, GOOD, {"iscrowd": 1}), "crowds", "data.coco.crowd_is_object: true"),
    "outside": ((0, 1, (WIDE + 5, 0, 10, 10)), OUTSIDE, "width and height"),
    "empty": ((0, 1, (50, 50, 0, 10)), OUTSIDE, "width and height"),
    "small": ((0, 1, (50, 50, 3, 20)), SMALL, "train.image_size: "),
    "thin": ((0, 1, (10, 50, 140, 6)), THIN, "train.augment.max_aspect: 24"),
    "outline": ((0, 1, GOOD, {"segmentation": [[20, 20, 23, 20, 23, 23]]}), OUTLINE, "outlines"),
    "unmatched": ((0, 1, (10, 20, 150, 9)), UNMATCHED, "train.loss.anchor_threshold: "),
}


@pytest.mark.parametrize("case", REASONS)
def test_an_object_that_is_never_used_is_counted_by_reason_and_the_setting_is_named(tmp_path, case):
    box, reason, setting = REASONS[case]
    index = index_of(tmp_path, [box, (0, 0, GOOD), (1, 0, (70, 30, 30, 30))])
    result = found(index, parameters())
    assert {why: counts.tolist() for why, counts in result.counts.lost.items()} == {reason: [0, 1]}
    (line,) = result.warnings
    assert line.startswith(f"class 'dog' loses 1 of 1 objects: 1 {reason}; ")
    assert setting in line
    if case != "unmatched":  # the samples still show it; nothing in the network learns it
        assert samples_with_labels(index, parameters(), 1) < 0.5


def test_repetitions_are_counted_once_and_nothing_is_lost_twice(tmp_path):
    crowd = {"iscrowd": 1}
    boxes = [(0, 0, GOOD), (0, 0, GOOD), (0, 0, GOOD), (0, 1, GOOD, crowd), (0, 1, GOOD, crowd)]
    index = index_of(tmp_path, boxes)
    assert lost(index, parameters()) == {"crowds": [0, 2], REPEATED: [2, 0]}


def test_the_advised_settings_keep_most_objects(tmp_path):
    rng = np.random.default_rng(0)
    small = [(0, 0, (10 + i, 10, w, 3 * w)) for i, w in enumerate(rng.uniform(1.0, 3.2, 40))]
    thin = [(1, 1, (5, i, 150, 150 / ratio)) for i, ratio in enumerate(rng.uniform(21, 30, 20))]
    index = index_of(tmp_path, small + thin)
    first = found(index, parameters())
    assert len(first.counts.mostly_lost()) == 2
    side = int(first.warnings[0].split("train.image_size: ")[1].split()[0])
    kept = lost(index, parameters(image_size=side))
    assert sum(counts[0] for counts in kept.values()) < 20
    aspect = float(first.warnings[1].split("train.augment.max_aspect: ")[1].split()[0])
    wide = found(index, parameters(augment={"max_aspect": aspect}, loss={"anchor_threshold": 100.0}))
    assert wide.counts.lost.get(THIN, np.zeros(2))[1] < 10


def test_the_threshold_that_is_advised_keeps_most_objects(tmp_path):
    long = [(0, 1, (5, i, 150, 150 / ratio)) for i, ratio in enumerate(np.linspace(14, 18, 20))]
    index = index_of(tmp_path, [*long, (1, 0, GOOD)])
    (line,) = found(index, parameters()).warnings
    threshold = float(line.split("train.loss.anchor_threshold: ")[1].split(",")[0])
    assert lost(index, parameters(loss={"anchor_threshold": threshold})).get(UNMATCHED, [0, 0])[1] < 10


def test_objects_between_the_cells_of_a_network_without_anchors_are_told_a_larger_image(tmp_path):
    # Sides of 5 px at the training size contain a centre of cells of 8 px in 25 of 64 places.
    index = index_of(tmp_path, [*((0, 1, (10 + 12 * i, 20, 10, 10)) for i in range(8)), (1, 0, (20, 20, 60, 60))])
    free = {"preset": "yolov9", "augment": {"scale": 0.1}}

    def found_at(side):
        params = train_parameters({**free, "image_size": side}, recipe="yolov9")
        criterion = create_criterion(small_gelan_detector(2), image_size=side, **params.loss.model_dump())
        return find_unused(index, params, criterion, stride=32)

    result = found_at(SIDE)
    assert {why: counts.tolist() for why, counts in result.counts.lost.items()} == {AlignedLoss.unmatched: [0, 8]}
    (line,) = result.warnings
    assert "8 without the centre of a cell in most samples; train.image_size: 128 keeps most" in line
    assert "anchor" not in line and not found_at(128).counts.lost


def test_an_object_with_a_wider_limit_is_in_the_samples(tmp_path):
    index = index_of(tmp_path, [(0, 1, (10, 50, 140, 6)), (1, 0, GOOD)])
    assert samples_with_labels(index, parameters(), 1) < 0.5
    assert samples_with_labels(index, parameters(augment={"max_aspect": 24}), 1) > 0.6


def test_rotation_widens_thin_objects(tmp_path):
    index = index_of(tmp_path, [(0, 0, (10, 50, 140, 6)), (1, 0, GOOD), (1, 1, GOOD)])
    turned = parameters(augment={"degrees": 45.0}, loss={"anchor_threshold": 100.0})
    assert lost(index, parameters()) == {THIN: [1, 0]}
    assert lost(index, turned) == {}
    assert samples_with_labels(index, turned, 0) > 0.5


def test_classes_without_objects_are_named_and_those_that_only_validation_has(tmp_path):
    train = index_of(tmp_path / "a", [(0, 0, GOOD)], classes=("cat", "dog", "cow"))
    val = index_of(tmp_path / "b", [(0, 1, GOOD), (1, 1, GOOD)], classes=("cat", "dog", "cow"))
    first, second = found(train, parameters(), validation=val).warnings
    assert first == "2 classes have no objects in the training images, so nothing is learned of it: 'dog', 'cow'"
    assert second == "the validation images have objects of classes that the training images lack: dog 2"


def test_a_class_without_weight_is_named(tmp_path):
    index = index_of(tmp_path, [(0, 0, GOOD), (0, 1, GOOD)])
    (line,) = found(index, parameters(class_weights={"dog": 0.0, "cat": 2.0})).warnings
    assert line.startswith("train.class_weights is 0 for 'dog'")


def test_data_without_losses_or_objects_raise_no_alarm(tmp_path):
    assert found(index_of(tmp_path / "a", [(0, 0, GOOD), (0, 1, GOOD)]), parameters()).warnings == ()
    empty = found(index_of(tmp_path / "b", []), parameters())
    assert empty.counts.lines() == ["training uses all 0 objects"]
    assert empty.warnings == ()


def test_a_training_from_python_logs_the_counts_before_the_first_epoch(tmp_path, caplog):
    boxes = [(0, 1, (50, 50, 2, 2)), (0, 1, (60, 60, 2, 2)), (1, 1, GOOD), (1, 0, GOOD)]
    index = index_of(tmp_path, [*boxes, (0, 2, GOOD)], classes=("kind 0", "kind 1", "kind 2"))
    outcome = trainer(index, tmp_path / "run", parameters(epochs=1)).fit()
    assert caplog.messages[:2] == ["training leaves out 2 of 5 objects:", f"  2 {SMALL}: kind 1 2"]
    assert caplog.messages[2].startswith("class 'kind 1' loses 2 of 3 objects")
    assert outcome.unused.document() == {"total": 5, "left_out": {SMALL: {"kind 1": 2}}}
    assert unused_as_markdown(outcome.unused).splitlines()[2:] == [
        f"| class | objects | left out | {SMALL} |",
        "| --- | --- | --- | --- |",
        "| kind 1 | 3 | 2 | 2 |",
        "| all | 5 | 2 | 2 |",
    ]
    text = as_text("done", facts(outcome, epochs=1, device="cpu", peak_memory_gib=1.0, folder=tmp_path))
    assert f"objects left out   2 of 5: 2 {SMALL}" in text


def test_objects_on_images_that_cannot_be_read_are_counted_with_the_run(tmp_path):
    index = training_data(tmp_path / "data", images=4)
    counts = index.counts(np.repeat([True], index.num_boxes) & (index.image_numbers() == 2))
    index.image_path(2).write_bytes(b"no image")
    val = training_data(tmp_path / "val", images=2)
    run: Trainer = trainer(index, tmp_path / "run", parameters(epochs=2), val_index=val)
    outcome: Outcome = run.fit()
    assert run.position.lost_images == [2]
    assert counts.sum()
    assert outcome.unused.lost[UNREADABLE].tolist() == counts.tolist()


def test_objects_beyond_the_reach_of_the_bins_are_counted_in_one_line(tmp_path, caplog):
    large = (0, 0, WIDE, SIDE)
    index = index_of(tmp_path, [(0, 0, large), (1, 1, large), (0, 1, GOOD), (1, 0, GOOD)])
    # 14.99 x 32 px to each side.
    criterion = AlignedCriterion(AlignedLoss(), strides=(8, 16, 32), num_classes=2, bins=16, auxiliary=False)
    for size, count in ((1280, 2), (928, 0)):
        with caplog.at_level("WARNING"):
            report_unused(find_unused(index, parameters(image_size=size), criterion, stride=32))
        lines = [record.getMessage() for record in caplog.records if "reach of the head" in record.getMessage()]
        assert len(lines) == (count > 0)
        caplog.clear()
        if count:
            assert lines[0].startswith(
                "2 of 4 objects are larger than 959 px at train.image_size 1280, beyond the reach"
            )
            assert "train.image_size: 928, or a head with more bins" in lines[0]
