"""The image and the files for deploying, as far as they can be checked without an engine; and that the image's command serves as its user."""

import copy
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import jsonschema
import psutil
import pytest
import yaml
from waiting import WAIT_S, until

import helios
from helios.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
KNOWN_ENV = {name for info in Settings.model_fields.values() for name in info.validation_alias.choices} | {
    "HELIOS_HOME", "HELIOS_DATABASE_URL", "HELIOS_CONFIG", "HELIOS_JOBS_LIMIT", "PYTHONPATH"}


# --- the image ---

def instructions(text):
    """A Dockerfile as (word, rest), lines joined, comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1].strip()) for line in joined.splitlines()]


def exec_form(rest):
    try:
        words = json.loads(rest)
    except ValueError:
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def complaints(text):
    """What a linter of Dockerfiles would say."""
    found, stages, last = [], set(), []
    for word, rest in instructions(text):
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            tag = image.rpartition(":")[2] if ":" in image else ""
            if image not in stages and not re.match(r"\d+(\.\d+)?-", tag):
                found.append(f"the base {image} is not pinned")
            stages.add(name.strip())
            last = []
        last.append((word, rest))
        if word == "ADD":
            found.append("ADD; COPY does")
        if word in ("CMD", "ENTRYPOINT") and exec_form(rest) is None:
            found.append(f"{word} is not in exec form")
        if word == "WORKDIR" and not rest.startswith("/"):
            found.append("WORKDIR is not absolute")
        if word in ("ENV", "ARG") and re.search(r"(PASSWORD|SECRET|TOKEN|_KEY)\w*=", rest):
            found.append("a secret in the image")
        if word == "RUN":
            found += run_complaints(rest)
    words = [word for word, _ in last]
    user = next((rest for word, rest in reversed(last) if word == "USER"), "root")
    if user.split(":")[0] in ("root", "0"):
        found.append("the last stage runs as root")
    elif words.index("USER") > words.index("CMD") if "CMD" in words else False:
        found.append("USER stands behind CMD")
    health = next((rest for word, rest in last if word == "HEALTHCHECK"), None)
    if health is None:
        found.append("no HEALTHCHECK")
    elif exec_form(health.partition("CMD ")[2]) is None or "curl" in health:
        found.append("HEALTHCHECK is not in exec form, or needs curl")
    return found


def run_complaints(rest):
    found = []
    if "apt-get install" in rest:
        if not rest.endswith("rm -rf /var/lib/apt/lists/*"):
            found.append("apt's lists stay in the layer")
        if "--no-install-recommends" not in rest or " -y" not in rest:
            found.append("apt-get install without -y --no-install-recommends")
        packages = re.search(r"apt-get install ([^&]*)", rest)[1].split()
        found += [f"{name} is not pinned" for name in packages if not name.startswith("-") and "=" not in name]
    if re.search(r"\b(curl|wget)\b.*\|\s*(ba)?sh", rest):
        found.append("what was fetched is run unseen")
    if "sudo" in rest.split():
        found.append("sudo")
    if re.search(r"https?://", rest):
        found.append("an address is built in")
    return found


def test_the_image_is_as_it_should_be():
    assert complaints(DOCKERFILE) == []


@pytest.mark.parametrize("before,after,said", [
    ("FROM python:3.12-slim-bookworm AS run", "FROM python AS run", "not pinned"), ("FROM python:3.12-slim-bookworm AS run", "FROM python:latest AS run", "not pinned"),
    ("USER 1001:1001\n", "", "as root"), ("USER 1001:1001", "USER root", "as root"), ('CMD ["helios", "serve"]', "CMD helios serve", "exec form"),
    ("    && rm -rf /var/lib/apt/lists/*", "    && true", "lists"), ("dumb-init=1.2.*", "dumb-init", "dumb-init is not pinned"),
    ("COPY data data", "ADD data data", "ADD"), ("HELIOS_HOME=/data", "HELIOS_ADMIN_KEY=x", "a secret"), ("WORKDIR /data", "WORKDIR data", "absolute"),
    ("RUN python -m venv", "RUN curl -s https://x.example | sh && python -m venv", "unseen"), ("HEALTHCHECK", "LABEL", "no HEALTHCHECK"),
])
def test_the_rules_see_what_is_wrong(before, after, said):
    assert before in DOCKERFILE
    assert any(said in text for text in complaints(DOCKERFILE.replace(before, after)))


def last_stage():
    found = instructions(DOCKERFILE)
    return found[max(i for i, (word, _) in enumerate(found) if word == "FROM"):]


def image_env():
    return dict(pair.split("=", 1) for word, rest in last_stage() if word == "ENV" for pair in shlex.split(rest))


def test_what_the_image_promises():
    stage = dict(last_stage())
    assert stage["USER"] == "1001:1001" and stage["EXPOSE"] == "8080" and json.loads(stage["VOLUME"]) == ["/data"]
    assert "--uid 1001" in DOCKERFILE and "--gid 1001" in DOCKERFILE
    assert json.loads(stage["ENTRYPOINT"]) == ["dumb-init", "--"] and json.loads(stage["CMD"]) == ["helios", "serve"]
    env = image_env()
    assert env["HELIOS_HOME"] == "/data" and env["PORT"] == "8080" and env["HELIOS_HOST"] == "0.0.0.0"
    assert len([word for word, _ in instructions(DOCKERFILE) if word == "FROM"]) == 3


def test_the_versions_of_torch_and_python_are_those_of_the_package():
    wanted = {re.split("[><=]", word)[0]: word for word in re.search(r"^requirements = (.*)$", (ROOT / "settings.ini").read_text(), re.M)[1].split()}
    assert f'ARG TORCH="{wanted["torch"]}"' in DOCKERFILE
    extras = re.search(r'ARG EXTRAS="(.*)"', DOCKERFILE)[1].split(",")
    assert all(f"{extra}_requirements" in (ROOT / "settings.ini").read_text() for extra in extras)
    minor = int(re.search(r"FROM python:3\.(\d+)-", DOCKERFILE)[1])
    assert 11 <= minor < 14


def ignored(path, rules):
    """Whether .dockerignore keeps a path out of the build; the last rule that fits decides."""
    found = False
    for rule in rules:
        keeps, pattern = rule.startswith("!"), rule.removeprefix("!")
        regex = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*").replace(r"\[", "[").replace(r"\]", "]")
        if re.match(f"{regex}(/|$)", path):
            found = not keeps
    return found


def test_what_is_copied_is_there_and_nothing_secret_is():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for word, rest in instructions(DOCKERFILE):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and not ignored(source, rules), source
    for path in (".env", "helios/.env", "helios/web/.env.local", "helios/web/node_modules/a.js", "helios_memory.db", "helios/x.db", ".git/config", "tests/test_deploy.py"):
        assert ignored(path, rules), path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.fixture
def own_home():
    """A folder that the user of the image may write to, and may reach."""
    folder = Path(tempfile.mkdtemp(prefix="helios-data-"))
    if os.geteuid() == 0:
        os.chown(folder, 1001, 1001)
    yield folder
    shutil.rmtree(folder)


def cannot(why):
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


def as_the_images_user():
    """Words before a command that run it as user 1001; none where this is no root already."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv") or cannot("setpriv is missing; install your system's package util-linux")
    plain = [setpriv, "--reuid=1001", "--regid=1001", "--clear-groups"]
    reads = [sys.executable, "-c", f"open({helios.__file__!r})"]
    # Where the checkout or its Python lies in a folder of root's, the user may read it all the same, and still write nothing.
    reading = [*plain, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return next((words for words in (plain, reading) if not subprocess.run([*words, *reads], cwd="/", capture_output=True, check=False).returncode),
                None) or cannot("user 1001 may not read this Python; install it outside root's home")


@pytest.mark.skipif(os.name != "posix", reason="users as POSIX has them")
@pytest.mark.slow
def test_the_images_command_serves_as_its_user(own_home):
    port, words, user = free_port(), json.loads(dict(last_stage())["CMD"]), as_the_images_user()
    code = "import sys; sys.argv[0] = 'helios'; from helios.cli import main; main()"
    env = {name: value for name, value in image_env().items() if name != "PATH"} | {
        "PORT": str(port), "HELIOS_HOME": str(own_home), "HELIOS_HOST": "127.0.0.1", "HELIOS_REQUIRE_KEYS": "true", "HELIOS_ADMIN_KEY": "a-key-that-is-long-enough-for-a-test",
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(own_home / "matplotlib")}
    check = exec_form(dict(last_stage())["HEALTHCHECK"].partition("CMD ")[2])
    def healthy():
        return subprocess.run([sys.executable, *check[1:]], env={"PORT": str(port)}, capture_output=True, check=False).returncode == 0
    assert words[0] == "helios" and check[0] == "python" and not healthy()
    log = own_home.with_suffix(".log")
    with open(log, "w", encoding="utf-8") as said:
        server = subprocess.Popen([*user, sys.executable, "-c", code, *words[1:]], cwd=own_home, env=env, stdout=said, stderr=said)
    try:
        until(lambda: healthy() or server.poll() is not None, "the server")
        assert server.poll() is None, log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=WAIT_S) as answer:
            assert answer.status == 200 and json.load(answer)["status"] == "healthy"
        uid = 1001 if user else os.geteuid()
        assert {os.stat(own_home / "helios_memory.db").st_uid, psutil.Process(server.pid).uids().effective} == {uid}
        assert {child.uids().effective for child in psutil.Process(server.pid).children()} == {uid}
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        log.unlink()


