"""Training data: pure samples, the same batches for any workers, exact resume, and broken images along the way."""

import errno
import itertools
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yolov7.augment.multi_scale import multi_scale_size, resize_batch
from yolov7.config import Augment
from yolov7.data.cache import ImageCache
from yolov7.data.dataset import _KEPT, TrainDataset, _ReplacingSource
from yolov7.data.decode import decode_image
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.data.loader import TrainLoader, epoch_keys, epoch_order
from yolov7.data.workers import OrderedMap
from yolov7.errors import DataError, TrainingError

SIDE, COUNT = 96, 11
BUSY = Augment(degrees=10, mixup=0.5, mosaic9=0.5, copy_paste=0.5, paste_in=0.5, flip_up_down=0.5)


def write_data(folder, *, polygons=True, count=COUNT):
    rng = np.random.default_rng(0)
    images, records = [], []
    for i in range(count):
        height, width = int(rng.integers(60, 120)), int(rng.integers(60, 120))
        cv2.imwrite(str(folder / f"{i}.jpg"), cv2.blur(rng.integers(0, 255, (height, width, 3), np.uint8), (9, 9)))
        images.append({"id": 1000 + i, "file_name": f"{i}.jpg", "width": width, "height": height})
        for _ in range(4):
            w, h = rng.uniform(10, 50, 2).tolist()
            x, y = float(rng.uniform(-5, width - w)), float(rng.uniform(-5, height - h))
            record = {"id": len(records), "image_id": 1000 + i, "category_id": 1, "bbox": [x, y, w, h]}
            if polygons:
                record["segmentation"] = [[x + w / 2, y, x + w, y + h, x, y + h]]
            records.append(record)
        records.append(
            {"id": len(records), "image_id": 1000 + i, "category_id": 2, "bbox": [1, 1, 50, 50], "iscrowd": 1}
        )
    categories = [{"id": 1, "name": "thing"}, {"id": 2, "name": "crowd"}]
    return build_index(CocoAnnotations(Path("x"), images, records, categories), folder, folder / "index")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def fragile(tmp_path):
    return write_data(tmp_path)


def dataset_of(index, **keywords):
    return TrainDataset(index, **{"image_size": SIDE, "augment": BUSY, "seed": 3, **keywords})


def loaded(dataset, *, epoch=2, start_batch=0, **keywords):
    """The batches of one epoch, from workers that end with it."""
    loader = TrainLoader(dataset, **{"batch_size": 3, **keywords})
    try:
        return list(loader.epoch(epoch, start_batch))
    finally:
        loader.close()


def assert_same(batches, others):
    assert len(batches) == len(others)
    for mine, its in zip(batches, others, strict=True):
        assert (mine.epoch, mine.batch_index, mine.image_ids) == (its.epoch, its.batch_index, its.image_ids)
        assert mine.skipped == its.skipped
        assert torch.equal(mine.images, its.images) and torch.equal(mine.targets, its.targets)
        assert (mine.tables is None) == (its.tables is None)
        assert mine.tables is None or torch.equal(mine.tables, its.tables)


def test_a_sample_depends_on_seed_epoch_and_index_alone(index):
    dataset = dataset_of(index)
    first = [dataset[2, i] for i in range(COUNT)]
    np.random.seed(5)
    torch.manual_seed(5)
    again = [dataset[2, i] for i in reversed(range(COUNT))][::-1]
    fresh = [pickle.loads(pickle.dumps(dataset_of(index)))[2, i] for i in range(COUNT)]
    for a, b, c in zip(first, again, fresh, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boxes, c.boxes)
        np.testing.assert_array_equal(a.image, c.image)
    for other in (dataset[3, 0], dataset[2, 1], dataset_of(index, seed=4)[2, 0]):
        assert not np.array_equal(first[0].image, other.image)


def test_neither_global_generator_is_touched(index):
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    loaded(dataset_of(index), workers=1)
    np.testing.assert_array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


