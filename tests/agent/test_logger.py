"""Run directories belong to one run; metrics are whole lines; WandB is never in the way."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from agent.errors import RunDirError, UsageError
from agent.logger import RunLogger, claim_run_dir, locate_run


def _cfg(logdir, **more):
    return {"logdir": str(logdir), "seed": 3, "wandb": None, **more}


def _logger(cfg):
    return RunLogger(cfg["logdir"], cfg, bool(cfg.get("resume")))


def test_rows_are_json_and_not_a_number_is_null(tmp_path):
    logger = _logger(_cfg(tmp_path))
    logger.log(
        "epoch",
        1,
        {"loss": torch.tensor(0.5), "bad": math.nan, "worse": np.float32(np.inf), "n": np.int64(7), "flag": True},
    )
    logger.log("epoch", 2, {"loss": 0.1 + 0.2})
    logger.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"epoch": 1, "loss": 0.5, "bad": None, "worse": None, "n": 7, "flag": 1}
    assert json.loads(lines[1])["loss"] == 0.1 + 0.2  # exactly: rows are compared bit for bit
    assert (tmp_path / "config.yaml").read_text().startswith("logdir:")


def test_a_metric_must_be_a_number(tmp_path):
    logger = _logger(_cfg(tmp_path))
    with pytest.raises(TypeError, match="'name'"):
        logger.log("epoch", 1, {"name": "text"})
    logger.close()


def test_truncate_and_go_on(tmp_path):
    logger = _logger(_cfg(tmp_path))
    for epoch in range(1, 6):
        logger.log("epoch", epoch, {"loss": epoch / 7})
    logger.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 6, "lo')  # cut short by a full disk
    logger = _logger(_cfg(tmp_path, resume=True))
    assert logger.truncate_after("epoch", 3) == 2
    logger.log("epoch", 4, {"loss": 4 / 7})
    assert [row["epoch"] for row in logger.rows()] == [1, 2, 3, 4]
    assert logger.truncate_after("epoch", 9) == 0
    logger.close()


def test_result_is_json_and_closes(tmp_path):
    logger = _logger(_cfg(tmp_path))
    logger.finish({"success": math.nan, "seeds": np.arange(3), "nested": {"path": tmp_path, "interval": (0.25, 0.5)}})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == {"success": None, "seeds": [0, 1, 2], "nested": {"path": str(tmp_path), "interval": [0.25, 0.5]}}
    claim_run_dir(tmp_path, resume=True)  # free again


@pytest.mark.parametrize("content", ["metrics.jsonl", "result.json", "checkpoint/state_5.pt"])
def test_a_taken_directory_is_refused_unless_resumed(tmp_path, content):
    (tmp_path / content).parent.mkdir(exist_ok=True)
    (tmp_path / content).write_text("{}\n")
    with pytest.raises(RunDirError, match=r"logdir: .* already holds a run.*resume=true"):
        _logger(_cfg(tmp_path))
    _logger(_cfg(tmp_path, resume=True)).close()


def test_a_run_that_failed_before_its_first_row_may_begin_again_with_another_configuration(tmp_path):
    _logger(_cfg(tmp_path)).close()
    _logger(_cfg(tmp_path, seed=5)).close()
    assert "seed: 5" in (tmp_path / "config.yaml").read_text()


def test_a_running_run_is_refused_even_to_resume(tmp_path):
    logger = _logger(_cfg(tmp_path))
    with pytest.raises(RunDirError, match="another process is running"):
        _logger(_cfg(tmp_path, resume=True))
    logger.close()
    _logger(_cfg(tmp_path, resume=True)).close()


def test_leftovers_of_a_killed_process_are_cleared(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    leftover = tmp_path / "checkpoint" / ".latest.pt.4711.part"
    leftover.write_text("half")
    _logger(_cfg(tmp_path)).close()
    assert not leftover.exists()


def test_an_unusable_directory_names_the_key_and_the_variable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"logdir: .*DPPO_LOG_DIR"):
        _logger(_cfg(tmp_path / "file" / "run"))


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    logger = _logger(_cfg(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunDirError, match=r"metrics\.jsonl cannot be written \(No space left"):
        logger.log("epoch", 1, {"loss": 1.0})
    monkeypatch.setattr(os, "write", lambda _, data: len(data) - 1)
    with pytest.raises(RunDirError, match="disk is full"):
        logger.log("epoch", 1, {"loss": 1.0})
    logger.close()


def test_where_a_run_lives(tmp_path):
    run = tmp_path / "earlier"
    (run / "checkpoint").mkdir(parents=True)
    (run / "checkpoint" / "state_3.pt").write_text("")
    assert locate_run(_cfg("log/new")) == (locate_run(_cfg("log/new", resume=False))[0], False)
    assert locate_run(_cfg(run, resume=True)) == (run, True)
    for given in (run, run / "checkpoint" / "state_3.pt"):
        assert locate_run(_cfg("log/new", resume=str(given))) == (run, True)
    with pytest.raises(RunDirError, match="resume: .*does not exist"):
        locate_run(_cfg("log/new", resume=str(tmp_path / "nowhere")))
    with pytest.raises(UsageError, match="logdir"):
        locate_run({"resume": None})


def test_without_wandb_the_package_is_never_imported(tmp_path):
    code = (
        "import sys; from agent.logger import RunLogger; import agent.checkpoint\n"
        f"logger = RunLogger({str(tmp_path)!r}, {{'wandb': None}}); logger.log('epoch', 1, {{}}); logger.finish({{}})\n"
        "assert 'wandb' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, timeout=60)


class _Run:
    def __init__(self) -> None:
        self.rows, self.summary, self.finished = [], {}, False

    def log(self, row):
        self.rows.append(row)

    def finish(self):
        self.finished = True


def _fake_wandb(monkeypatch, account: bool, network: bool = True):
    """Stands for the package: no account means that ``login`` says False; no network that going online fails."""
    wandb = types.ModuleType("wandb")
    wandb.calls, wandb.run = [], _Run()
    wandb.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    wandb.login = lambda prompt: account

    def init(**settings):
        wandb.calls.append(settings)
        if settings["mode"] == "online" and not network:
            raise wandb.errors.Error("no route to host")
        return wandb.run

    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return wandb


_WANDB = {"entity": None, "project": "p", "run": "r"}


def test_wandb_is_offline_without_an_account_and_keeps_its_id(tmp_path, monkeypatch, caplog):
    wandb = _fake_wandb(monkeypatch, account=False)
    logger = _logger(_cfg(tmp_path, wandb=_WANDB))
    logger.log("epoch", 1, {"loss": 2.0, "bad": math.nan})
    logger.finish({"final": 2.0})
    assert "no account" in caplog.text
    assert wandb.run.rows == [{"epoch": 1, "loss": 2.0}] and wandb.run.summary == {"final": 2.0} and wandb.run.finished
    _logger(_cfg(tmp_path, wandb=_WANDB, resume=True)).close()
    assert [call["mode"] for call in wandb.calls] == ["offline", "offline"]
    assert wandb.calls[0]["id"] == wandb.calls[1]["id"] == (tmp_path / "wandb_id.txt").read_text().strip()


def test_wandb_gets_the_report_and_a_report_that_fails_is_only_a_warning(tmp_path, monkeypatch, caplog):
    wandb = _fake_wandb(monkeypatch, account=True)
    wandb.Html = lambda page: ("html", page)
    logger = _logger(_cfg(tmp_path / "a", wandb=_WANDB, stage="pretrain", env_name="can"))
    for epoch in (1, 2, 3):
        logger.log("epoch", epoch, {"train/diffusion loss": 1 / epoch})
    logger.finish({"epochs": 3})
    kind, page = wandb.run.rows[-1]["report"]
    assert kind == "html" and "can: diffusion loss" in page and "<svg" in page
    logger = _logger(_cfg(tmp_path / "b", wandb=_WANDB))
    monkeypatch.setattr("agent.report.page.make_report", lambda paths: 1 / 0)
    logger.finish({"epochs": 3})
    assert "ZeroDivisionError" in caplog.text and wandb.run.finished and (tmp_path / "b" / "result.json").exists()


def test_wandb_goes_online_with_an_account_and_offline_without_a_network(tmp_path, monkeypatch, caplog):
    wandb = _fake_wandb(monkeypatch, account=True)
    _logger(_cfg(tmp_path / "a", wandb=_WANDB)).close()
    assert [call["mode"] for call in wandb.calls] == ["online"]
    wandb = _fake_wandb(monkeypatch, account=True, network=False)
    _logger(_cfg(tmp_path / "b", wandb=_WANDB)).close()
    assert [call["mode"] for call in wandb.calls] == ["online", "offline"] and "no route" in caplog.text


def test_wandb_mode_is_the_users(tmp_path, monkeypatch):
    wandb = _fake_wandb(monkeypatch, account=True)
    _logger(_cfg(tmp_path / "a", wandb={**_WANDB, "mode": "offline"})).close()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    _logger(_cfg(tmp_path / "b", wandb=_WANDB)).close()
    assert [call["mode"] for call in wandb.calls] == ["offline", "disabled"]
    with pytest.raises(UsageError, match=r"wandb\.mode.*'sometimes'"):
        _logger(_cfg(tmp_path / "c", wandb={**_WANDB, "mode": "sometimes"}))


def test_wandb_that_is_not_installed_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="wandb=null"):
        _logger(_cfg(tmp_path, wandb=_WANDB))
    _logger(_cfg(tmp_path, resume=True)).close()  # and the directory is free again


def test_the_real_wandb_records_offline_and_goes_on(tmp_path, monkeypatch):
    """The stand-in above knows only what this file believes of the package."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for resume in (False, True):
        logger = _logger(_cfg(tmp_path / "run", wandb=_WANDB, resume=resume))
        logger.log("epoch", 1, {"loss": 2.0})
        logger.finish({"final": 2.0, "interval": (0.25, None)})
    run_id = (tmp_path / "run" / "wandb_id.txt").read_text().strip()
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))
