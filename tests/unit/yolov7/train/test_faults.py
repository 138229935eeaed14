"""Faults of long runs: images that vanish, no memory, no disk, kills, changed parameters. And exact resume."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import save_file
from small_detector import SIDE, metadata_of, small_detector
from small_training import Watcher, parameters, same_outcome, same_weights, trainer, training_data

from stages.project.command import run_stage
from stages.training.run import TrainingRun
from stages.training.run_identity import refuse_changed
from yolov7.config import Ema, Train, train_parameters
from yolov7.data.index import Index
from yolov7.device import is_out_of_memory
from yolov7.errors import LostWorkerError, ModelError, TrainingError
from yolov7.evaluate import find_results
from yolov7.files import why_not_written
from yolov7.model import load_checkpoint, save_checkpoint
from yolov7.model.variants import recipe_of
from yolov7.predict import Predictor, TorchRuntime
from yolov7.train.distributed import Processes
from yolov7.train.ema import AveragedModel
from yolov7.train.identity import run_identity
from yolov7.train.loop import Trainer
from yolov7.train.snapshot import restore, snapshot
from yolov7.train.state import StateFolder, TrainingState, newest_iteration


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return training_data(tmp_path_factory.mktemp("faults"))


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def breaking(tmp_path, monkeypatch) -> tuple[Index, Watcher]:
    """Data of which an image vanishes and another breaks when the second epoch has begun; no figures are computed."""
    data = training_data(tmp_path / "data")
    monkeypatch.setattr(Trainer, "_evaluate", lambda self: dict.fromkeys(("AP", "AP50", "AP75"), 0.1))

    def breaks(report) -> None:
        if report.epoch == 1 and report.batch == 1 and data.image_path(0).exists():
            data.image_path(0).unlink()
            whole = data.image_path(3).read_bytes()
            data.image_path(3).write_bytes(whole[: len(whole) // 2])

    return data, Watcher(breaks)


def test_images_that_vanish_or_break_in_mid_run_are_left_out_counted_and_named(breaking, tmp_path, caplog):
    data, watcher = breaking
    outcome = trainer(data, tmp_path / "run", parameters(), listeners=[watcher]).fit()
    assert outcome.finished
    counts = [row["bad_images"] for row in outcome.history]
    assert counts[0] == 0 and counts[2] >= 2
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(lines) == sum(counts)
    assert any("0.png: no such image file" in line for line in lines)
    assert any("3.png" in line and "truncated" in line for line in lines)


def test_too_many_broken_images_stop_the_run_which_resumes_when_they_are_back(breaking, tmp_path):
    data, watcher = breaking
    params = parameters(max_bad_images=0, checkpoint_minutes=0.0)
    with pytest.raises(TrainingError, match=r"could not be read in epoch [12] \(train\.max_bad_images: 0\).*[03]\.png"):
        trainer(data, tmp_path / "run", params, listeners=[watcher]).fit()
    for i in (0, 3):
        height, width = data.size(i)
        cv2.imwrite(str(data.image_path(i)), torch.zeros(height, width, 3, dtype=torch.uint8).numpy())
    again = Watcher()
    assert trainer(data, tmp_path / "run", params, listeners=[again]).fit().finished
    assert again.notes[0].startswith("resuming at epoch")


def test_a_broken_image_counts_once_an_epoch_however_often_it_is_asked_for(tmp_path, caplog):
    data = training_data(tmp_path / "data")
    data.image_path(2).unlink()
    # A mosaic asks for four of six images.
    params = parameters(max_bad_images=1, evaluate_every=3, augment={"mosaic": 1.0, "close_mosaic_epochs": 0})
    val_index = training_data(tmp_path / "val", 2)
    whole = trainer(data, tmp_path / "straight", params, val_index=val_index).fit()
    assert [row["bad_images"] for row in whole.history] == [1, 1, 1]
    assert len([line for line in caplog.messages if "image left out" in line]) == 3
    (tmp_path / "pieces").mkdir()
    outcome, _, pieces = in_pieces(data, tmp_path / "pieces", params, 1, val_index=val_index)
    assert pieces > 3
    assert same_outcome(outcome, whole)


def test_images_that_several_processes_find_broken_are_counted_once(index, tmp_path, caplog):
    class Second(Processes):
        """The first of two processes, of which the other tells of two images."""

        found = ("1.png: truncated", "9.png: no such image file")

        def any(self, *flags):
            return tuple(flag or bool(self.found) for flag in flags)

        def gather(self, items):
            found, self.found = self.found, ()
            return [*items, *found]

    run = trainer(index, tmp_path, parameters(max_bad_images=2), processes=Second())
    batch = next(run.loader.epoch(0))
    batch.skipped = ["1.png: truncated", "1.png: truncated"]
    run.guard.count_bad_images(run.position, batch)
    run.guard.count_bad_images(run.position, batch)
    assert run.position.epoch_bad_images == 2
    assert caplog.messages == ["image left out: 1.png: truncated", "image left out: 9.png: no such image file"]
    batch.skipped = ["3.png: truncated"]
    with pytest.raises(TrainingError, match=r"3 training images could not be read in epoch 0.*the last: 3\.png"):
        run.guard.count_bad_images(run.position, batch)


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
@pytest.mark.parametrize(("batch_size", "advice"), [(2, r"train\.batch_size: 1"), (1, r"a smaller train\.image_size")])
def test_out_of_memory_says_what_failed_and_what_to_try(index, tmp_path, error, batch_size, advice):
    run = trainer(index, tmp_path, parameters(batch_size=batch_size))

    def full(images):
        raise error

    run.model.raw = full  # type: ignore[method-assign]
    run.model.forward = full  # type: ignore[method-assign]
    with pytest.raises(
        TrainingError, match=rf"out of memory with a batch of {batch_size} images of {SIDE} px.*{advice}"
    ):
        run.fit()


def test_out_of_memory_at_several_scales_names_the_one_that_failed(index, tmp_path):
    run = trainer(index, tmp_path, parameters(multi_scale=True, epochs=9))
    raw = run.model.raw

    def full(images):
        if images.shape[-1] > SIDE:
            raise torch.OutOfMemoryError(f"CUDA out of memory at {images.shape[-1]}.")
        return raw(images)

    run.model.raw = full  # type: ignore[method-assign]
    run.model.forward = full  # type: ignore[method-assign]
    with pytest.raises(
        TrainingError, match=r"2 images of (\d+) px; try train.batch_size: 1, or train.multi_scale"
    ) as told:
        run.fit()
    assert str(told.value.__cause__).endswith(f"{run._side()}.")
    assert f" {run._side()} px; try" in str(told.value)


@pytest.mark.parametrize(
    "text", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", "cuDNN: CUDNN_STATUS_ALLOC_FAILED"]
)
def test_libraries_of_the_device_run_out_of_memory_too(text):
    assert is_out_of_memory(RuntimeError(text))


def test_a_killed_loader_process_ends_the_training_with_a_message(index, tmp_path, monkeypatch):
    def killed(self, key):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("yolov7.data.loader._BatchBuilder.__call__", killed)
    with pytest.raises(LostWorkerError, match=r"died: DataLoader worker .*\w\. If .*YOLOV7_WORKERS"):
        trainer(index, tmp_path, parameters(), workers=1).fit()
    monkeypatch.setattr("yolov7.data.evaluation._EvalReader.__call__", killed)
    predictor = Predictor(TorchRuntime(small_detector().reparameterize(), metadata_of(small_detector())))
    with pytest.raises(LostWorkerError, match="a process that loads data died"):
        find_results(predictor, index, workers=1)


def test_a_stage_whose_loader_process_was_killed_may_be_started_again(monkeypatch, capsys):
    def main(params, args):
        raise LostWorkerError("a process that loads data died")

    monkeypatch.setattr("stages.project.command.log_to_stderr", lambda **_: None)
    monkeypatch.setattr("stages.project.command.params_module.load", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="75"):
            run_stage(main, arguments=[])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "error: a process that loads data died\n"


def test_other_device_errors_are_not_taken_for_out_of_memory(index, tmp_path):
    run = trainer(index, tmp_path, parameters())

    def broken(images):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    run.model.raw = broken  # type: ignore[method-assign]
    run.model.forward = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="cuDNN"):
        run.fit()


# Disk -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_up_to(size: int):
    """No process of ours can write a larger file: the nearest to a full disk that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def state(value: float, size: int = 3) -> TrainingState:
    return TrainingState({"model.a": torch.full((size,), value)}, {"position": {"epoch": value, "finished": False}})


