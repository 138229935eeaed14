"""Cost of the machinery around the stages, and its growth with use.

    python benchmarks/pipeline.py stages       stages that do nothing: alone, under DVC, in the flow, with a server
    python benchmarks/pipeline.py repro        `dvc repro` and the flow over all variants when nothing has changed
    python benchmarks/pipeline.py registry     a run's calls to MLflow, on a fresh database and on one long in use
    python benchmarks/pipeline.py schedules    50 scheduled runs in a row: processes, memory and open files afterwards

Everything happens in temporary folders, with servers on loopback. The last takes about 20 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from yolov7.model import list_variants

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the small project and the servers of the tests

DVC = [sys.executable, "-m", "dvc"]
Times = tuple[float, float]
"""Wall and processor seconds, of a command and all it started. On a machine with other work only the second compare."""

# In a process of its own, since Prefect reads its settings when it is imported: the flow as often as argv says, from
# scratch each time, and once more with nothing to do. Prints wall and processor seconds of each.
FLOW = """
import json, logging, os, pathlib, sys, time
from flows.train_variants import train_variants
logging.disable(logging.CRITICAL)
seconds = []
for number in range(int(sys.argv[1]) + 1):
    if number < int(sys.argv[1]):
        pathlib.Path("source.txt").write_text(f"{sys.argv[2]} {number}")
    started, busy = time.perf_counter(), sum(os.times()[:4])
    train_variants(promote_challengers=False)
    seconds.append((time.perf_counter() - started, sum(os.times()[:4]) - busy))