# --- Compose ---

COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text(encoding="utf-8"))
_TEXTS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
SERVICE = {"type": "object", "additionalProperties": False, "required": ["image", "profiles"], "properties": {
    "image": {"type": "string", "pattern": r"^[a-z0-9./-]+:(\d|\$\{)"}, "build": {"type": "object"}, "profiles": _TEXTS, "command": {"type": "array", "items": {"type": "string"}},
    "ports": {"type": "array", "items": {"type": "string", "pattern": r"^(127\.0\.0\.1:)?[^:]+(:-?[^:]+)?:\d+$"}}, "environment": {"type": "object", "additionalProperties": {"type": "string"}},
    "volumes": _TEXTS, "depends_on": {"type": "object"}, "networks": _TEXTS, "restart": {"enum": ["unless-stopped"]}, "deploy": {"type": "object"},
    "healthcheck": {"type": "object", "required": ["test"]}, "init": {"type": "boolean"}, "read_only": {"const": True}, "cap_drop": {"const": ["ALL"]},
    "security_opt": {"const": ["no-new-privileges:true"]}, "tmpfs": _TEXTS, "shm_size": {"type": "string"}, "stop_grace_period": {"type": "string"}, "user": {"type": "string"}}}


def test_compose_has_two_profiles_that_hold_together():
    assert {name for name in COMPOSE if not name.startswith("x-")} == {"name", "services", "networks", "volumes"}
    services, own = COMPOSE["services"], {"development": {"helios-dev"}, "production": {"helios", "database", "counts"}}
    for service in services.values():
        jsonschema.validate(service, SERVICE)
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / "deploy" / source).exists(), volume
        assert set(service.get("networks", ())) <= set(COMPOSE["networks"])
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and "healthcheck" in services[other]
            assert set(services[other]["profiles"]) >= set(service["profiles"])
        assert service["security_opt"]
    assert {profile: {name for name, s in services.items() if profile in s["profiles"]} for profile in own} == own