def test_samples_are_clean(index):
    dataset = dataset_of(index)
    for i in range(60):
        sample = dataset[i // COUNT, i % COUNT]
        assert sample.image.shape == (SIDE, SIDE, 3) and sample.image.dtype == np.uint8
        assert sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64
        assert (sample.boxes >= 0).all() and (sample.boxes <= SIDE).all()
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2] > 2).all()
        assert (sample.labels == 0).all()  # class 1 has crowds only, which training leaves out


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(index, workers):
    dataset = dataset_of(index)
    assert_same(loaded(dataset, workers=workers), loaded(dataset))


@pytest.mark.parametrize("workers", [0, 2])
def test_tables_of_a_jitter_on_the_device_travel_with_their_images(index, workers):
    dataset = dataset_of(index, augment=BUSY.model_copy(update={"hsv_on_device": True}))
    batches = loaded(dataset, workers=workers)
    assert_same(batches, loaded(dataset))
    assert_same(loaded(dataset, start_batch=1, workers=workers), batches[1:])
    for batch in batches:
        assert batch.tables.shape == (len(batch), 3, 256) and batch.tables.dtype == torch.uint8
    assert len({tuple(table) for batch in batches for table in batch.tables[:, 2].tolist()}) == len(dataset)
    assert all(batch.tables is None for batch in loaded(dataset_of(index)))


def test_persistent_workers_serve_many_epochs_and_an_abandoned_one(index):
    dataset = dataset_of(index)
    loader = TrainLoader(dataset, batch_size=3, workers=2)
    for epoch in (0, 1):
        assert_same(list(loader.epoch(epoch)), loaded(dataset, epoch=epoch))
    abandoned = loader.epoch(5)
    next(abandoned)
    assert_same(list(loader.epoch(6, 1)), loaded(dataset, epoch=6, start_batch=1))
    abandoned = loader.epoch(5)
    next(abandoned)
    processes = loader._build._loader._iterator._workers
    loader.close()
    assert not any(process.is_alive() for process in processes)


FOREIGN_HOOK = """
import os, threading
from yolov7.data.workers import OrderedMap
parent = os.getpid()
def drain():  # as Prefect's services do
    if os.getpid() != parent:
        raise RuntimeError("my thread is not here")
threading._register_atexit(drain)
double = OrderedMap(lambda key: 2 * key, workers=2)
print(list(double(range(5))))
double.close()
print(list(double([7])))
double.close()
"""


def test_workers_killed_by_an_exit_handler_of_another_library_are_not_an_error():
    done = subprocess.run([sys.executable, "-c", FOREIGN_HOOK], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.split("\n")) == (0, ["[0, 2, 4, 6, 8]", "[14]", ""]), done.stderr


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_resume_in_mid_epoch_equals_the_uninterrupted_run(index, start, workers):
    dataset = dataset_of(index)
    whole = loaded(dataset)
    assert_same(loaded(dataset_of(index), start_batch=start, workers=workers), whole[start:])
    assert [batch.batch_index for batch in whole] == [0, 1, 2, 3]


WEIGHTS = np.array([30.0] + [1.0] * (COUNT - 1))  # as `image_sampling` gives them: the first comes again and again


def test_an_image_that_is_drawn_again_is_another_sample(index):
    dataset = dataset_of(index)
    np.testing.assert_array_equal(dataset[2, 0, 0].image, dataset[2, 0].image)
    assert not np.array_equal(dataset[2, 0, 1].image, dataset[2, 0].image)
    batches = list(TrainLoader(dataset, batch_size=1, weights=WEIGHTS).epoch(0))
    pictures = [batch.images for batch in batches if batch.image_ids == [1000]]
    assert len(pictures) > 3
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(pictures, 2))
    assert torch.equal(pictures[0][0].permute(1, 2, 0), torch.from_numpy(dataset[0, 0].image))
    workers = TrainLoader(dataset, batch_size=1, weights=WEIGHTS, workers=1)
    assert_same(list(workers.epoch(0, 4)), batches[4:])
    workers.close()


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_repeats_are_counted_over_the_whole_epoch(length, batch_size, world_size, start, drawn):
    weights = np.arange(1.0, length + 1) ** 2 if drawn else None
    ranks = [
        epoch_keys(length, seed=1, epoch=0, batch_size=batch_size, rank=rank, world_size=world_size, weights=weights)
        for rank in range(world_size)
    ]
    seen = {}
    for keys in zip(*ranks, strict=True):
        for place in itertools.zip_longest(*(zip(key.indices, key.repeats, strict=True) for key in keys)):
            for i, repeat in place:
                assert repeat == seen.get(i, 0)
                seen[i] = repeat + 1
    common = {"seed": 1, "epoch": 0, "batch_size": batch_size, "world_size": world_size, "weights": weights}
    assert epoch_keys(length, start_batch=start, **common) == ranks[0][start:]


