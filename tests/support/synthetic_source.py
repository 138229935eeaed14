"""A source of small made-up images for the tests of augmentation; keeps account of what was decoded."""

import numpy as np

from yolov7.augment.sample import Objects, Shown
from yolov7.polygons import Polygons

SIDE = 64


def ring(x1, y1, x2, y2, points=12):
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False) + 0.3
    return np.stack([(x1 + x2) / 2 + (x2 - x1) / 2 * np.cos(angles), (y1 + y2) / 2 + (y2 - y1) / 2 * np.sin(angles)], 1)


class SyntheticSource:
    """Images with smooth random content, or black with white objects, long side 64, some with outlines."""

    def __init__(self, count=12, *, seed=0, polygons=False, white=False, objects=3, side=SIDE):
        rng = np.random.default_rng(seed)
        self.has_polygons = polygons
        self.asked = []
        self._images, self._objects = [], []
        for _ in range(count):
            short = int(rng.integers(side // 3, side + 1))
            height, width = (side, short) if rng.random() < 0.5 else (short, side)
            starts = rng.uniform(0, 0.6, (objects, 2))
            corners = np.hstack([starts, starts + rng.uniform(0.15, 0.4, (objects, 2))])
            boxes = np.round(corners * [width, height, width, height])
            labels = rng.integers(0, 5, objects)
            if white:
                image = np.zeros((height, width, 3), np.uint8)
                for x1, y1, x2, y2 in boxes.astype(int):
                    image[y1:y2, x1:x2] = 255
            else:
                waves = rng.uniform(0.02, 0.2, (3, 2))
                ys, xs = np.mgrid[0:height, 0:width]
                planes = [np.sin(a * xs + b * ys + 6 * c) for c, (a, b) in enumerate(waves)]
                image = (127 + 120 * np.stack(planes, 2)).astype(np.uint8)
            outlines = None
            if polygons:
                rings = [ring(*box) for box in boxes[1:]]  # the first object has no outline
                points = np.concatenate(rings) if rings else np.zeros((0, 2))
                counts = np.full(len(rings), 12)
                outlines = Polygons(points, counts, np.arange(1, len(rings) + 1))
            self._images.append(image)
            self._objects.append(Objects(boxes, labels, outlines))

    def __len__(self):
        return len(self._images)

    def size(self, index):
        return self._images[index].shape[:2]

    def objects(self, index):
        return self._objects[index]

    def image(self, index):
        self.asked.append(index)
        return self._images[index]

    def shown(self, index, scale):
        return Shown(self.image(index))