def test_compose_serves_what_the_image_serves():
    for name in ("helios", "helios-dev"):
        service = COMPOSE["services"][name]
        assert [port.rpartition(":")[2] for port in service["ports"]] == [dict(last_stage())["EXPOSE"]]
        assert set(service["environment"]) <= KNOWN_ENV, set(service["environment"]) - KNOWN_ENV
        assert any(volume.endswith(":/data") for volume in service["volumes"]) and service["read_only"] and service["cap_drop"] == ["ALL"]
        assert set(service["build"]["args"]) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
        assert (ROOT / "deploy" / service["build"]["context"] / "Dockerfile").exists()
    assert COMPOSE["services"]["helios-dev"]["ports"][0].startswith("127.0.0.1:")
    assert not [port for name in ("database", "counts") for port in COMPOSE["services"][name].get("ports", ())]
    assert COMPOSE["networks"]["back"] == {"internal": True}
    grace = Settings.model_fields["grace_s"].default
    assert int(COMPOSE["services"]["helios"]["stop_grace_period"].rstrip("s")) > grace


def test_secrets_come_from_elsewhere():
    text = (ROOT / "deploy/compose.yaml").read_text()
    for name in ("HELIOS_ADMIN_KEY", "POSTGRES_PASSWORD"):
        values = re.findall(rf"^\s*{name}: (.*)$", text, re.M)
        assert values and all(value.startswith("${" + name + ":?") for value in values)
    example = yaml.safe_load((ROOT / "deploy/kubernetes/secret.example.yaml").read_text())
    assert all("REPLACE" in value or name == "REDIS_URL" for name, value in example["stringData"].items())