def test_every_epoch_shows_every_image_in_another_order(index):
    dataset = dataset_of(index)
    seen = [[i for batch in loaded(dataset, epoch=epoch) for i in batch.image_ids] for epoch in range(3)]
    for ids in seen:
        assert sorted(ids) == [1000 + i for i in range(COUNT)] and ids != sorted(ids)
    assert seen[0] != seen[1] != seen[2]


def test_batches_are_what_the_samples_are(index):
    dataset = dataset_of(index)
    for key, batch in zip(epoch_keys(COUNT, seed=3, epoch=2, batch_size=3), loaded(dataset), strict=True):
        assert batch.images.dtype == torch.uint8 and batch.targets.dtype == torch.float32
        assert batch.images.shape == (len(key.indices), 3, SIDE, SIDE)
        for position, i in enumerate(key.indices):
            sample = dataset[2, i]
            np.testing.assert_array_equal(batch.images[position].permute(1, 2, 0).numpy(), sample.image)
            mine = batch.targets[batch.targets[:, 0] == position].numpy()
            np.testing.assert_array_equal(mine[:, 2:], sample.boxes)
            np.testing.assert_array_equal(mine[:, 1], sample.labels)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5), st.integers(0, 5), st.data())
def test_ranks_share_the_global_batches(length, batch_size, world_size, epoch, data):
    start = data.draw(st.integers(0, 3))
    common = {"seed": 1, "epoch": epoch, "start_batch": start}
    common |= {"length": length}
    ranks = [
        epoch_keys(batch_size=batch_size, rank=rank, world_size=world_size, **common) for rank in range(world_size)
    ]
    assert len({tuple((key.batch_index, len(key.indices)) for key in keys) for keys in ranks}) == 1
    alone = epoch_keys(batch_size=batch_size * world_size, **common)
    together = [set(itertools.chain(*(key.indices for key in keys))) for keys in zip(*ranks, strict=True)]
    assert len(together) >= len(alone)
    for theirs, mine in zip(together, alone, strict=False):
        assert set(mine.indices) <= theirs
    if start == 0:
        counts = np.bincount([i for keys in ranks for key in keys for i in key.indices], minlength=length)
        assert counts.min() == 1 or length < world_size
        assert counts.sum() == -(-length // world_size) * world_size and counts.min() >= 1


@given(st.integers(1, 500), st.integers(0, 2**31), st.integers(0, 1000))
def test_an_order_is_a_permutation_and_pure(length, seed, epoch):
    order = epoch_order(length, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(length))
    np.testing.assert_array_equal(order, epoch_order(length, seed=seed, epoch=epoch))


def test_mosaic_closes_for_the_last_epochs(index):
    dataset = dataset_of(index, augment=BUSY.model_copy(update={"close_mosaic_epochs": 2}), epochs=5)
    assert [dataset.is_closed(epoch) for epoch in range(5)] == [False, False, False, True, True]
    asked = []
    dataset.shown, original = lambda i, by: asked.append(i) or original(i, by), dataset.shown
    dataset[2, 0]
    assert len(asked) != 1 or dataset[1, 0] is not None
    asked.clear()
    for i in range(COUNT):
        dataset[3, i]
    assert asked == list(range(COUNT))
    assert not dataset_of(index).is_closed(10**6)


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_changes_nothing_but_reads(index, tmp_path, workers, cache):
    cached = dataset_of(index, cache=cache, cache_folder=tmp_path)
    assert_same(loaded(cached, workers=workers), loaded(dataset_of(index)))
    again = pickle.loads(pickle.dumps(cached))
    again._read = None  # nothing may be read any more
    np.testing.assert_array_equal(again[0, 0].image, cached[0, 0].image)


def test_without_memory_for_the_cache_images_are_decoded_every_time(caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        cache = ImageCache(np.array([[1000, 1000]]), lambda _: np.zeros((1000, 1000, 3), np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cache.get(0) is None
    assert "the system gives no memory for it" in caplog.text and "File too large" in caplog.text


def test_a_cache_that_does_not_fit_holds_the_first_images(caplog):
    images = [np.full((4, 5, 3), i, np.uint8) for i in range(6)]

    def read(i):
        if i == 1:
            raise DataError("broken")
        return images[i]

    cache = ImageCache(np.array([[4, 5]] * 6), read, limit=60 * 4 + 10)
    held = [cache.get(i) for i in range(6)]
    assert [one is not None for one in held] == [True, False, True, True, False, False]
    np.testing.assert_array_equal(held[3], images[3])
    assert "4 of 6 images fit" in caplog.text and "broken" in caplog.text


def test_a_cache_on_disk_is_built_once_and_rebuilt_for_other_images(fragile, tmp_path, monkeypatch):
    reads = []
    original = TrainDataset._read
    monkeypatch.setattr(TrainDataset, "_read", lambda self, i, by: reads.append(i) or original(self, i, by))
    folder = tmp_path / "cache"
    Path(fragile.image_path(4)).unlink()
    leftover = folder / ".x-1.tmp.pixels"

    def made(**keywords):
        reads.clear()
        dataset = dataset_of(fragile, cache="disk", cache_folder=folder, **keywords)
        return dataset, len(reads), len(list(folder.glob("*.pixels")))

    first, read, files = made()
    assert (read, files) == (COUNT, 1)
    assert first._cache.get(4) is None and first._cache.get(3) is not None
    with pytest.raises(ValueError, match="read-only"):
        first._cache.get(3)[:] = 0
    again, read, files = made()
    assert (read, files) == (0, 1)
    np.testing.assert_array_equal(again._cache.get(3), original(again, 3, 1).image)
    assert made(image_size=64)[1:] == (COUNT, 2)
    cv2.imwrite(str(fragile.image_path(3)), np.zeros((*fragile.size(3), 3), np.uint8))
    changed, read, files = made()
    assert (read, files) == (COUNT, 3)
    assert not changed._cache.get(3).any()
    # A program that was killed while it filled the file leaves nothing that counts.
    file = Path(changed._cache._path)
    leftover = file.with_name(f".{file.stem}-1.tmp.pixels")
    file.rename(leftover)
    assert made()[1:] == (COUNT, 3) and not leftover.exists()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged; remove it"):
        made()


def test_a_full_disk_leaves_no_half_cache(index, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match=r"cache cannot be written: No space left"):
        dataset_of(index, cache="disk", cache_folder=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_file_system_without_locks_is_named_instead_of_a_marker_that_outlives_a_kill(index, tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with pytest.raises(DataError, match=r"cache cannot be written: Function not implemented"):
        dataset_of(index, cache="disk", cache_folder=tmp_path)


def resident_bytes(process="self"):
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("workers", [0, 1])
def test_resident_memory_does_not_grow_over_epochs(index, workers):
    loader = TrainLoader(dataset_of(index, augment=Augment(mixup=0, paste_in=0)), batch_size=4, workers=workers)

    def run(epochs):
        for epoch in epochs:
            for _ in loader.epoch(epoch):
                pass
        return resident_bytes(loader._build._loader._iterator._workers[0].pid if workers else "self")

    settled = run(range(5))
    grown = run(range(5, 35)) - settled
    loader.close()
    # A leak of one decoded image a sample would be 30 * 11 * 25 kB = 8 MB; without one it was seen to be below 0.4.
    assert grown < 3 * 2**20, grown


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_replaced_counted_and_named(fragile, workers, cache):
    Path(fragile.image_path(4)).unlink()
    whole = Path(fragile.image_path(7)).read_bytes()
    Path(fragile.image_path(7)).write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(fragile.image_path(9)), np.zeros((10, 10, 3), np.uint8))
    dataset = dataset_of(fragile, cache=cache)
    batches = loaded(dataset, workers=workers)
    assert sum(len(batch) for batch in batches) == COUNT
    text = "\n".join(line for batch in batches for line in batch.skipped)
    assert "4.jpg: no such image file" in text
    assert "7.jpg: the image is truncated" in text
    assert "9.jpg: image 1009: the image is 10 x 10 but annotated as" in text
    assert_same(batches, loaded(dataset_of(fragile)))
    # What does not need a broken image is as it would have been.
    untouched = [i for i in range(COUNT) if not dataset[2, i].skipped]
    Path(fragile.image_path(7)).write_bytes(whole)
    for i in untouched:
        np.testing.assert_array_equal(dataset[2, i].image, dataset_of(fragile)[2, i].image)


def test_when_all_images_are_gone_the_loader_says_so(fragile):
    for i in range(COUNT):
        Path(fragile.image_path(i)).unlink()
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"images of one sample could not be read; the last: .*no such image file$"):
            loaded(dataset_of(fragile), workers=workers)


def test_a_request_to_stop_that_reaches_the_workers_too_costs_no_batch(index):
    loader = TrainLoader(dataset_of(index), batch_size=1, workers=2)
    batches = loader.epoch(0)
    seen = [next(batches)]
    workers = loader._build._loader._iterator._workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    seen += batches
    assert_same(seen, loaded(dataset_of(index), batch_size=1, epoch=0))
    # Before the close: what a fork of this process does at its end is up to every library that lives in it.
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


def test_requests_wait_until_a_worker_ignores_them():
    def held(_key):
        return signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    read = OrderedMap(held, workers=1)
    assert list(read([0])) == [True]  # from its first moment on
    assert not held(0)
    read.close()


def test_a_worker_that_hangs_is_killed_at_the_end(monkeypatch):
    monkeypatch.setattr("yolov7.data.workers._GRACE_SECONDS", 0.2)
    read = OrderedMap(lambda key: time.sleep(100 * key), workers=1)
    next(read([0, 1]))
    (worker,) = read._loader._iterator._workers
    read.close()
    worker.join(10)
    assert worker.exitcode == -signal.SIGKILL


@dataclass
class Held:
    values: torch.Tensor
    empty: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 6))


def test_full_shared_memory_ends_the_work_instead_of_hanging_it():
    def large(key):
        limit = 2**16 if key else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))  # counts there too
        return Held(torch.arange(2**18))

    read = OrderedMap(large, workers=1)
    results = read([0, 1])
    assert torch.equal(next(results).values, torch.arange(2**18))
    with pytest.raises(TrainingError, match=r"no room for a batch in /dev/shm \(.*\); make it larger.*YOLOV7_WORKERS"):
        next(results)
    read.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_out_of_memory_while_images_are_loaded_is_explained(workers):
    def full(key):
        raise MemoryError("Unable to allocate 3 GiB")

    read = OrderedMap(full, workers=workers)
    with pytest.raises(
        TrainingError, match="out of memory while images are loaded: Unable to allocate 3 GiB; try fewer"
    ):
        next(read([0]))
    read.close()


