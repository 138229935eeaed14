"""The MLflow journal: nothing is lost while the server is away, and everything arrives once, in order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from stages.registry.address import tracking_uri
from stages.registry.journal import RunJournal, flush, journal_lock
from stages.registry.server import ensure_database, metric_name, parameter_names


@pytest.fixture
def workspace(tmp_path, monkeypatch, new_database):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    return tmp_path


def journal(**over) -> RunJournal:
    return RunJournal(Path(".state/mlflow/a.jsonl"), **{"experiment": "digits", "run_name": "tiny", **over})


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(tracking_uri=tracking_uri())
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_a_run_arrives_whole_in_a_fresh_database(workspace):
    run = journal()
    run.parameters({"optimizer": {"lr": 0.1, "name": "sgd"}, "epochs": 3})
    run.tags({"git_revision": "abc"})
    for step in range(3):
        run.metrics({"val/AP": step / 10}, step=step)
    (workspace / "history.csv").write_text("epoch\n")
    run.artifact(workspace / "history.csv", "curves")
    assert run.finish()
    client = mlflow.MlflowClient(tracking_uri=tracking_uri())
    found = client.get_run(run.run_id)
    assert found.data.params == {"optimizer.lr": "0.1", "optimizer.name": "sgd", "epochs": "3"}
    assert found.data.tags["git_revision"] == "abc"
    assert found.info.status == "FINISHED"
    assert history(run.run_id, "val/AP") == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert [item.path for item in client.list_artifacts(run.run_id, "curves")] == ["curves/history.csv"]
    assert (workspace / "mlartifacts").is_dir()


def test_an_unreachable_server_delays_but_loses_nothing(workspace, monkeypatch):
    # Port 9 of the loopback: no server listens, the connection is refused at once.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = journal()
    run.parameters({"epochs": 2})
    run.metrics({"loss": 2.0}, step=0)
    run.metrics({"loss": 1.0}, step=1)
    assert not run.finish()
    assert (run.run_id, run.due) == (None, 4)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert flush() == 0
    later = journal()
    assert later.due == 0
    assert history(later.run_id, "loss") == [(0, 2.0), (1, 1.0)]


def test_a_resumed_run_continues_in_the_same_mlflow_run(workspace):
    first = journal()
    first.metrics({"loss": 2.0}, step=0)
    again = journal()
    again.metrics({"loss": 1.0}, step=1)
    again.finish()
    assert again.run_id == first.run_id
    assert history(first.run_id, "loss") == [(0, 2.0), (1, 1.0)]
    assert again.ended
    again.reopen()
    status = mlflow.MlflowClient(tracking_uri=tracking_uri()).get_run(first.run_id).info.status
    assert status == "RUNNING"
    assert journal(fresh=True).run_id is None


def test_a_torn_last_line_is_dropped_and_the_rest_kept(workspace):
    run = journal()
    run.metrics({"loss": 2.0}, step=0)
    with run.path.open("a") as file:
        file.write('{"kind": "metr')
    again = journal()
    assert again.due == 0
    again.metrics({"loss": 1.0}, step=1)
    assert [json.loads(line)["step"] for line in run.path.read_text().splitlines()] == [0, 1]
    assert history(run.run_id, "loss") == [(0, 2.0), (1, 1.0)]


def test_an_emptied_server_gets_the_whole_run_again(workspace, monkeypatch, new_database):
    run = journal()
    run.metrics({"loss": 2.0}, step=0)
    shutil.copyfile(new_database, workspace / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'other.db'}")
    again = journal()
    again.metrics({"loss": 1.0}, step=1)
    assert history(again.run_id, "loss") == [(0, 2.0), (1, 1.0)]


def test_a_record_the_server_refuses_does_not_block_the_rest(workspace, caplog):
    run = journal()
    run.parameters({"epochs": 2})
    run.parameters({"epochs": 3})
    run.metrics({"loss": 1.0}, step=0)
    assert run.due == 0
    assert "refused" in caplog.text
    assert history(run.run_id, "loss") == [(0, 1.0)]


def test_an_artifact_outlives_its_folder(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = journal()
    for name in ("one", "two"):
        (workspace / name).mkdir()
        (workspace / name / "best.txt").write_text(name)
        run.artifact(workspace / name / "best.txt", name)
    assert not run.finish()
    shutil.rmtree(workspace / "one")  # as a worktree goes after its training
    (workspace / "two/best.txt").unlink()  # as the next training replaces it
    (workspace / "two/best.txt").write_text("another")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert flush() == 0
    run_id = journal().run_id
    client = mlflow.MlflowClient(tracking_uri=tracking_uri())
    for name in ("one", "two"):
        assert Path(client.download_artifacts(run_id, f"{name}/best.txt")).read_text() == name
    assert not list(workspace.glob(".state/mlflow/a.files/*")), "kept no longer than needed"


def test_a_journal_that_its_training_writes_is_left_to_it(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    path = Path(".state/mlflow/a.jsonl")
    with journal_lock(path) as mine:
        assert mine
        run = journal()
        run.metrics({"loss": 2.0}, step=0)
        with path.open("a") as file:
            file.write('{"kind": "metr')  # half of a line, just being written
        before = path.read_bytes()
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        assert flush() == 0
        assert path.read_bytes() == before and run.run_id is None
    assert flush() == 0
    assert history(journal().run_id, "loss") == [(0, 2.0)]


def test_records_after_lost_ones_are_delivered(workspace):
    run = journal()
    for step in range(3):
        run.metrics({"loss": 3.0 - step}, step=step)
    first = run.path.read_text().splitlines(keepends=True)[0]
    run.path.write_text(first)  # an older copy of the journal than of its head, from a machine that is lost
    again = journal()
    assert again.due == 0 and again.deliver(force=True)
    again.metrics({"loss": 0.5}, step=3)
    assert history(again.run_id, "loss")[-1] == (3, 0.5)


def test_a_local_database_has_its_artifacts_beside_it_wherever_the_training_works(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    (workspace / "worktree").mkdir()
    monkeypatch.chdir(workspace / "worktree")
    (workspace / "curve.csv").write_text("1")
    run = journal()
    run.artifact(workspace / "curve.csv")
    assert run.finish()
    assert list((workspace / "mlartifacts").rglob("curve.csv"))
    assert not (workspace / "worktree/mlartifacts").exists()


def test_a_database_is_made_once_by_many(workspace, new_database):
    """Three threads of every test process have asked for `new_database` at the same time."""
    before = new_database.read_bytes()
    ensure_database(f"sqlite:///{new_database}")
    assert new_database.read_bytes() == before
    assert mlflow.MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}").search_experiments()
    assert not list(new_database.parent.glob(f".{new_database.name}*"))


def test_metric_names_are_made_fit_for_mlflow():
    assert metric_name("AP@[.5:.95]/person") == "AP__.5_.95_/person"


def test_classes_may_be_called_anything(tmp_path, monkeypatch, new_database):
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    names = ["a?b", "a!b", "a_b", "狗", "x" * 300, "x" * 301, "a//b", "../a", "a/", "..", "e\u0301", "=cmd|x", ""]
    journal = RunJournal(tmp_path / "j.jsonl", experiment="names", run_name="n")
    journal.parameters({"epochs": 1, "class_weights": {name: number for number, name in enumerate(names)}})
    assert journal.due == 0
    params = mlflow.MlflowClient(tracking_uri=uri).get_run(journal.run_id).data.params
    assert params.pop("epochs") == "1"
    assert sorted(map(int, params.values())) == list(range(len(names)))
    assert params["class_weights.a_b"] == "2"


def test_names_of_parameters_stay_different():
    assert parameter_names(["a?", "a_", "a!"]) == {"a_": "a_", "a!": "a__2", "a?": "a__3"}
    assert metric_name("val//AP") == "val__AP"