# --- Kubernetes ---

def documents():
    return {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in MANIFESTS}


KINDS = {"Namespace": "v1", "ConfigMap": "v1", "Secret": "v1", "PersistentVolumeClaim": "v1", "Service": "v1", "Deployment": "apps/v1", "Job": "batch/v1", "CronJob": "batch/v1",
         "HorizontalPodAutoscaler": "autoscaling/v2", "PodDisruptionBudget": "policy/v1", "NetworkPolicy": "networking.k8s.io/v1", "Kustomization": "kustomize.config.k8s.io/v1beta1"}


def _object(*required, **properties):
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


_ANY, _NAME, _LABELS = {}, {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"}, {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}
_QUANTITIES = _object("cpu", "memory", **{name: {"type": "string", "pattern": r"^\d+(m|Mi|Gi)?$"} for name in ("cpu", "memory", "ephemeral-storage")})
_PROBE = _object("periodSeconds", "failureThreshold", httpGet=_object("path", "port", path=_ANY, port=_ANY, httpHeaders=_ANY), tcpSocket=_object("port", port=_ANY),
                 periodSeconds={"type": "integer"}, timeoutSeconds={"type": "integer"}, failureThreshold={"type": "integer"})
_CONTAINER = _object(
    "name", "image", "resources", "securityContext", "volumeMounts", name=_NAME, image={"type": "string"}, imagePullPolicy={"enum": ["IfNotPresent", "Always"]},
    ports={"type": "array", "items": _object("name", "containerPort", name=_NAME, containerPort={"type": "integer"})}, args={"type": "array", "items": {"type": "string"}},
    envFrom={"type": "array", "items": _object(configMapRef=_object("name", name=_NAME), secretRef=_object("name", name=_NAME))},
    env={"type": "array", "items": _object("name", "value", name={"type": "string"}, value={"type": "string"})},
    startupProbe=_PROBE, readinessProbe=_PROBE, livenessProbe=_PROBE, lifecycle=_ANY, resources=_object("requests", "limits", requests=_QUANTITIES, limits=_QUANTITIES),
    securityContext={"const": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}},
    volumeMounts={"type": "array", "items": _object("name", "mountPath", name=_NAME, mountPath={"type": "string"})})
