"""The compose files and the YAML of the page: they parse, are hardened, and fit the server and the image."""

from __future__ import annotations

import re

import pytest
import yaml

from softkin.settings import ENV_PREFIX, ServerSettings


def load(path, **variables):
    """A compose file with its variables replaced, by their defaults unless given here."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: variables.get(m[1], m[2]), path.read_text())
    return yaml.safe_load(text)


def seconds(text):
    """The number in a duration like 40s."""
    assert text.endswith("s")
    return int(text[:-1])


@pytest.fixture
def compose(root):
    """The compose file with every default."""
    return load(root / "deploy/compose.yaml")


def test_every_yaml_file_and_example_parses(root):
    """Files under deploy/ and the fenced examples of the page."""
    files = [*(root / "deploy").rglob("*.yaml"), *(root / "deploy").rglob("*.yml")]
    examples = re.findall(r"^```yaml\n(.*?)^```", (root / "docs/deploy.md").read_text(), re.MULTILINE | re.DOTALL)

    for text in [*(f.read_text() for f in files), *examples]:
        assert all(document is not None for document in yaml.safe_load_all(text))
    assert len(files) >= 4
    assert examples


def test_no_container_has_more_rights_than_it_needs(compose):
    """Read-only root, no capabilities, no new privileges, nothing published beyond loopback."""
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            assert isinstance(volume, str) or volume["read_only"] is True


def test_the_bundle_is_mounted_where_the_image_serves_it(compose):
    """Read-only, from where `make demo` puts it, and a missing one is an error instead of an empty directory."""
    (volume,) = compose["services"]["softkin"]["volumes"]

    assert volume["source"] == "../runs/demo/bundle"
    assert volume["target"] == "/bundle"
    assert volume["bind"] == {"create_host_path": False}


def test_the_files_it_names_exist(compose, root):
    """Build context, Dockerfile, and what the others are configured by."""
    build = compose["services"]["softkin"]["build"]
    mount = compose["services"]["prometheus"]["volumes"][0]
    others = [v for name, s in compose["services"].items() if name != "softkin" for v in s["volumes"]]

    assert (root / "deploy" / build["context"]).resolve() == root
    assert (root / build["dockerfile"]).is_file()
    assert all((root / "deploy" / v["source"]).exists() for v in others if isinstance(v, dict))
    assert (root / "deploy" / mount["source"] / "prometheus.yml").is_file()
    assert f"--config.file={mount['target']}/prometheus.yml" in compose["services"]["prometheus"]["command"]


def test_prometheus_scrapes_the_service_on_its_metrics_port(compose, root):
    """The target's host is the service's name in compose."""
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]

    assert job["static_configs"][0]["targets"] == [f"softkin:{ServerSettings.model_fields['metrics_port'].default}"]
    assert "softkin" in compose["services"]


def test_grafana_finds_prometheus_and_the_dashboard(compose, root):
    """The service by its name in compose, the file where it is mounted; and only where it is asked for."""
    grafana = compose["services"]["grafana"]
    mounts = {v["source"]: v["target"] for v in grafana["volumes"] if isinstance(v, dict)}
    provisioning = root / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/softkin.yml").read_text())["providers"]
    dashboard = mounts["./grafana/softkin.json"]

    assert grafana["profiles"] == ["grafana"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert source["url"] == "http://prometheus:9090"
    assert source["type"] == "prometheus"
    assert dashboard == f"{provider['options']['path']}/softkin.json"
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard


def test_nobody_can_change_anything_in_grafana(compose):
    """A default password would be one that everybody knows."""
    environment = compose["services"]["grafana"]["environment"]

    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_images_of_others_have_pinned_versions(compose):
    """Never `latest`: a new major version reads rules and dashboards differently."""
    assert re.fullmatch(r"prom/prometheus:v\d+\.\d+\.\d+", compose["services"]["prometheus"]["image"])
    assert re.fullmatch(r"grafana/grafana:\d+\.\d+\.\d+", compose["services"]["grafana"]["image"])


def test_containers_get_longer_to_stop_than_the_server_needs(compose, root):
    """Otherwise Docker kills what a graceful drain would have answered."""
    fields = ServerSettings.model_fields
    page = (root / "docs/deploy.md").read_text()

    needed = fields["drain_delay_seconds"].default + fields["drain_grace_seconds"].default
    assert seconds(compose["services"]["softkin"]["stop_grace_period"]) > needed
    assert int(re.search(r"--stop-timeout (\d+)", page)[1]) > needed


def test_the_health_check_is_the_images(compose, root):
    """Compose and the Dockerfile ask the same question at the same pace."""
    check = compose["services"]["softkin"]["healthcheck"]
    dockerfile = re.sub(r"\\\n\s*", "", (root / "deploy/Dockerfile").read_text())
    value = re.search(r"^HEALTHCHECK (.*)$", dockerfile, re.MULTILINE)[1]

    for option in ("interval", "timeout", "start_period", "retries"):
        assert f"--{option.replace('_', '-')}={check[option]}" in value
    assert value.endswith("CMD " + str(check["test"][1:]).replace("'", '"'))


def test_the_queue_fits_the_limit_on_processes(compose):
    """Each pending request holds a thread."""
    threads = ServerSettings.model_fields["max_pending_requests"].default

    assert compose["services"]["softkin"]["pids_limit"] > 2 * threads


def test_the_cuda_file_refuses_the_cpu_and_asks_for_a_gpu(root):
    """Whoever hands a GPU over wants to know when it is not used."""
    service = load(root / "deploy/compose.cuda.yaml")["services"]["softkin"]

    assert ServerSettings(device=service["environment"]["SOFTKIN_DEVICE"]).device == "cuda"
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_links_within_deploy_files_lead_into_the_page(root):
    """Comments name sections of docs/deploy.md."""
    headings = re.findall(r"^#+ (.+)$", (root / "docs/deploy.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).replace(" ", "-").lower() for h in headings}
    texts = [p.read_text() for p in (root / "deploy").rglob("*.y*ml")]
    named = {name for text in texts for name in re.findall(r"docs/deploy\.md#([\w-]+)", text)}

    assert named
    assert named <= anchors


def test_the_page_names_only_variables_that_exist(root):
    """Those of the server, and those that the compose file replaces; the table of the latter is complete."""
    page = (root / "docs/deploy.md").read_text()
    replaced = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (root / "deploy/compose.yaml").read_text()))
    settings = {ENV_PREFIX + name.upper() for name in ServerSettings.model_fields}
    listed = dict(re.findall(r"^\| `([A-Z_]+)` \| `([^`]*)` \|", page, re.MULTILINE))

    assert set(re.findall(r"\bSOFTKIN_[A-Z_]*[A-Z]\b", page)) <= settings | replaced.keys()
    assert not settings & replaced.keys(), "a variable of the compose file must not look like one of the server"
    assert listed == replaced
