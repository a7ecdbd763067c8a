"""The alerts, evaluated by Prometheus itself (Debian's package ``prometheus``): each fires when it should, not before."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
POOL = 'airflow_pool_running_slots{pool_name="physionet"}'
STORED = "airflow_physionet_images_stored"
MISSING = 'airflow_physionet_images_failed{reason="not_found"}'
CORRUPT = 'airflow_physionet_images_failed{reason="corrupt"}'
REFUSED = 'airflow_physionet_refused{reason="credentials_refused"}'
ALIVE = {"airflow_scheduler_heartbeat": "0+12x240"}

# The counters' values minute by minute (promtool's notation), and the minutes at which the alert is silent and fires.
FIRING = {
    "MirrorStalled": [
        ("streams that store nothing", {POOL: "4x120", STORED: "0+100x30 3000x90"}, [29, 44], [62, 119]),
        ("streams whose first image never came", {POOL: "0x9 4x120"}, [9, 23], [26, 119]),
        ("streams that store", {POOL: "4x120", STORED: "0+100x120"}, [1, 60, 119], []),
        ("nothing to do", {POOL: "0x120", STORED: "3000x120"}, [1, 60, 119], []),
        ("another pool is busy", {'airflow_pool_running_slots{pool_name="default_pool"}': "4x120"}, [60], []),
    ],
    "MirrorImagesFailing": [
        ("3 % fail", {STORED: "0+97x60", MISSING: "0+2x60", CORRUPT: "0+1x60"}, [0], [30, 59]),
        ("half a per cent fails", {STORED: "0+199x60", MISSING: "0+1x60"}, [1, 30, 59], []),
        ("the first ever fail at once", {STORED: "900x90", MISSING: "_x9 100x80"}, [9, 13], [16, 60]),
        ("all fail", {MISSING: "_x9 5x60"}, [9, 13], [16, 60]),
        ("that was hours ago", {STORED: "900x240", MISSING: "100x240"}, [80, 239], [30]),
    ],
    "MirrorRefused": [
        ("once, the first time ever", {REFUSED: "_x9 1x160"}, [8, 80, 160], [9, 60]),
        ("once more", {REFUSED: "3x90 4x90"}, [80, 160], [93, 140]),
        ("never", {STORED: "0+100x60"}, [1, 59], []),
    ],
    "MirrorUnwatched": [
        ("Airflow never came", {STORED: "0x60", "airflow_scheduler_heartbeat": "_x60"}, [9], [11, 60]),
        ("the scheduler stops", {"airflow_scheduler_heartbeat": "0+12x30 360x60"}, [29, 45], [55, 90]),
        ("the scheduler is there", {}, [1, 60, 120], []),
    ],
}


@pytest.fixture
def promtool():
    if not (found := shutil.which("promtool")):
        pytest.skip("promtool is not installed; Debian, Ubuntu: apt install prometheus")
    return found


def test_every_alert_is_tried():
    assert {rule["alert"] for rule in RULES if "alert" in rule} == set(FIRING)


@pytest.mark.parametrize("alert", FIRING)
def test_an_alert_fires_when_it_should(promtool, tmp_path, alert):
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    question = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)'
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in (ALIVE | series).items()],
            "promql_expr_test": [
                {"expr": question, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": value}]}
                for value, minutes in enumerate((silent, fires))
                for minute in minutes
            ],
        }
        for name, series, silent, fires in FIRING[alert]
    ]
    written = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(written))
    done = subprocess.run([promtool, "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration(promtool, tmp_path):
    text = (MONITORING / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/", f"{MONITORING}/"))
    done = subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
