"""Two processes train as one does: the same losses, weights and figures, and one mind about what comes next."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
import torch
from distributed_worker import SHORT, TAUGHT, find, normalize, train
from safetensors.torch import load_file
from small_detector import small_detector
from small_training import training_data

from yolov7.errors import ConfigError
from yolov7.train.distributed import Processes, join_processes, local_rank, share_of_batch
from yolov7.train.launch import launch

WORKER = Path(distributed_worker.__file__)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight images with objects that the detector may learn."""
    base = tmp_path_factory.mktemp("distributed")
    training_data(base, 8)
    return base


@pytest.fixture(scope="module")
def statuses(folder) -> list[list[int]]:
    """Exit statuses of both processes, scenario by scenario."""
    subprocess.run([sys.executable, str(WORKER), str(folder)], check=True)
    return json.loads((folder / "statuses.json").read_text())


def told(scenario: str, folder: Path) -> list[dict]:
    return [json.loads((folder / f"{scenario}-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two(folder, statuses) -> list[dict]:
    """Results of two processes."""
    assert statuses[0] == [0, 0]
    return told("everything", folder)


@pytest.fixture(scope="module")
def one(folder) -> dict:
    """Result of one process in the same training."""
    return train(folder, folder / "alone", Processes())


@pytest.fixture(scope="module")
def one_aligned(folder) -> dict:
    """The same for YOLOv9 with an auxiliary branch."""
    return train(folder, folder / "alone-aligned", Processes(), aligned=True, params=SHORT)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("weights-*.safetensors")
    return load_file(path)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_curve_is_that_of_one_process_with_the_whole_batch(one, two):
    found = two[0]["synchronized"]["curve"]
    assert len(found) == len(one["curve"]) == 10
    for ours, alone in zip(found, one["curve"], strict=True):
        # The sums run in another order: float32 differs in the sixth digit, and ten steps carry that on (4e-6 seen).
        assert ours == pytest.approx(alone, rel=5e-5)


def test_weights_and_figures_are_those_of_one_process(folder, one, two):
    ours, alone = weights(folder / "rank-0/synchronized"), weights(folder / "alone")
    for name, tensor in alone.items():
        assert torch.allclose(ours[name], tensor, rtol=1e-4, atol=2e-5), name
    last, alone_last = two[0]["synchronized"]["history"][-1], one["history"][-1]
    assert 0 < last["val/AP"] == pytest.approx(alone_last["val/AP"], abs=0.02)


def test_two_processes_train_a_yolov9_as_one_does(folder, one_aligned, two):
    """Both heads divide by the target scores of all processes, and find the images' boxes in their own."""
    differences = []
    for ours, alone in zip(two[0]["aligned"]["curve"], one_aligned["curve"], strict=True):
        assert ours == pytest.approx(alone, rel=1e-3)
        differences.append(max(abs(ours[part] / alone[part] - 1) for part in alone))
    # Where rounding decides which cell an object chooses, a step differs by 2e-4; the others by 1e-5 (both seen).
    assert statistics.median(differences) < 5e-5
    trained, alone = weights(folder / "rank-0/aligned"), weights(folder / "alone-aligned")
    for name, tensor in alone.items():
        assert torch.allclose(trained[name], tensor, rtol=1e-3, atol=1e-4), name
    assert same(trained, weights(folder / "rank-1/aligned"))


def test_two_processes_learn_from_a_teacher_as_one_does(folder, two):
    """The teacher has the statistics of the whole batch, and the terms are means over all matches and images."""
    alone = train(folder, folder / "alone-taught", Processes(), **TAUGHT)
    assert len(alone["curve"]) == 4 and all(losses["distill_classification"] > 0 for losses in alone["curve"])
    for ours, theirs in zip(two[0]["taught"]["curve"], alone["curve"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    trained, wanted = weights(folder / "rank-0/taught"), weights(folder / "alone-taught")
    for name, tensor in wanted.items():
        assert torch.allclose(trained[name], tensor, rtol=1e-3, atol=1e-4), name
    assert same(trained, weights(folder / "rank-1/taught"))


@pytest.mark.parametrize(("kind", "steps"), [("synchronized", 10), ("plain", 6)])
def test_processes_stay_equal_to_the_last_bit_and_one_alone_writes(folder, two, kind, steps):
    assert same(weights(folder / f"rank-0/{kind}"), weights(folder / f"rank-1/{kind}"))
    assert two[0][kind]["history"][-1]["val/AP"] == two[1][kind]["history"][-1]["val/AP"]
    names = {path.name for path in (folder / f"rank-0/{kind}").iterdir()}
    assert {"best.safetensors", "last.safetensors", f"state-{steps:09}.safetensors"} <= names
    assert [path.name for path in (folder / f"rank-1/{kind}").iterdir()] == ["weights-1.safetensors"]


def test_without_synchronised_norms_the_statistics_are_those_of_all_images(folder, two):
    del two
    trained, start = weights(folder / "rank-0/plain"), small_detector().state_dict()
    means = [name for name in start if name.endswith("running_mean")]
    assert all(not torch.equal(trained[f"model.{name}"], start[name]) for name in means)
    assert not same(trained, weights(folder / "rank-0/synchronized"))


def test_a_stop_requested_of_one_process_stops_all_and_resumes_bit_for_bit(folder, two):
    first, second = ([process["resumed"][part] for process in two] for part in ("first", "second"))
    # In the middle of an accumulation window.
    assert [part["iteration"] for part in first] == [3, 3]
    assert [part["finished"] for part in first] == [False, False]
    assert [part["iteration"] for part in second] == [10, 10]
    assert same(weights(folder / "rank-0/resumed"), weights(folder / "rank-0/synchronized"))
    assert same(weights(folder / "rank-1/resumed"), weights(folder / "rank-0/synchronized"))


def test_a_loss_that_is_not_finite_on_one_is_skipped_by_all(two):
    first, second = (process["broken"] for process in two)
    assert first == second
    assert first["skipped"] == 1


def test_evaluation_looks_at_every_image_once(folder, two):
    alone = find(folder, Processes())

    def in_order(results):
        return sorted(results, key=lambda r: (r["image_id"], r["category_id"], -r["score"], r["bbox"]))

    assert len({result["image_id"] for result in alone}) == 8
    # Batches are the same ones, only dealt out: not a bit may differ.
    assert in_order(two[0]["results"]) == in_order(alone)
    assert two[1]["results"] == []


def test_a_compiled_network_has_the_same_curve_and_weights_of_the_same_names(folder, one, monkeypatch):
    # Traced but not made into machine code, which takes a minute: what could break is the tracing.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    compiled = train(folder, folder / "compiled", Processes(), params={"compile": True})
    for ours, plain in zip(compiled["curve"], one["curve"], strict=True):
        assert ours == pytest.approx(plain, rel=5e-5)
    assert weights(folder / "compiled").keys() == weights(folder / "alone").keys()


def test_norms_see_the_images_of_all_processes(two):
    alone, ours = normalize(Processes()), two[0]["norm"]
    for name in ("y", "x"):
        assert torch.allclose(torch.tensor(ours[name]), torch.tensor(alone[name]), rtol=1e-5, atol=1e-5), name
    for name in ("weight", "bias", "mean", "variance"):
        assert ours[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-5), name
    assert ours["mean"] == two[1]["norm"]["mean"]
    assert ours["batches"] == 1
    assert ours["evaluation"] == 0.0


def test_an_error_of_the_first_is_raised_by_all(two):
    assert [process["error"] for process in two] == ["the disk is full"] * 2


def test_after_a_kill_all_start_again_and_end_with_the_same_bits(folder, statuses, two):
    del two
    # The one that was left loses its partner in the middle of a message, and ends too: torchrun starts both again.
    assert statuses[1:] == [[1, -signal.SIGKILL], [0, 0]]
    assert [process["finished"] for process in told("dies", folder)] == [True, True]
    first, second = (load_file(folder / name / "last.safetensors") for name in ("restarted", "rank-0/synchronized"))
    assert same(first, second)


def test_a_batch_that_does_not_divide_is_refused():
    assert share_of_batch(12, 3) == 4
    with pytest.raises(ConfigError, match=r"16 images cannot be divided among 3 processes; use 15 or 18"):
        share_of_batch(16, 3)
    with pytest.raises(ConfigError, match=r"2 images cannot be divided among 3 processes; use 3"):
        share_of_batch(2, 3)


def test_alone_nothing_of_torch_distributed_is_started(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_processes(torch.device("cpu")) as alone:
        assert (alone.rank, alone.world_size, alone.main, local_rank()) == (0, 1, True, None)
        assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(ConfigError, match=r"not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        join_processes(torch.device("cpu")),
    ):
        pass


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((0, 75), 75), ((2, None), 2), ((1, None), 1)])
def test_exit_statuses_come_through(codes, expected):
    # None: a process that would continue, and is ended because the other one has failed.
    program = f"import os, sys, time; code = {codes}[int(os.environ['RANK'])]; code is None and time.sleep(300)"
    assert launch(["-c", f"{program}; sys.exit(code)"], processes=2) == expected


def test_after_a_failure_all_are_started_again_and_find_each_other(monkeypatch):
    program = """
import os, signal, torch
from yolov7.train.distributed import join_processes
with join_processes(torch.device("cpu")) as processes:
    assert processes.sum(torch.ones(1)) == 2
    if processes.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    processes.wait()
"""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    assert launch(["-c", program], processes=2, restarts=1) == 0


def test_two_machines_may_count_different_numbers_of_restarts(tmp_path):
    """Torch counts restarts for each machine, and not those that another one asked for: 0 here may be 1 there."""
    program = f"""
import os, pathlib, signal, torch
from yolov7.train.distributed import join_processes
count = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
os.environ["TORCHELASTIC_RESTART_COUNT"] = str(count + int(os.environ["COUNTS_OTHERWISE"]))
again, me = pathlib.Path({str(tmp_path)!r}, "again"), pathlib.Path({str(tmp_path)!r}, "node-" + os.environ["NODE"])
with join_processes(torch.device("cpu")) as processes:
    assert processes.sum(torch.ones(1)) == 2
    if processes.rank == 1 and not again.exists():
        again.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    processes.wait()
    me.write_text(str(processes.sum(torch.ones(1)).item()))
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{free.getsockname()[1]}"
    start = (
        "import sys; from yolov7.train.launch import launch;"
        f"sys.exit(launch(['-c', {program!r}], processes=1, nodes=2, rendezvous={rendezvous!r}, restarts=3))"
    )
    nodes = [
        subprocess.Popen([sys.executable, "-c", start], env={**os.environ, "NODE": node, "COUNTS_OTHERWISE": node})
        for node in ("0", "1")
    ]
    try:
        assert [node.wait(240) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    assert [(tmp_path / f"node-{node}").read_text() for node in (0, 1)] == ["2.0", "2.0"]


def test_a_request_to_stop_reaches_every_process_and_is_waited_for(tmp_path):
    program = f"""
import os, pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.5)
    pathlib.Path({str(tmp_path)!r}, "saved-" + os.environ["RANK"]).touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
if os.environ["RANK"] == "0":
    while not pathlib.Path({str(tmp_path)!r}, "ready").exists():
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGTERM)
else:
    pathlib.Path({str(tmp_path)!r}, "ready").touch()
time.sleep(100)
"""
    before = signal.getsignal(signal.SIGTERM)
    assert launch(["-c", program], processes=2) == 75
    assert {path.name for path in tmp_path.iterdir()} == {"ready", "saved-0", "saved-1"}
    assert signal.getsignal(signal.SIGTERM) is before


def test_totals_are_summed_as_fractions_and_scalar_parameters_are_averaged(two):
    for told_by in two:
        assert told_by["totals"] == [0.5, 6.0]
        assert told_by["scalar"] == 1.5