_POD = _object(
    "securityContext", "containers", "volumes", "automountServiceAccountToken", automountServiceAccountToken={"const": False}, enableServiceLinks={"const": False},
    terminationGracePeriodSeconds={"type": "integer"}, restartPolicy={"enum": ["Never"]}, topologySpreadConstraints=_ANY,
    securityContext=_object("runAsNonRoot", "runAsUser", "seccompProfile", runAsNonRoot={"const": True}, runAsUser={"const": 1001}, runAsGroup={"const": 1001}, fsGroup={"const": 1001},
                            fsGroupChangePolicy=_ANY, seccompProfile={"const": {"type": "RuntimeDefault"}}),
    containers={"type": "array", "items": _CONTAINER, "minItems": 1}, volumes={"type": "array", "items": {"type": "object", "required": ["name"]}})
_TEMPLATE = _object("metadata", "spec", metadata=_object("labels", labels=_LABELS, annotations=_LABELS), spec=_POD)
_JOB = _object("template", backoffLimit={"type": "integer"}, activeDeadlineSeconds={"type": "integer"}, ttlSecondsAfterFinished={"type": "integer"}, template=_TEMPLATE)
_SELECTOR = _object("matchLabels", matchLabels=_LABELS)
SPECS = {
    "Deployment": _object("replicas", "selector", "template", replicas={"type": "integer"}, selector=_SELECTOR, strategy=_ANY, template=_TEMPLATE),
    "Job": _JOB, "CronJob": _object("schedule", "jobTemplate", "concurrencyPolicy", schedule={"type": "string", "pattern": r"^(\S+ ){4}\S+$"}, timeZone={"type": "string"},
                                    concurrencyPolicy={"enum": ["Forbid"]}, startingDeadlineSeconds={"type": "integer"}, successfulJobsHistoryLimit={"type": "integer"},
                                    failedJobsHistoryLimit={"type": "integer"}, jobTemplate=_object("spec", spec=_JOB)),
    "Service": _object("selector", "ports", type={"enum": ["ClusterIP"]}, selector=_LABELS, ports={"type": "array", "items": _object("name", "port", "targetPort", name=_NAME, port=_ANY, targetPort=_ANY)}),
    "HorizontalPodAutoscaler": _object("scaleTargetRef", "minReplicas", "maxReplicas", "metrics", scaleTargetRef=_ANY, minReplicas={"type": "integer"}, maxReplicas={"type": "integer"}, metrics=_ANY, behavior=_ANY),
    "PodDisruptionBudget": _object("selector", "minAvailable", minAvailable={"type": "integer"}, selector=_SELECTOR),
    "NetworkPolicy": _object("podSelector", "policyTypes", "ingress", "egress", podSelector=_SELECTOR, policyTypes={"const": ["Ingress", "Egress"]}, ingress=_ANY, egress=_ANY),
    "PersistentVolumeClaim": _object("accessModes", "resources", accessModes=_ANY, resources=_ANY)}


def pods(found):
    """Every pod's template by its file."""
    for name, document in found.items():
        spec = document.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield name, template


