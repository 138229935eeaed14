"""A project with an export that has int8 files, and a test split of the objects that its float file finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from small_detector import metadata_of, pictures, small_index

from yolov7.artefact import FormatName, Int8Settings
from yolov7.data.decode import read_image
from yolov7.data.index import Index
from yolov7.export import export_folder
from yolov7.export.int8 import Int8Exporter
from yolov7.model import Detector
from yolov7.predict import Predictor, TorchRuntime

INT8_FORMATS: tuple[FormatName, ...] = ("onnx-int8", "openvino-int8")


def int8_export(
    model: Detector, folder: Path, index: Index, formats: Sequence[FormatName] = INT8_FORMATS, **settings: object
) -> Path:
    """Export to `folder`; int8 files are calibrated and checked on `index`."""
    chosen = Int8Settings(**{"calibration_images": 4, "max_ap_drop": 1.0, **settings})
    export_folder(
        model,
        folder,
        metadata=metadata_of(model),
        formats=formats,
        int8=lambda graph, floats: Int8Exporter(graph, floats, calibration=index, validation=index, settings=chosen),
    )
    return folder


def project_with_test_split(root: Path, model: Detector, images: int = 6) -> Index:
    """`data/ingested` and `data/index/test` below `root`; AP of `model` lies between 0 and 1."""
    shown, metadata = pictures(images), metadata_of(model)
    found = Predictor(TorchRuntime(model, metadata), confidence=0.2, iou=0.5, max_detections=12).predict(shown)
    folder = root / "data/ingested/test/images"
    folder.mkdir(parents=True)
    small_index(folder, found, shown, metadata)
    (root / "data/index").mkdir()
    (folder / "index").rename(root / "data/index/test")
    document = {"sha256": "a" * 64, "splits": {"test": {"sha256": "b" * 64}}, "test_is_val": False}
    (root / "data/ingested/dataset.json").write_text(json.dumps(document))
    return Index.open(root / "data/index/test", image_root=folder)


def write_coco(index: Index, file: Path) -> Path:
    """The annotations of an index as a COCO file."""
    images, annotations = [], []
    for place in range(len(index)):
        path, image_id = index.image_path(place), index.image_id(place)
        height, width = read_image(path).shape[:2]
        images.append({"id": image_id, "file_name": path.name, "height": height, "width": width})
        for box, label in zip(index.boxes(place).astype(float), index.labels(place), strict=True):
            sides = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            annotations.append({"image_id": image_id, "category_id": index.category_ids[label], "bbox": sides})
    numbered = [{"id": number, **one} for number, one in enumerate(annotations, start=1)]
    classes = [{"id": i, "name": name} for i, name in zip(index.category_ids, index.class_names, strict=True)]
    file.write_text(json.dumps({"images": images, "annotations": numbered, "categories": classes}))
    return file