print(json.dumps(seconds))
"""

NOTHING = """
import pathlib, sys
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    count = 30 if name == "data/index" else 3
    names = ["dataset.json", "statistics.json", "results.json", *(f"{one:06d}.jpg" for one in range(count))]
    if name == "data/ingested":
        counts = {"train": 400, "val": 100, "test": 150}
        names = ["dataset.json", *(f"{split}/{one:06d}.jpg" for split in counts for one in range(counts[split]))]
    files = [path] if path.suffix else [path / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{file}\\n")
"""
"""Writes its outputs and nothing else; the folder of data has as many files as the embedded set has images."""


def seconds_of(command: list[str], folder: Path, env: Mapping[str, str]) -> float:
    return times_of(command, folder, env)[0]


def times_of(command: list[str], folder: Path, env: Mapping[str, str]) -> Times:
    started, busy = time.perf_counter(), sum(os.times()[2:4])
    done = subprocess.run(command, cwd=folder, env=dict(env), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - started, sum(os.times()[2:4]) - busy


@contextmanager
def prefect_server(home: Path) -> Iterator[Any]:
    from tests.pipeline.servers import PrefectServer, answers, free_port, loopback_environment, running, wait_for

    port = free_port()
    env = loopback_environment(PREFECT_HOME=str(home), PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="5")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    home.mkdir(parents=True, exist_ok=True)
    url, log = f"http://127.0.0.1:{port}/api", home / "server.log"
    with running(command, log, env=env, cwd=home) as process:
        wait_for("Prefect server", answers(f"{url}/health"), 300, log, process)
        server = PrefectServer(url, home)
        server.process = process
        yield server


def in_process_api(home: Path) -> dict[str, str]:
    from tests.pipeline.servers import loopback_environment

    return loopback_environment(
        PREFECT_HOME=str(home),
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="true",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
    )


def flow_times(folder: Path, env: Mapping[str, str], rounds: int, mark: str) -> list[Times]:
    command = [sys.executable, "-c", FLOW, str(rounds), mark]
    done = subprocess.run(command, cwd=folder, env=dict(env), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return [(wall, busy) for wall, busy in json.loads(done.stdout.splitlines()[-1])]


def both(times: list[Times]) -> str:
    """Medians, as wall seconds with processor seconds in brackets."""
    wall, busy = (statistics.median(one) for one in zip(*times, strict=True))
    return f"{wall:.1f} s ({busy:.1f})"


def report(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(header)} |\n| --- {'| ---: ' * (len(header) - 1)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


# Stages that do nothing ----------------------------------------------------------------------------------------------


def stages(arguments: argparse.Namespace, base: Path) -> None:
    from tests.pipeline.project import configure, make_project
    from tests.pipeline.servers import loopback_environment

    folder, rounds = make_project(base / "project"), arguments.rounds
    configure(folder, list_variants()[:2])
    source, env = folder / "source.txt", loopback_environment()
    commands = [words.split() for words in _commands(folder)]
    stale: dict[str, list[Times]] = {"the commands alone": [], "`dvc repro`": []}
    nothing: dict[str, Times] = {}
    for number in range(rounds):
        source.write_text(f"plain {number}")
        walls, busy = zip(*(times_of(command, folder, env) for command in commands), strict=True)
        stale["the commands alone"].append((sum(walls), sum(busy)))
        source.write_text(f"dvc {number}")
        stale["`dvc repro`"].append(times_of([*DVC, "repro"], folder, env))
    nothing["`dvc repro`"] = times_of([*DVC, "repro"], folder, env)
    # The first makes the database, once in its life; the first run of a process starts the API.
    own = in_process_api(base / "home")
    flow_times(folder, own, 1, "database")
    _, *stale["flow, in-process API"], nothing["flow, in-process API"] = flow_times(folder, own, rounds + 1, "own")
    with prefect_server(base / "server") as server:
        name = "flow, Prefect server (its own time not counted)"
        _, *stale[name], nothing[name] = flow_times(folder, server.environment, rounds + 1, "server")
    alone = statistics.median(busy for _, busy in stale["the commands alone"])
    rows = []
    for name, times in stale.items():
        more = (statistics.median(busy for _, busy in times) - alone) / len(commands)
        row = [name, both(times), f"{more:.2f} s" if more else "", both([nothing[name]]) if name in nothing else ""]
        rows.append(row)
    title = f"{len(commands)} stages of 2 variants that do nothing: wall (processor) seconds, median of {rounds}"
    report(title, ["", "all stages", "more than alone, per stage, processor", "nothing stale"], rows)


def _commands(folder: Path) -> list[str]:
    """The commands of dvc.yaml in order, filled in for the first two variants."""
    documents = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].values()
    lines = []
    for stage in documents:
        variants = list_variants()[:2] if "matrix" in stage else [""]
        lines += [stage["cmd"].replace("${item}", f"--variant {variant}") for variant in variants]
    return lines


# The family when nothing has changed ---------------------------------------------------------------------------------


def repro(arguments: argparse.Namespace, base: Path) -> None:
    from tests.pipeline.servers import loopback_environment

    folder, env = family_project(base / "project"), loopback_environment()
    times_of([*DVC, "repro"], folder, env)
    rounds = range(arguments.rounds)
    plain = [times_of([*DVC, "repro"], folder, env) for _ in rounds]
    status = [times_of([*DVC, "status"], folder, env) for _ in rounds]
    home = in_process_api(base / "home")
    script = "from flows.train_variants import train_variants; train_variants(promote_challengers=False)"
    flow = [times_of([sys.executable, "-c", script], folder, home) for _ in range(arguments.rounds + 1)][1:]
    names = {"`dvc repro`": plain, "`dvc status`": status, "the flow, imports and in-process API included": flow}
    rows = [[name, both(one), both([max(one)])] for name, one in names.items()]
    count = len(list_variants())
    title = f"{count} variants, {3 + 5 * count} stages, nothing stale: wall (processor) seconds"
    report(title, ["", "median", "slowest"], rows)


def family_project(folder: Path) -> Path:
    """The repository's dvc.yaml with its params, deps and outs, all variants, and commands that just write files."""
    from stages.project.command import environment

    folder.mkdir(parents=True)
    for name in ("stages", "yolov7", "validation"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("nothing.py", "datasets/one.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(NOTHING)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values |= {"variants": list_variants(), "per_variant": {name: {} for name in list_variants()}}
    values["flow"]["push"] = False
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for stage in document["stages"].values():
        results = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
        paths = [next(iter(one)) if isinstance(one, dict) else one for one in results]
        stage["cmd"] = f"python nothing.py {' '.join(paths)}"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    for command in (["git", "init", "--quiet"], [*DVC, "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True, env=environment())
    shutil.copyfile(ROOT / ".dvc/config", folder / ".dvc/config")  # no question after a newer DVC
    return folder


# MLflow, fresh and long in use ---------------------------------------------------------------------------------------

NAME = "yolov7-tiny"


def registry(arguments: argparse.Namespace, base: Path) -> None:
    from stages.registry import server
    from tests.pipeline.export_folder import make_export

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    export = make_export(base / "export")
    places = {"fresh": base / "fresh", "filled": base / "filled"}
    for label, place in places.items():
        place.mkdir()
        os.chdir(place)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
        server.connect()
        if label == "filled":
            started = time.perf_counter()
            fill(arguments.versions, arguments.points)
            print(f"filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    addresses = {label: f"sqlite:///{place}/mlflow.db" for label, place in places.items()}
    compare("SQLite file", addresses, places, export, arguments)
    with mlflow_server(places["fresh"]) as fresh, mlflow_server(places["filled"]) as filled:
        compare("server over HTTP", {"fresh": fresh, "filled": filled}, places, export, arguments)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    from tests.pipeline.servers import answers, free_port, loopback_environment, running, wait_for

    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    env = loopback_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with running(command, log, env=env, cwd=folder) as process:
        wait_for("MLflow server", answers(f"http://127.0.0.1:{port}/health"), 300, log, process)
        yield f"http://127.0.0.1:{port}"


def fill(versions: int, points: int) -> None:
    """As many registered versions of one model, each with a run, and as many metric points, spread over the runs."""
    from mlflow.entities import Metric, Param, RunTag

    from stages.registry import server

    client = server.connect()
    experiment = server.experiment_id(client, "yolov7")
    client.create_registered_model(NAME)
    each = points // versions
    for number in range(versions):
        run = client.create_run(experiment, run_name=NAME)
        metrics = [Metric(f"train/{step % 10}", step / 7, 1_700_000_000_000 + step, step // 10) for step in range(each)]
        params = [Param(f"train.option-{option}", str(option)) for option in range(40)]
        tags = [RunTag("journal", f"{number:032x}"), RunTag("fingerprint", f"{number:012x}")]
        client.log_batch(run.info.run_id, metrics=metrics, params=params, tags=tags)
        client.set_terminated(run.info.run_id)
        model = client.create_logged_model(experiment, name="model", source_run_id=run.info.run_id)
        proof = {"manifest_sha256": f"{number:064x}", "artefact_sha256": f"{number:064x}", "AP": "0.500000"}
        origin = {f"origin_{one}": f"{number}" for one in range(9)}
        client.create_model_version(
            NAME, f"models:/{model.model_id}", run.info.run_id, {**proof, **origin}, model_id=model.model_id
        )


def compare(
    where: str, addresses: Mapping[str, str], places: Mapping[str, Path], export: Path, arguments: argparse.Namespace
) -> None:
    from tests.pipeline.export_folder import another

    found: dict[str, list[dict[str, float]]] = {label: [] for label in addresses}
    for number in range(arguments.rounds + 1):
        # In turn, and in another order each time: other load on the machine affects both.
        for label in sorted(addresses, reverse=bool(number % 2)):
            os.environ["MLFLOW_TRACKING_URI"] = addresses[label]
            os.chdir(places[label])
            mark = f"{where}-{label}-{number}".replace(" ", "-")
            one = work(another(places[label] / mark, export, mark), mark)
            if number:  # the first imports and opens
                found[label].append(one)
    rows = []
    for step in [*found["fresh"][0], "all of it"]:
        middle = {
            label: statistics.median(sum(one.values()) if step == "all of it" else one[step] for one in rounds)
            for label, rounds in found.items()
        }
        ratio = middle["filled"] / middle["fresh"]
        rows.append([step, *(f"{1000 * middle[label]:.0f} ms" for label in ("fresh", "filled")), f"{ratio:.2f}"])
    title = f"{where}: {arguments.versions} versions and {arguments.points} metric points, median of {arguments.rounds}"
    report(title, ["", "fresh", "filled", "ratio"], rows)


def work(export: Path, mark: str) -> dict[str, float]:
    """The MLflow calls of one run, by the pipeline's own functions; seconds of each part."""
    from flows.promotion.judge import judge
    from stages.project.params import Promotion
    from stages.registry.journal import RunJournal
    from stages.registry.versions import CHAMPION, ModelRegistry, download_model

    clock = Clock()
    journal = RunJournal(Path(".state/mlflow") / f"{mark}.jsonl", experiment="yolov7", run_name=NAME)
    journal.parameters({"train": {f"option-{number}": number for number in range(60)}})
    journal.tags({"git_revision": mark, "data_sha256": mark, "fingerprint": mark})
    for epoch in range(30):
        journal.metrics({f"train/{number}": epoch / (number + 1) for number in range(10)}, epoch)
    journal.artifact(export / "model.json", "reports")
    assert journal.finish()
    clock.lap("tracking: a run with 30 epochs")
    models = ModelRegistry()
    run_id = models.run_for({"run_id": journal.run_id}, experiment="yolov7", name=NAME)
    measured = {"AP": "0.5", "AP50": "0.9", "test_data_sha256": "d", "evaluation": "e"}
    measured |= {"artefact_verification": "passed", "data_validation": "passed"}
    origin = {"variant": NAME, "git_revision": mark}
    version, _ = models.register(export, name=NAME, run_id=run_id, origin=origin, measured=measured)
    models.log_metrics(run_id, {f"test/{number}": 0.5 for number in range(12)})
    clock.lap("registration")
    assert models.by_manifest(NAME, version.tags["manifest_sha256"]) is not None
    clock.lap("is this artefact registered?")
    judge(models, NAME, rules=Promotion(), compare=_better)
    clock.lap("promotion, without the measurement")
    champion = models.resolve(f"models:/{NAME}@{CHAMPION}")
    assert champion.number == version.number
    clock.lap("champion look-up")
    download_model(champion.uri)
    clock.lap("fetch and verify")
    return clock.seconds


class Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _better(challenger: Any, champion: Any) -> Mapping[str, Any]:
    sides = {
        role: {"AP": ap, "per_class": {"cat": ap}, "latency_ms": 5.0, "size_mb": 1.0, "tags": {"AP": f"{ap}"}}
        for role, ap in (("challenger", 0.6), ("champion", 0.5))
    }
    difference = {"value": 0.1, "low": 0.05, "high": 0.15}
    return {"AP_difference": difference, "objects": {"cat": 90}, "test_data_sha256": "d", **sides}


# Many scheduled runs -------------------------------------------------------------------------------------------------


def schedules(arguments: argparse.Namespace, base: Path) -> None:
    from tests.pipeline.project import configure, make_project
    from tests.pipeline.servers import running, wait_for

    folder = make_project(base / "project")
    configure(folder, list_variants()[:1])
    looks = [count for count in (5, 20, 35, 50, 100, 200) if count < arguments.runs] + [arguments.runs]
    rows = []
    with prefect_server(base / "server") as server:
        deploy(folder, server, arguments.interval)
        worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local", "--name", "benchmark"]
        env = {**server.environment, "PREFECT_WORKER_QUERY_SECONDS": "2"}
        with running(worker, folder / "worker.log", env=env, cwd=folder) as process:
            for look in looks:
                wait_for(f"{look} runs", lambda look=look: runs(server, "COMPLETED") >= look, 7200)
                schedule(server, active=False)
                wait_for("nothing runs", lambda: not runs(server, "RUNNING", "PENDING"), 600)
                time.sleep(15)  # time for processes to end
                done, bad = runs(server, "COMPLETED"), runs(server, "FAILED", "CRASHED")
                rows.append([str(done), str(bad), *(text for one in (server.process, process) for text in size(one))])
                print(rows[-1], file=sys.stderr, flush=True)
                schedule(server, active=True)
    header = ["runs completed", "failed", "server: processes", "memory", "open files"]
    report(f"a run every {arguments.interval} s", [*header, "worker: processes", "memory", "open files"], rows)


def deploy(folder: Path, server: Any, interval: int) -> None:
    """The repository's nightly deployment, every few seconds, on the small project."""
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (nightly,) = (one for one in document["deployments"] if one["name"] == "nightly")
    nightly["schedules"] = [{"interval": interval, "slug": "soon"}]
    nightly["parameters"]["promote_challengers"] = False  # the stages make no real model
    (folder / "prefect.yaml").write_text(yaml.safe_dump(document))
    prefect = [sys.executable, "-m", "prefect"]
    seconds_of([*prefect, "work-pool", "create", "local", "--type", "process"], folder, server.environment)
    seconds_of([*prefect, "--no-prompt", "deploy", "--name", "nightly"], folder, server.environment)


def runs(server: Any, *states: str) -> int:
    wanted = {"flow_runs": {"state": {"type": {"any_": list(states)}}}}
    count: int = server.ask("/flow_runs/count", wanted)
    return count


def schedule(server: Any, *, active: bool) -> None:
    (deployment,) = server.ask("/deployments/filter", {})
    (one,) = deployment["schedules"]
    path = f"/deployments/{deployment['id']}/schedules/{one['id']}"
    server.client.patch(path, json={"active": active}).raise_for_status()


def size(process: subprocess.Popen[bytes]) -> list[str]:
    """Processes with all descendants, their memory together, and their open files."""
    import psutil

    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    memory = sum(one.memory_info().rss for one in family) / 1e6
    return [str(len(family)), f"{memory:.0f} MB", str(sum(one.num_fds() for one in family))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stages", "repro", "registry", "schedules"])
    parser.add_argument("--rounds", type=int, default=3, help="of stages, repro and registry")
    parser.add_argument("--versions", type=int, default=1000, help="registered before `registry` measures")
    parser.add_argument("--points", type=int, default=100_000, help="metric points logged before `registry` measures")
    parser.add_argument("--runs", type=int, default=50, help="of `schedules`")
    parser.add_argument("--interval", type=int, default=20, help="seconds between two runs of `schedules`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        {"stages": stages, "repro": repro, "registry": registry, "schedules": schedules}[arguments.what](
            arguments, Path(folder)
        )
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