def trouble(found):
    """What is wrong with the manifests together."""
    said = []
    for name, document in found.items():
        if KINDS.get(document["kind"]) != document["apiVersion"]:
            said.append(f"{name}: no {document['kind']} of {document['apiVersion']}")
        try:
            jsonschema.validate(document.get("spec", {}), SPECS.get(document["kind"], {}))
        except jsonschema.ValidationError as e:
            said.append(f"{name}: {e.json_path}: {e.message}")
    there = {(d["kind"], d["metadata"]["name"]) for d in found.values() if "name" in d.get("metadata", {})}
    for name, template in pods(found):
        said += [f"{name}: {text}" for text in pod_trouble(template, there)]
    web = found["deployment.yaml"]["spec"]
    labels = web["template"]["metadata"]["labels"].items()
    ports = {port["name"]: port["containerPort"] for port in web["template"]["spec"]["containers"][0]["ports"]}
    for name, selector in (("deployment", web["selector"]["matchLabels"]), ("service", found["service.yaml"]["spec"]["selector"]),
                           ("disruption", found["disruption.yaml"]["spec"]["selector"]["matchLabels"]), ("network", found["network.yaml"]["spec"]["podSelector"]["matchLabels"])):
        if not selector.items() <= labels:
            said.append(f"{name}: its selector misses the web pods")
    for name, template in pods(found):
        if name != "deployment.yaml" and found["service.yaml"]["spec"]["selector"].items() <= template["metadata"]["labels"].items():
            said.append(f"{name}: the service would send requests to it")
    for port in found["service.yaml"]["spec"]["ports"]:
        if port["targetPort"] not in ports:
            said.append("service: it sends to no port of the pods")
    if ports.get("http") != int(dict(last_stage())["EXPOSE"]):
        said.append("deployment: another port than the image has")
    scale = found["autoscaling.yaml"]["spec"]
    if ("Deployment", scale["scaleTargetRef"]["name"]) not in there or not 1 <= scale["minReplicas"] <= scale["maxReplicas"]:
        said.append("autoscaling: it scales nothing")
    if found["disruption.yaml"]["spec"]["minAvailable"] >= scale["minReplicas"]:
        said.append("disruption: no node could ever be emptied")
    return said


