"""Views of the validation images: every box still lies on its object."""

from __future__ import annotations

import cv2
import numpy as np
from views import GREY, make_views

from yolov7.data.annotated import read_annotated
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index

SIZES = ((40, 60), (50, 31))
BOXES = ([5.0, 8.0, 20.0, 10.0], [3.0, 30.0, 7.0, 15.0])
RED = (200, 10, 10)


def test_boxes_follow_the_objects_and_the_first_view_is_the_image(tmp_path):
    images, annotations, pictures = [], [], []
    for i, ((height, width), box) in enumerate(zip(SIZES, BOXES, strict=True)):
        picture = np.full((height, width, 3), 50, np.uint8)
        x, y, w, h = (int(value) for value in box)
        picture[y : y + h, x : x + w] = RED
        cv2.imwrite(str(tmp_path / f"{i}.png"), picture[:, :, ::-1])
        pictures.append(picture)
        images.append({"id": 7 + i, "file_name": f"{i}.png", "width": width, "height": height})
        record = {"id": 20 + i, "image_id": 7 + i, "category_id": 4, "bbox": box, "area": 33.0 + i, "iscrowd": i}
        annotations.append(record)
    coco = CocoAnnotations(tmp_path / "a.json", images, annotations, [{"id": 4, "name": "block"}])
    index = build_index(coco, tmp_path, tmp_path / "index")

    views = list(make_views(index, tmp_path / "views"))

    assert len(views) == 8
    different = set()
    for view in views:
        assert tuple(view.category_ids) == (4,) and tuple(view.class_names) == ("block",)
        for i in range(2):
            picture, ((x, y, w, h),) = read_annotated(view, i), view.coco_boxes(i).astype(int).tolist()
            red = (picture == RED).all(axis=2)
            assert red[y : y + h, x : x + w].all() and red.sum() == w * h == BOXES[i][2] * BOXES[i][3]
            outside = picture.shape[0] * picture.shape[1] - SIZES[i][0] * SIZES[i][1]
            assert (picture == GREY).all(axis=2).sum() == outside
            assert (view.image_id(i), view.annotation_ids(i), view.areas(i), view.crowd(i)) == (
                7 + i,
                20 + i,
                33 + i,
                i,
            )
        different.add(picture.tobytes())
    assert len(different) == 8
    for i in range(2):
        assert (read_annotated(views[0], i) == pictures[i]).all() and (views[0].boxes(i) == index.boxes(i)).all()
