"""Several trackers at once: each one's files, read back, are metrics.jsonl; none can stop a run."""

import math
from pathlib import Path
from typing import Any

import pytest
from test_tracking import ROW, VALIDATION, drive

from rlhf_cli.cli import dispatch
from rlhf_cli.config.compose import plan
from rlhf_cli.config.errors import UserError
from rlhf_cli.tracking.guarded import Guarded
from rlhf_cli.tracking.jsonl import read_jsonl
from rlhf_cli.tracking.tensorboard_tracker import TensorboardTracker
from rlhf_cli.tracking.trackers import Trackers, make_trackers

Points = dict[tuple[str, int], float]
OPTIONS: dict[str, Any] = {"project": "of-a-test", "entity": None, "name": "one", "group": None, "run_id": None}
CONFIG = {"seed": 7, "algo": {"beta": 0.05}, "hf_token": "secret"}


def followed(folder: Path, name: str) -> Points:
    """Drive this tracker beside the others; what metrics.jsonl holds."""
    trackers = make_trackers([name], folder, CONFIG, steps=3, resume_step=None, **OPTIONS)
    drive(trackers)
    trackers.finish("done")
    return truth(folder)


def truth(folder: Path) -> Points:
    return {
        (key, row["step"]): value
        for row in read_jsonl(folder / "metrics.jsonl")
        for key, value in row.items()
        if key != "step"
    }


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    found.Reload()
    return found


def scalars(found: Any) -> Points:
    return {(tag, e.step): e.value for tag in found.Tags()["scalars"] for e in found.Scalars(tag)}


def same(points: Points, expected: Points) -> None:
    assert points.keys() == expected.keys()
    assert all(math.isclose(points[key], expected[key], rel_tol=1e-6) for key in expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    expected = followed(tmp_path, "tensorboard")
    found = events(tmp_path)
    same(scalars(found), expected)
    texts = found.Tensors("samples/text_summary")
    assert [text.step for text in texts] == [0, 3]
    table = texts[0].tensor_proto.string_val[0].decode()
    assert "Review: It was" in table
    assert "[bold]" not in table  # markup of a model's is escaped
    held = str(found.summary_metadata["_hparams_/session_start_info"])
    assert "algo.beta" in held
    assert "secret" not in held


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_resumed_run_purges_what_tensorboard_had_later(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = make_trackers(["tensorboard"], tmp_path, CONFIG, steps=3, resume_step=None, **OPTIONS)
    drive(first)
    first.log(4, {"train/score": 9.0})
    first.finish("interrupted")
    second = make_trackers(["tensorboard"], tmp_path, CONFIG, steps=3, resume_step=1, **OPTIONS)
    drive(second, start=2)
    second.finish("done")
    same(scalars(events(tmp_path)), truth(tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_trackio_holds_what_metrics_jsonl_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    import sqlite3

    expected = followed(tmp_path, "trackio")
    (database,) = (tmp_path / "trackio").glob("*of-a-test*.db")
    import json

    rows = sqlite3.connect(database).execute("select step, metrics from metrics order by step").fetchall()
    found = {
        (key, step): value
        for step, metrics in rows
        for key, value in json.loads(metrics).items()
        if isinstance(value, float)
    }
    same(found, expected)
    assert [step for step, metrics in rows if "samples" in json.loads(metrics)] == [0, 3]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_what_metrics_jsonl_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    expected = followed(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("of-a-test").experiment_id])
    found = {
        (metric.key, metric.step): metric.value
        for key in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, key)
    }
    same(found, expected)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "7", "algo.beta": "0.05"}
    assert len(client.list_artifacts(run.info.run_id, "samples")) == 2
    resumed = make_trackers(["mlflow"], tmp_path, {}, steps=4, resume_step=3, **OPTIONS)
    resumed.log(4, {"train/score": 0.75})
    resumed.finish("done")
    (again,) = client.search_runs([run.info.experiment_id])
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert again.data.metrics["train/score"] == 0.75


class Broken:
    """A tracker that fails in one method."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.fail("construction")

    def fail(self, method: str) -> None:
        if method == self.method:
            raise RuntimeError("no disk")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.fail("log")

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.fail("samples")

    def message(self, text: str) -> None:
        pass

    def alert(self, title: str, text: str) -> None:
        self.fail("alert")

    def finish(self, state: str) -> None:
        self.fail("finish")


@pytest.mark.parametrize("method", ["construction", "log", "samples", "alert", "finish"])
def test_a_tracker_that_breaks_is_one_line(method: str) -> None:
    said: list[str] = []
    trackers = Trackers([Guarded("Mine", lambda: Broken(method), said.append)])
    drive(trackers)
    trackers.alert("a", "b")
    trackers.finish("done")
    assert said == ["Mine is off (RuntimeError: no disk); metrics.jsonl holds everything"]


def test_a_package_that_is_not_there_names_its_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "mlflow", None)
        trackers = make_trackers(["mlflow"], tmp_path, {}, steps=3, resume_step=None, **OPTIONS)
        trackers.log(0, VALIDATION)
        trackers.finish("done")
    assert "pip install 'rlhf[mlflow]'" in capsys.readouterr().out
    assert truth(tmp_path)[("val/score", 0)] == VALIDATION["val/score"]


def test_one_name_or_a_list() -> None:
    def names(word: str) -> list[str]:
        return list(plan("train", ["scale=mini", word], multirun=False, config_dir=None).jobs[0].tracking.to)

    assert names("tracking=none") == []
    assert names("tracking=wandb") == ["wandb"]
    assert names("tracking=[tensorboard,offline,mlflow]") == ["tensorboard", "offline", "mlflow"]
    with pytest.raises(UserError, match="are the same tracker"):
        names("tracking=[wandb,offline]")
    assert dispatch(["train", "tracking=[wandb,tensorbord]", "--cfg", "job"]) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_alert_has_its_text(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = TensorboardTracker(tmp_path, {}, resume_step=None)
    tracker.samples(1, [ROW])
    tracker.alert("reward hacking", "from step 3")
    tracker.finish("failed")
    assert b"from step 3" in events(tmp_path).Tensors("alerts/text_summary")[0].tensor_proto.string_val[0]