def pod_trouble(template, there):
    said, spec = [], template["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    for volume in spec["volumes"]:
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and ("PersistentVolumeClaim", claim) not in there:
            said.append(f"there is no claim {claim}")
    for container in spec["containers"]:
        mounts = [mount["name"] for mount in container.get("volumeMounts", ())]
        if not set(mounts) <= volumes:
            said.append("a mount of no volume")
        for source in container.get("envFrom", ()):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if key in source and (kind, source[key]["name"]) not in there:
                    said.append(f"there is no {kind} {source[key]['name']}")
        if not {pair["name"] for pair in container.get("env", ())} <= KNOWN_ENV:
            said.append("an environment that Helios does not know")
        ports = {port["name"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.get(probe, {})
            if asked and next(iter(asked.values()))["port"] not in ports:
                said.append(f"{probe} asks a port that is none")
            if "httpGet" in asked and asked["httpGet"]["path"] != "/api/ready":
                said.append(f"{probe} asks {asked['httpGet']['path']}")
        if ports and not {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container):
            said.append("a probe is missing")
    return said


def test_the_manifests_hold_together():
    assert trouble(documents()) == []


def at(found, path):
    *way, last = path
    for key in way:
        found = found[key]
    return found, last


CONTAINER = ("deployment.yaml", "spec", "template", "spec", "containers", 0)


@pytest.mark.parametrize("path,value,said", [
    (("deployment.yaml", "spec", "selector", "matchLabels"), {"app": "other"}, "selector"), (("service.yaml", "spec", "selector"), {"app.kubernetes.io/name": "helios"}, "would send requests"),
    ((*CONTAINER, "readinessProbe", "httpGet", "path"), "/health-check", "asks /health-check"), ((*CONTAINER, "livenessProbe", "tcpSocket", "port"), "web", "a port that is none"),
    ((*CONTAINER, "ports", 0, "containerPort"), 5001, "another port"), ((*CONTAINER, "securityContext"), {"privileged": True}, "was expected"),
    ((*CONTAINER, "resources"), {"requests": {"cpu": "1", "memory": "1Gi"}}, "limits"), (("deployment.yaml", "spec", "template", "spec", "securityContext", "runAsUser"), 0, "1001"),
    ((*CONTAINER, "envFrom", 1, "secretRef", "name"), "other", "no Secret other"), (("storage.yaml", "metadata", "name"), "other", "no claim helios"),
    (("update.yaml", "spec", "schedule"), "daily", "daily"), (("autoscaling.yaml", "spec", "minReplicas"), 1, "no node"), (("update.yaml", "apiVersion"), "batch/v1beta1", "no CronJob"),
    ((*CONTAINER, "volumeMounts", 0, "name"), "none", "a mount"), ((*CONTAINER, "imagePulPolicy"), "Always", "Additional properties"),
])
def test_the_checks_see_what_is_wrong(path, value, said):
    found = copy.deepcopy(documents())
    place, key = at(found, path)
    place[key] = value
    assert any(said in text for text in trouble(found)), trouble(found)


def test_the_probes_ask_what_the_server_answers(home):
    from helios.server import create_app
    app = create_app(Settings())
    rules = {rule.rule for rule in app.url_map.iter_rules()}
    app.extensions["helios"].store.close()
    assert {"/api/ready", "/api/health", "/metrics"} <= rules
    assert documents()["deployment.yaml"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"] in rules


def test_a_pod_has_time_to_stop():
    found = documents()
    pod, grace = found["deployment.yaml"]["spec"]["template"]["spec"], int(found["configmap.yaml"]["data"]["HELIOS_GRACE_S"])
    assert pod["terminationGracePeriodSeconds"] > grace + 5
    data = found["configmap.yaml"]["data"]
    assert set(data) <= KNOWN_ENV and int(data["HELIOS_MAX_STREAMS"]) < int(data["GUNICORN_THREADS"])
    assert all(isinstance(value, str) for value in data.values()) and not [name for name in data if "KEY" in name or "URL" in name]
    assert set(found["secret.example.yaml"]["stringData"]) <= KNOWN_ENV


def test_the_kustomization_names_every_file_but_the_examples():
    found = documents()
    names = {path.name for path in MANIFESTS} - {"kustomization.yaml"}
    assert set(found["kustomization.yaml"]["resources"]) == {name for name in names if ".example." not in name}
    assert found["kustomization.yaml"]["images"] == [{"name": "helios", "newTag": helios.__version__}]
    assert found["train.example.yaml"]["spec"]["template"]["spec"]["containers"][0]["image"] == f"helios:{helios.__version__}"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
def test_kubectl_puts_them_together():
    done = subprocess.run(["kubectl", "kustomize", ROOT / "deploy/kubernetes"], capture_output=True, text=True, check=True)
    built = [*yaml.safe_load_all(done.stdout)]
    assert len(built) == len(documents()["kustomization.yaml"]["resources"])
    images = {c["image"] for _, template in pods({str(i): d for i, d in enumerate(built)}) for c in template["spec"]["containers"]}
    assert images == {f"helios:{helios.__version__}"} and {d["metadata"].get("namespace", "helios") for d in built} == {"helios"}


# --- what the reader is told ---

def commands_in_use():
    text = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)).replace("\\\n", " ")
    for line in blocks.splitlines():
        words = shlex.split(line.partition("#")[0].strip())
        if words[:1] == ["helios"]:
            yield words[1:]
        elif "exec" in words:
            yield words[words.index("exec") + 3:]
    for name, template in pods(documents()):
        for container in template["spec"]["containers"]:
            if "args" in container:
                assert container["args"][0] == "helios", name
                yield container["args"][1:]
    for service in COMPOSE["services"].values():
        if service.get("command", [""])[0] == "helios":
            yield service["command"][1:]


def test_every_command_is_known():
    from helios.cli import main
    found = [*commands_in_use()]
    assert len(found) > 8
    for words in found:
        command = main
        while hasattr(command, "get_command") and words:
            command, words = command.get_command(None, words[0]), words[1:]
            assert command is not None, words
        command.make_context("x", list(words))


def test_every_file_and_name_in_the_readme_is_there():
    text = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.-]+\.yaml)`", text):
        assert (ROOT / "deploy/kubernetes" / name).exists(), name
    assert set(re.findall(r"\b((?:HELIOS|GUNICORN)_[A-Z_]+)\b", text)) - {"HELIOS_PUBLISH"} <= KNOWN_ENV
    assert set(re.findall(r"--build-arg (\w+)", text)) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
