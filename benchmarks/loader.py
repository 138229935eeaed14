"""Training images per second on one core, beside the straightforward 2S-canvas pipeline in the same run.

    python benchmarks/loader.py [--images FOLDER] [--count 256] [--samples 192] [--size 640] [--quality 90]

Without FOLDER the pictures are 640 x 480 crops of the photographs that scikit-learn ships; with it, random crops of the
JPEGs found there, so that all sources have the same size. Boxes are random, seven per image as in COCO; with
--outlines each has a polygon, and pasting is active (the canvas pipeline does not use outlines, so the ratio then
understates the library). Rates count processor time: waiting for other work on the machine is left out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import canvas
import cv2
import numpy as np
import torch

from yolov7.config import Augment
from yolov7.data.dataset import TrainDataset
from yolov7.data.decode import decode_image, reduction_for
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import Index, build_index
from yolov7.data.loader import TrainLoader
from yolov7.letterbox import resize_to_long_side

HEIGHT, WIDTH = 480, 640
RECIPES = {
    "full p5 recipe": Augment(),
    "mosaic + affine + HSV": Augment(mosaic9=0, mixup=0, paste_in=0, flip_left_right=0),
    "mosaic + affine + HSV + flip": Augment(mosaic9=0, mixup=0, paste_in=0),
}


def photographs(folder):
    if folder is None:
        from sklearn.datasets import load_sample_images

        return [np.ascontiguousarray(image) for image in load_sample_images().images]
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    return [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in paths]


def make_data(folder, images, count, quality, outlines):
    """`count` JPEGs of 640 x 480 with seven boxes each, and their index."""
    rng = np.random.default_rng(0)
    sources = photographs(images)
    records, annotations = [], []
    for i in range(count):
        source = sources[i % len(sources)]
        share = rng.uniform(0.7, 1)
        high = min(source.shape[0], source.shape[1] * HEIGHT / WIDTH) * share
        h, w = int(high), int(high * WIDTH / HEIGHT)
        y, x = rng.integers(0, source.shape[0] - h + 1), rng.integers(0, source.shape[1] - w + 1)
        crop = cv2.resize(source[y : y + h, x : x + w], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{i}.jpg"), crop[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        records.append({"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT})
        for _ in range(7):
            w, h = rng.uniform(16, 300, 2).tolist()
            x, y = float(rng.uniform(0, WIDTH - w)), float(rng.uniform(0, HEIGHT - h))
            record = {"id": len(annotations), "image_id": i, "category_id": 1, "bbox": [x, y, w, h]}
            if outlines:
                angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
                ring = np.stack([x + w / 2 + w / 2 * np.cos(angles), y + h / 2 + h / 2 * np.sin(angles)], 1)
                record["segmentation"] = [ring.ravel().tolist()]
            annotations.append(record)
    coco = CocoAnnotations(Path("benchmark"), records, annotations, [{"id": 1, "name": "thing"}])
    return build_index(coco, folder, folder / "index")


def library(dataset, samples):
    loader = TrainLoader(dataset, batch_size=16)
    epoch, seen = 0, 0
    while seen < samples:
        for batch in loader.epoch(epoch):
            seen += len(batch)
            if seen >= samples:
                break
        epoch += 1
    return seen


def straightforward(dataset, samples):
    for number in range(0, samples, 16):
        images, boxes = [], []
        for index in range(number, number + 16):
            rng = np.random.default_rng([0, 0, index])
            sample = canvas.augment_sample(dataset, index % len(dataset), dataset.augment, dataset.image_size, rng)
            images.append(np.ascontiguousarray(sample[0].transpose(2, 0, 1)))
            boxes.append(sample[1])
        torch.from_numpy(np.stack(images))
    return number + 16


def reading_a_large_photograph(images, quality, size):
    """Milliseconds of processor time from a JPEG of 12 megapixels to pixels at load size: decoded whole, reduced."""
    high, wide = 3000, 4000
    image = cv2.resize(photographs(images)[0], (wide, high), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + np.random.default_rng(0).normal(0, 3, image.shape), 0, 255).astype(np.uint8)
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    times = []
    for reduction in (1, reduction_for(high, wide, size)):
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            resize_to_long_side(decode_image(data, reduction=reduction), size)
            best = min(best, (time.process_time() - start) * 1e3)
        times.append(best)
    return times


def rates(runs, dataset, samples, rounds=5):
    """Images per second of processor time for every run, the best of some rounds taken in turn.

    Disturbances only ever slow a measurement, and processor time does not count waiting for other work.
    """
    best = [0.0] * len(runs)
    for round_number in range(rounds + 1):
        for place, run in enumerate(runs):
            start = time.process_time()
            seen = run(dataset, samples if round_number else 16)  # the first round warms up
            if round_number:
                best[place] = max(best[place], seen / (time.process_time() - start))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--outlines", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        index = make_data(Path(folder), arguments.images, arguments.count, arguments.quality, arguments.outlines)
        start = time.perf_counter()
        Index.open(Path(folder) / "index")
        print(f"index opened in {(time.perf_counter() - start) * 1e3:.1f} ms")
        data = [(Path(folder) / f"{i}.jpg").read_bytes() for i in range(min(64, len(index)))]
        start = time.process_time()
        for one in data:
            cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR_RGB)
        decode = (time.process_time() - start) / len(data)
        size = np.mean([len(one) for one in data]) / 1e3
        print(f"decoding alone: {decode * 1e3:.2f} ms a {WIDTH} x {HEIGHT} JPEG of {size:.0f} kB")
        whole, reduced = reading_a_large_photograph(arguments.images, arguments.quality, arguments.size)
        print(f"a 4000 x 3000 JPEG to {arguments.size}: {whole:.0f} ms decoded whole, {reduced:.0f} ms as it is done")
        print(f"{'images/s on one core':32s}{'library':>10s}{'canvas':>10s}{'ratio':>8s}")
        for cache in ("none", "ram"):
            for name, augment in RECIPES.items():
                dataset = TrainDataset(index, image_size=arguments.size, augment=augment, seed=0, cache=cache)
                ours, theirs = rates((library, straightforward), dataset, arguments.samples)
                label = name + (", cached" if cache == "ram" else "")
                print(f"{label:40s}{ours:8.1f}{theirs:8.1f}{ours / theirs:8.2f}", flush=True)


if __name__ == "__main__":
    main()
