"""The deployment files, checked without starting anything."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import stat
from pathlib import Path

import hcl2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES = COMPOSE["services"]
ONE_SHOT = {"secrets", "airflow-init", "demo-setup"}
LASTING = sorted(set(SERVICES) - ONE_SHOT)


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = load(DEPLOY / "airflow" / "setup.py")


# -- docker-compose.yaml -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LASTING)
def test_every_service_is_watched_restarted_limited_and_its_log_rotated(name):
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", sorted(ONE_SHOT))
def test_a_one_shot_service_is_not_restarted(name):
    assert SERVICES[name]["restart"] == "no"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_nothing_starts_before_what_it_needs(name):
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        assert needed in SERVICES
        assert how["condition"] == ("service_completed_successfully" if needed in ONE_SHOT else "service_healthy")
        hidden = set(SERVICES[needed].get("profiles", ())) - set(SERVICES[name].get("profiles", ()))
        assert not hidden or how["required"] is False


def test_only_user_interfaces_are_published_and_only_to_this_machine():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"airflow-api-server", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_every_image_is_pinned():
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d|^local$", tag), f"{name}: {service['image']}"


def test_every_named_volume_is_declared_and_used():
    used = {str(v).split(":")[0] for service in SERVICES.values() for v in service.get("volumes", ())}
    assert {volume for volume in used if not volume.startswith(".")} == set(COMPOSE["volumes"])
    for file in (volume for volume in used if volume.startswith(".")):
        assert (ROOT / file).exists()


def test_no_secret_is_written_in_the_file():
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY|TOKEN|CONN$|URL", key) and not key.endswith(("_CMD", "__FILE")):
                assert re.fullmatch(r"\$\{\w+:-\}|http://[\w.:/${}-]+", str(value)), f"{name}: {key}"


def test_who_may_read_which_keys():
    def readers(volume):
        return {
            name for name, s in SERVICES.items() if any(str(v).startswith(f"{volume}:") for v in s.get("volumes", ()))
        }

    core = {"airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "airflow-init"}
    assert readers("secrets_core") == core | {"demo-setup", "secrets"}
    assert readers("secrets_database") == {"postgres", "secrets"}
    assert readers("secrets_queue") == core | {"airflow-worker", "redis", "demo-setup", "secrets"}
    worker = SERVICES["airflow-worker"]["environment"]
    assert not any("DATABASE" in name or "FERNET" in name or "JWT" in name for name in worker)


def test_accounts_reach_only_the_container_that_stores_them():
    for name, service in SERVICES.items():
        has = {key for key in service.get("environment", {}) if key.startswith(("PHYSIONET_PASSWORD", "AWS_SECRET"))}
        assert not has or name == "airflow-init"


def test_the_pool_has_a_slot_for_each_stream():
    pools = json.loads((DEPLOY / "airflow" / "pools.json").read_text())
    environment = SERVICES["airflow-worker"]["environment"]
    slots = pools[environment["PHYSIONET_POOL"]]["slots"]
    assert environment["PHYSIONET_STREAMS"] == f"${{PHYSIONET_STREAMS:-{slots}}}"
    assert json.loads((DEPLOY / "airflow" / "variables.json").read_text()) == {}


def test_env_example_explains_each_setting_and_knows_no_other():
    text = (ROOT / ".env.example").read_text()
    lines = text.splitlines()
    names = re.findall(r"(?m)^(\w+)=", text)
    asked = set(re.findall(r"\$\{(\w+):-", (ROOT / "docker-compose.yaml").read_text()))
    assert set(names) - {"COMPOSE_PROFILES"} == asked
    for number, line in enumerate(lines):
        if re.match(r"\w+=", line):
            above = lines[number - 1]
            assert above.startswith("#") or re.match(r"\w+=", above), f"{line} is not explained"
    assert not re.search(r"(?m)^\w*(PASSWORD|KEY|USERNAME)\w*=.+", text)


# -- Dockerfile --------------------------------------------------------------------------------------------------------


def test_requirements_are_installed_before_the_code_is_copied():
    text = (ROOT / "Dockerfile").read_text()
    assert text.index("RUN pip install") < text.index("COPY --chown=airflow:0 include/")
    assert re.search(r"ARG AIRFLOW_VERSION=\d+\.\d+\.\d+\n", text)
    assert "HEALTHCHECK" in text
    assert "USER root" not in text


def test_the_image_has_the_airflow_that_is_tested():
    image = re.search(r"ARG AIRFLOW_VERSION=(\S+)", (ROOT / "Dockerfile").read_text())[1]
    assert f"apache-airflow=={image}" in (ROOT / "requirements-dev.txt").read_text()


def test_what_is_copied_is_let_into_the_build_and_nothing_else():
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    lines = re.findall(r"COPY --chown=airflow:0 (.+) \S+", (ROOT / "Dockerfile").read_text())
    assert {name.rstrip("/") for line in lines for name in line.split()} == let_in


# -- set-up ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "SECRETS", tmp_path)
    return tmp_path


def test_secrets_are_made_once_and_kept(folder, capsys):
    setup.make_secrets()
    first = {file: file.read_text() for file in folder.rglob("*") if file.is_file()}
    assert len(first) >= 10
    assert all(len(text) >= 16 for text in first.values())
    setup.make_secrets()
    assert {file: file.read_text() for file in folder.rglob("*") if file.is_file()} == first
    shown = capsys.readouterr().out
    assert not any(text in shown for text in first.values())


def test_secrets_differ_between_two_stacks(folder, tmp_path, monkeypatch):
    setup.make_secrets()
    first = (folder / "core/fernet_key").read_text()
    monkeypatch.setattr(setup, "SECRETS", tmp_path / "other")
    setup.make_secrets()
    assert (tmp_path / "other/core/fernet_key").read_text() != first


def test_secrets_are_readable_by_their_owner_only(folder):
    setup.make_secrets()
    for circle in ("core", "database", "demo"):
        for file in (folder / circle).iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o400


def test_an_interrupted_start_leaves_no_half_key(folder):
    (folder / "core").mkdir()
    (folder / "core/fernet_key.new").write_text("half")
    setup.make_secrets()
    assert len((folder / "core/fernet_key").read_text()) == 44


def test_connections_come_from_env():
    found = setup.connections_from(
        {
            "PHYSIONET_USERNAME": "reader",
            "PHYSIONET_PASSWORD": "p$ss",
            "AWS_ACCESS_KEY_ID": "AKIA",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "eu-central-1",
            "S3_BUCKET_OWNER": "123456789012",
        }
    )
    assert found["physionet_default"]["host"] == "https://physionet.org"
    assert found["physionet_default"]["password"] == "p$ss"
    assert found["aws_default"]["login"] == "AKIA"
    assert found["aws_default"]["extra"] == {"region_name": "eu-central-1", "expected_bucket_owner": "123456789012"}


def test_an_empty_env_leaves_the_connections_to_the_ui():
    assert setup.connections_from({"PHYSIONET_USERNAME": " ", "AWS_REGION": ""}) == {}


def test_a_role_of_the_machine_needs_no_keys():
    found = setup.connections_from({"AWS_REGION": "us-east-1"})
    assert "login" not in found["aws_default"]


def test_half_a_pair_is_refused():
    with pytest.raises(setup.SetupError, match="PHYSIONET_PASSWORD is empty"):
        setup.connections_from({"PHYSIONET_USERNAME": "reader"})


def test_setup_imports_airflow_only_where_it_is_there():
    for file in ("setup.py", "healthy.py"):
        tree = ast.parse((DEPLOY / "airflow" / file).read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("airflow" in ast.dump(node) for node in top)


# -- monitoring --------------------------------------------------------------------------------------------------------

SENT = set(re.findall(r"(?m)^    physionet\.(\w+)", (ROOT / "plugins/physionet_airflow/metrics.py").read_text()))


def test_the_dashboard_is_one_that_grafana_takes():
    board = json.loads((DEPLOY / "monitoring/grafana/dashboards/physionet-mirror.json").read_text())
    assert board["uid"]
    assert board["schemaVersion"] >= 39
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    (source,) = yaml.safe_load((DEPLOY / "monitoring/grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["targets"]
        assert all(target["datasource"]["uid"] == source["uid"] for target in panel["targets"])


def test_dashboard_and_alerts_ask_only_for_figures_that_are_sent():
    for file in ("grafana/dashboards/physionet-mirror.json", "alerts.yml", "statsd-mapping.yaml"):
        text = (DEPLOY / "monitoring" / file).read_text()
        asked = {re.sub(r"_bucket$", "", name) for name in re.findall(r"airflow_physionet_(\w+)", text)}
        assert asked
        assert asked <= SENT


def test_each_alert_says_what_to_do():
    (group,) = yaml.safe_load((DEPLOY / "monitoring/alerts.yml").read_text())["groups"]
    alerts = [rule for rule in group["rules"] if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == {
        "MirrorStalled",
        "MirrorImagesFailing",
        "MirrorRefused",
        "MirrorUnwatched",
    }
    for rule in alerts:
        assert rule["expr"].strip()
        assert len(rule["annotations"]["description"]) > 80


def test_prometheus_loads_the_rules_and_scrapes_the_exporter():
    config = yaml.safe_load((DEPLOY / "monitoring/prometheus.yml").read_text())
    assert config["rule_files"] == ["/etc/prometheus/alerts.yml"]
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["statsd-exporter:9102"]
    assert "statsd-exporter" in SERVICES


# -- other platforms ---------------------------------------------------------------------------------------------------


def blocks(document, kind):
    return [
        (name.strip('"'), body)
        for entry in document.get("resource", [])
        if (found := entry.get(kind) or entry.get(f'"{kind}"'))
        for name, body in found.items()
    ]


def test_terraform_makes_a_bucket_that_the_access_check_takes():
    with (DEPLOY / "terraform/bucket.tf").open() as file:
        document = hcl2.load(file)
    ((_, block),) = blocks(document, "aws_s3_bucket_public_access_block")
    for setting in ("block_public_acls", "ignore_public_acls", "block_public_policy", "restrict_public_buckets"):
        assert block[setting] is True
    assert blocks(document, "aws_s3_bucket_server_side_encryption_configuration")
    ((_, ownership),) = blocks(document, "aws_s3_bucket_ownership_controls")
    assert "BucketOwnerEnforced" in str(ownership)
    ((_, lifecycle),) = blocks(document, "aws_s3_bucket_lifecycle_configuration")
    assert "abort_incomplete_multipart_upload" in str(lifecycle)


def statements(file):
    policy = json.loads((DEPLOY / "iam" / file).read_text())
    assert policy["Version"] == "2012-10-17"
    return policy["Statement"]


def test_iam_policies_grant_no_more_than_s3_on_named_resources():
    for file in sorted(path.name for path in (DEPLOY / "iam").iterdir()):
        for statement in statements(file):
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert all(re.fullmatch(r"(s3|kms|sts):[A-Za-z]+", action) for action in actions), "no wildcard"
            if statement["Resource"] == "*":
                assert actions == ["s3:GetAccountPublicAccessBlock"]


def test_iam_grants_what_the_access_check_looks_at():
    granted = {action for statement in statements("destination.json") for action in statement["Action"]}
    asked = set(re.findall(r"s3:\w+", (ROOT / "include/physionet_mirror/s3/safety.py").read_text()))
    assert asked <= granted
    assert {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"} <= granted
    assert not any(action.startswith(("s3:PutBucket", "s3:PutObjectAcl", "s3:DeleteBucket")) for action in granted)


def test_helm_values_are_those_of_the_chart():
    values = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
    assert values["executor"] == "KubernetesExecutor"
    assert values["images"]["airflow"]["tag"] != "latest"
    role = "eks.amazonaws.com/role-arn"
    for part in ("workers", "apiServer", "triggerer"):
        assert role in values[part]["serviceAccount"]["annotations"]
    assert values["createUserJob"]["enabled"] is False, "the chart's administrator has a known password"
    environment = {entry["name"]: entry.get("value") for entry in values["env"]}
    assert environment["PHYSIONET_POOL"] == "physionet"
    assert {entry["secretName"] for entry in values["secret"]} == {"physionet-connection"}


def test_nothing_of_this_is_a_secret():
    for file in (*DEPLOY.rglob("*"), ROOT / ".env.example"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN", file.read_text()), file


# -- the specification -------------------------------------------------------------------------------------------------


def test_compose_takes_the_file(tmp_path):
    """Validate the file with Compose itself if it is installed, with every profile."""
    import shutil
    import subprocess

    compose = next((c for c in (["docker", "compose"], ["docker-compose"]) if _works([*c, "version"])), None)
    if compose is None:
        pytest.skip("Docker Compose is not installed")
    assert shutil.which(compose[0])
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [
        *compose,
        "--file",
        ROOT / "docker-compose.yaml",
        "--env-file",
        ROOT / ".env.example",
        "--profile",
        "*",
        "config",
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def _works(command):
    import subprocess

    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