def test_a_state_that_cannot_be_written_leaves_the_previous_one(tmp_path):
    folder = StateFolder(tmp_path, {})
    folder.save(state(1), 1)
    with (
        files_up_to(64 * 1024),
        pytest.raises(TrainingError, match=r"refuses files of 2 MiB.*state before it is intact"),
    ):
        folder.save(state(2, 250_000), 2)
    assert folder.newest().values["position"]["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state-000000001.safetensors"]


def test_weights_that_cannot_be_written_leave_the_previous_ones(tmp_path):
    model, path = small_detector(), tmp_path / "best.safetensors"
    save_checkpoint(path, model, metadata_of(model, run="old"))
    with (
        files_up_to(16 * 1024),
        pytest.raises(ModelError, match=r"best\.safetensors: the weights could not be written"),
    ):
        save_checkpoint(path, model, metadata_of(model, run="new"))
    assert load_checkpoint(path)[1].extra == {"run": "old"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "the disk is full; free at least 5 MiB"),
        (ValueError("I/O error: No space left on device (os error 28)"), "the disk is full; free at least 5 MiB"),
        (OSError(122, "Disk quota exceeded"), "the disk is full; free at least 5 MiB"),
        (OSError(27, "File too large"), r"refuses files of 5 MiB; raise the limit"),
        (OSError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_causes_of_a_failed_write_give_different_errors(error, says):
    assert says in why_not_written(error, 5 * 2**20)


def test_a_kill_inside_a_save_leaves_the_state_before(tmp_path, monkeypatch):
    folder = StateFolder(tmp_path, {})
    folder.save(state(1), 1)

    def die(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        os.truncate(path, Path(path).stat().st_size // 2)
        os._exit(9)

    child = os.fork()
    if child == 0:  # what follows happens in another process, which ends as after kill -9: nothing is cleaned up
        monkeypatch.setattr("yolov7.train.state.save_file", die)
        folder.save(state(2), 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(tmp_path.iterdir())) == 2
    assert folder.newest().values["position"]["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1


# Resume ---------------------------------------------------------------------------------------------------------------


def in_pieces(index: Index, folder: Path, params, batches: int, **more):
    """Stop after every `batches` batches and resume with a new trainer; returns outcome, trainer and pieces."""
    for piece in range(1, 100):
        goal = max(newest_iteration(folder), 0) + batches
        run = trainer(index, folder, params, **more)
        run.stop = lambda run=run, goal=goal: run.position.iteration >= goal
        outcome = run.fit()
        if outcome.finished:
            return outcome, run, piece
    raise AssertionError("the training does not come to its end")


@pytest.mark.parametrize(
    ("over", "batches"),
    [
        ({"evaluate_every": 3}, 1),
        ({"multi_scale": True, "augment": {"close_mosaic_epochs": 1, "mixup": 0.5}}, 2),
        # On a CPU this is slow and of no use but to have a loss scale, which grows and must be saved.
        ({"precision": "float16", "epochs": 2, "evaluate_every": 2}, 1),
    ],
    ids=["every batch", "multi-scale", "loss scale"],
)
def test_a_run_in_pieces_ends_with_the_bits_of_a_whole_one(index, tmp_path, monkeypatch, over, batches):
    def quick_scaler(device, dtype):
        enabled = dtype is torch.float16
        return torch.amp.GradScaler(device.type, enabled=enabled, init_scale=4.0, growth_interval=2)

    monkeypatch.setattr("yolov7.train.learner.gradient_scaler", quick_scaler)
    params = parameters(optimizer={"nominal_batch": 4, "warmup_iterations": 3, "warmup_epochs": 0}, **over)
    straight = trainer(index, tmp_path / "straight", params)
    whole = straight.fit()
    (tmp_path / "pieces").mkdir()
    outcome, run, pieces = in_pieces(index, tmp_path / "pieces", params, batches)
    assert pieces > 2
    assert same_outcome(outcome, whole)
    ours, theirs = run.states.newest(), straight.states.newest()
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    assert ours.values["scaler"] == theirs.values["scaler"]
    if params.precision == "float16":
        assert run.learner.scaler.get_scale() > 4
    assert ours.values["ema_updates"] == theirs.values["ema_updates"] > 0


@pytest.mark.parametrize(("old", "new"), [(1024.0, None), (None, 1024.0), (1024.0, 4.0)])
def test_summed_gradients_follow_the_loss_scale_to_another_precision(old, new):
    def scaler(scale):
        return torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)

    def parts():
        model = torch.nn.Conv2d(2, 3, 1)
        return model, AveragedModel(model, Ema()), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    saved, then = parts(), scaler(old)
    then.scale(saved[0](torch.ones(1, 2, 4, 4)).sum()).backward()
    tensors, values = snapshot(*saved, then)
    again, now = parts(), scaler(new)
    restore(TrainingState({name: tensor.clone() for name, tensor in tensors.items()}, values), *again, now)
    # A state knows its own scale, and an enabled scaler takes that over.
    assert now.get_scale() == (1.0 if new is None else old or new)
    for scaling, (_, _, optimizer) in ((then, saved), (now, again)):
        scaling.scale(torch.ones(()))  # a scaler begins with its first loss
        scaling.unscale_(optimizer)
    for ours, theirs in zip(again[0].parameters(), saved[0].parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_request_to_stop_at_the_end_of_an_epoch_does_not_wait_for_the_evaluation(index, tmp_path, monkeypatch):
    params = parameters(epochs=1)
    whole = trainer(index, tmp_path / "straight", params).fit()
    run = trainer(index, tmp_path / "pieces", params)
    run.stop = lambda: run.position.batch == run.schedule.batches_per_epoch
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_evaluate", lambda self: pytest.fail("evaluated"))
        assert not run.fit().finished
    assert (run.position.epoch, run.position.batch) == (0, 3)
    assert same_outcome(trainer(index, tmp_path / "pieces", params).fit(), whole)


def test_a_request_to_stop_within_an_evaluation_ends_it_and_keeps_the_epoch(index, tmp_path, monkeypatch):
    decoded, seen = TorchRuntime.decoded, []
    monkeypatch.setattr(
        TorchRuntime, "decoded", lambda self, images: (seen.append(len(images)), decoded(self, images))[1]
    )
    params = parameters(epochs=1)
    whole = trainer(index, tmp_path / "straight", params).fit()
    assert seen == [2, 2, 2]
    seen.clear()
    first = trainer(index, tmp_path / "pieces", params, stop=lambda: bool(seen)).fit()
    assert (first.finished, seen) == (False, [2])
    second = trainer(index, tmp_path / "pieces", params)
    monkeypatch.setattr(second, "_step", lambda batch: pytest.fail("trained again"))
    assert same_outcome(second.fit(), whole)


def test_an_evaluation_that_fails_costs_nothing_of_its_epoch(index, tmp_path, monkeypatch):
    params = parameters(epochs=2, checkpoint_minutes=1e-9)
    whole = trainer(index, tmp_path / "straight", params).fit()
    run = trainer(index, tmp_path / "run", params)
    with monkeypatch.context() as patch:
        patch.setattr("yolov7.train.validation.find_results", lambda *a, **k: pytest.fail("an image is broken"))
        with pytest.raises(pytest.fail.Exception):
            run.fit()
    state = run.states.newest()
    assert (state.values["position"]["epoch"], state.values["position"]["batch"]) == (0, 3)
    assert same_outcome(trainer(index, tmp_path / "run", params).fit(), whole)


def test_patience_keeps_counting_across_a_stop(index, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Trainer, "_evaluate", lambda self: dict.fromkeys(("AP", "AP50", "AP75"), 0.5 - self.position.epoch)
    )
    params = parameters(epochs=9, patience=2)
    whole = trainer(index, tmp_path / "straight", params).fit()
    outcome, _, pieces = in_pieces(index, tmp_path / "pieces", params, 4)
    assert pieces > 1
    assert len(outcome.history) == len(whole.history) == 3
    assert (outcome.best_epoch, outcome.best_ap) == (0, 0.5)


def test_equal_seeds_give_equal_runs_and_different_ones_differ(index, tmp_path):
    runs = [
        trainer(index, tmp_path / name, parameters(seed=seed, epochs=1)).fit()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert same_outcome(runs[0], runs[1])
    assert not same_weights(runs[0].last, runs[2].last)


def identity(data: str = "d", **train) -> dict:
    return {"variant": "v", "data": data, "train": {"epochs": 300, **train}}


def test_changed_parameters_do_not_leave_a_stopped_training_behind_unnoticed(tmp_path):
    old = StateFolder(tmp_path / "old", identity())
    new = StateFolder(tmp_path / "new", identity(epochs=100))
    refuse_changed("v", new)
    old.save(state(1), 1)
    with pytest.raises(TrainingError, match=r"old: .*\(train\.epochs: was 300, is now 100\); .*--fresh"):
        refuse_changed("v", new)
    refuse_changed("v", old)
    refuse_changed("v", StateFolder(tmp_path / "new", identity(data="other", epochs=100)))
    new.save(state(1), 1)  # as `--fresh` leaves it
    refuse_changed("v", new)
    new.clear()
    old.save(TrainingState({}, {"position": {"finished": True}}), 2)
    refuse_changed("v", new)


def test_a_training_stopped_before_variants_had_recipes_is_explained_and_resumes_with_p5(tmp_path):
    def identity_with(given: dict[str, str], recipe: str) -> dict:
        return run_identity("yolov7-tiny", train_parameters(given, recipe=recipe), {"sha256": "d"}, None)

    before, now = identity_with({}, "p5"), identity_with({}, recipe_of("yolov7-tiny"))
    StateFolder(tmp_path / "old", before).save(state(1), 1)
    expected = r"train\.loss\.classification: was 0\.3, is now 0\.5; .*an upgrade changed defaults: docs/operations\.md"
    with pytest.raises(TrainingError, match=expected):
        refuse_changed("yolov7-tiny", StateFolder(tmp_path / "new", now))
    assert identity_with({"preset": "p5"}, recipe_of("yolov7-tiny")) == before


def test_a_training_finished_under_other_code_is_not_reused(tmp_path, caplog):
    def prepare(states: StateFolder) -> bool:
        return TrainingRun("v", Train(), {}, states, None, "experiment").prepare(fresh=False)

    caplog.set_level("INFO")
    old = StateFolder(tmp_path / "run", identity(), code="one")
    new = StateFolder(tmp_path / "run", identity(), code="two")
    old.save(TrainingState({}, {"position": {"finished": False}}), 1)
    assert prepare(old) is False and not caplog.messages
    assert prepare(new) is False, "what was stopped goes on, with the mistake mended, say"
    assert "the code has changed since the last state" in caplog.text and "--variant v --fresh" in caplog.text
    old.save(TrainingState({}, {"position": {"finished": True}}), 2)
    assert prepare(old) is False
    unknown = StateFolder(tmp_path / "run", identity())
    assert prepare(unknown) is False and unknown.newest() is not None
    assert prepare(new) is True
    assert "it is trained again" in caplog.text and new.last() is None