ORPHANS = """
import os, signal, torch.utils.data._utils.worker as torch_worker
from yolov7.data.workers import OrderedMap
torch_worker.MP_STATUS_CHECK_INTERVAL = 0.1
print(*OrderedMap(lambda key: os.getpid(), workers=2)(range(2)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_training_that_is_killed():
    done = subprocess.run([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True, timeout=200)
    # run() returns when the last process that has inherited the pipe is gone.
    assert done.returncode == -signal.SIGKILL
    assert len(set(done.stdout.split())) == 2


def test_an_image_is_read_once_for_a_sample_however_many_of_its_objects_are_pasted(index, monkeypatch):
    augment = Augment(mosaic9=0.0, mixup=0.0, paste_in=0.0, copy_paste=1.0)
    expected = [dataset_of(index, augment=augment)[0, i] for i in range(COUNT)]
    dataset, read, asked = dataset_of(index, augment=augment), [], []
    whole, ask = dataset._read, _ReplacingSource.shown
    monkeypatch.setattr(dataset, "_read", lambda i, by: read.append(i) or whole(i, by))
    monkeypatch.setattr(_ReplacingSource, "shown", lambda self, i, scale: asked.append(i) or ask(self, i, scale))
    times = 0
    for i in range(COUNT):
        read.clear()
        np.testing.assert_array_equal(dataset[0, i].image, expected[i].image)
        assert 0 < len(read) == len(set(read)) <= 4
        times += len(read)
    assert len(asked) > 1.5 * times  # pasted objects did ask again


def test_the_images_kept_for_a_sample_are_the_last_few(index):
    source = _ReplacingSource(dataset_of(index), {})
    for i in [*range(_KEPT), 0, _KEPT]:
        source.image(i)
    assert [i for i, _ in source._decoded] == [*range(2, _KEPT), 0, _KEPT]


def test_large_photographs_are_reduced_while_decoded_and_boxes_stay_where_they_are(tmp_path, monkeypatch):
    image = np.zeros((600, 800, 3), np.uint8)
    image[160:400, 240:560] = 255
    for name in ("0.jpg", "1.png"):
        cv2.imwrite(str(tmp_path / name), image)
    images = [{"id": i, "file_name": name, "width": 800, "height": 600} for i, name in enumerate(("0.jpg", "1.png"))]
    records = [{"id": i, "image_id": i, "category_id": 1, "bbox": [240, 160, 320, 240]} for i in range(2)]
    coco = CocoAnnotations(Path("x"), images, records, [{"id": 1, "name": "thing"}])
    dataset = dataset_of(build_index(coco, tmp_path, tmp_path / "index"), augment=Augment(mosaic=0))
    asked = []
    monkeypatch.setattr(
        "yolov7.data.annotated.decode_image",
        lambda data, *, path, reduction: asked.append(reduction) or decode_image(data, path=path, reduction=reduction),
    )
    for i in range(2):
        pixels = dataset.image(i)
        assert pixels.shape == (72, SIDE, 3)
        ys, xs = np.nonzero(pixels[..., 0] > 127)
        seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(dataset.objects(i).boxes[0] - seen).max() < 1
    assert asked == [8, 1]  # only a JPEG can be
    cv2.imwrite(str(tmp_path / "0.jpg"), image[:320, :400])
    with pytest.raises(DataError, match="the image is 400 x 320 but annotated as 800 x 600"):
        monkeypatch.undo()
        dataset.image(0)


def test_an_empty_training_set_is_refused(index):
    class Empty:
        folder = Path("x")
        __len__ = lambda self: 0  # noqa: E731

    with pytest.raises(DataError, match="no images to train on"):
        TrainDataset(Empty(), image_size=SIDE, augment=BUSY, seed=0)
    with pytest.raises(IndexError):
        dataset_of(index)[0, COUNT]


@given(st.sampled_from([320, 640, 1280]), st.sampled_from([32, 64]), st.integers(0, 99), st.integers(0, 999))
def test_multi_scale_sizes(image_size, stride, epoch, batch):
    size = multi_scale_size(image_size, stride, seed=1, epoch=epoch, batch=batch)
    assert size % stride == 0 and image_size // 2 - stride < size < image_size * 3 // 2 + stride
    assert size == multi_scale_size(image_size, stride, seed=1, epoch=epoch, batch=batch)


def test_multi_scale_covers_its_range_and_moves_targets_along():
    sizes = {multi_scale_size(640, 32, seed=0, epoch=0, batch=batch) for batch in range(2000)}
    assert sizes == set(range(320, 961, 32))
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 16:32, 8:24] = 1
    targets = torch.tensor([[0.0, 4, 8, 16, 24, 32]])
    resized, moved = resize_batch(images, targets, 96)
    assert resized.shape == (1, 3, 96, 96)
    assert moved.tolist() == [[0, 4, 12, 24, 36, 48]]
    assert resized[0, 0, 25:47, 13:35].min() > 0.8 and resized[0, 0, :23].max() == 0
    same, also = resize_batch(images, targets, 64)
    assert same is images and also is targets
