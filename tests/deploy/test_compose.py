"""Compose file, Dockerfile and .env.example hold together and with the service's settings. Needs no container tool.

What the image itself does is shown by deploy/check.sh.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from sqlalchemy import make_url

from services.settings import Settings, engine_environment

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
# What only the API reads; it alone runs the reconcile loop, asks the dashboard and takes uploads.
API_VARIABLES = {
    "WMSS_RAY_DASHBOARD_URL",
    "WMSS_SERVE_URL",
    "WMSS_CHAT_IDLE_S",
    "WMSS_CHAT_START_S",
    "WMSS_MAX_RUNNING_JOBS",
    "WMSS_MAX_ATTEMPTS",
    "WMSS_MAX_LOST_HOURS",
    "WMSS_RECONCILE_S",
    "WMSS_MAX_FILE_BYTES",
    "WMSS_HUB",
}


def compose(name="docker-compose.yml"):
    return yaml.safe_load((ROOT / name).read_text())


def services():
    return compose()["services"]


def with_defaults(value):
    return VARIABLE.sub(lambda match: match[2], value)


def environments():
    return {name: service.get("environment", {}) for name, service in services().items()}


def is_one_shot(name):
    waited_for = [service.get("depends_on", {}).get(name, {}).get("condition") for service in services().values()]
    return services()[name]["restart"] == "no" and "service_completed_successfully" in waited_for


def test_only_the_api_can_be_published_beyond_this_machine():
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert set(published) == {"api", "ray-head"}
    assert [port.startswith("127.0.0.1:") for port in published["ray-head"]] == [True]
    [api] = published["api"]
    assert with_defaults(api) == "127.0.0.1:8000:8000"
    assert not any("network_mode" in service and service["network_mode"] == "host" for service in services().values())


@pytest.mark.parametrize("name", services())
def test_services_have_a_health_check_that_others_wait_for(name):
    service = services()[name]
    if is_one_shot(name):
        assert "healthcheck" not in service
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
    for other, wait in service.get("depends_on", {}).items():
        expected = "service_completed_successfully" if is_one_shot(other) else "service_healthy"
        assert wait == {"condition": expected}


@pytest.mark.parametrize("name", services())
def test_nobody_is_root(name):
    service = services()[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    if "user" in service:
        assert int(service["user"].split(":")[0]) > 0
    else:
        assert service["image"].startswith("wmss:")  # whose user is checked in the Dockerfile


def test_every_target_ends_as_the_same_user_who_is_not_root():
    stages, users = {}, {}
    for line in (ROOT / "deploy/Dockerfile").read_text().splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            stage = match[2]
            users[stage] = users.get(match[1], "0:0")
            stages[stage] = match[1]
        elif match := re.match(r"USER (\S+)", line):
            users[stage] = match[1]
    assert users["cpu"] == users["cuda"] == "10001:10001"


@pytest.mark.parametrize("files", [["docker-compose.yml"], ["docker-compose.yml", "deploy/docker-compose.cuda.yml"]])
def test_all_of_ours_run_one_build(files):
    images, builders = {}, set()
    for file in files:
        for name, service in compose(file)["services"].items():
            images[name] = service.get("image", images.get(name))
            builders |= {name} if "build" in service else set()
    ours = {image for name, image in images.items() if name != "postgres"}
    assert len(ours) == len(builders) == 1
    targets = re.findall(r"FROM \S+ AS (\S+)", (ROOT / "deploy/Dockerfile").read_text())
    [builder] = builders
    assert compose(files[-1])["services"][builder]["build"]["target"] in targets


def wmss_variables(names):
    return {name for name in names if name.startswith("WMSS_")}


def test_every_setting_is_passed_and_every_variable_is_a_setting():
    """To the API. Head and worker need those of them that drivers, engines and training workers read."""
    settings = {f"WMSS_{name.upper()}" for name in Settings.model_fields}
    assert wmss_variables(environments()["api"]) == settings
    assert wmss_variables(environments()["ray-head"]) == settings - API_VARIABLES
    assert environments()["ray-head"] == environments()["ray-worker"]
    assert wmss_variables(name for name, _ in explained_variables()) <= settings


def test_defaults_are_those_of_the_service():
    for name, default in explained_variables():
        if name.startswith("WMSS_") and name != "WMSS_DATABASE_URL":
            field = Settings.model_fields[name.removeprefix("WMSS_").lower()]
            assert float(default) == field.default, name


def test_the_chat_engines_proxy_is_where_the_api_looks_for_it_and_nowhere_else():
    """Ray Serve's proxy, which asks nobody for a key, listens on the head."""
    head, url = environments()["ray-head"], urlsplit(environments()["api"]["WMSS_SERVE_URL"])
    assert (url.hostname, str(url.port)) == ("ray-head", head["WMSS_SERVE_PORT"])
    assert head["WMSS_SERVE_HOST"] == "0.0.0.0"
    for service in services().values():
        assert not any(port.endswith(f":{url.port}") for port in service.get("ports", []))


def test_env_example_explains_every_variable_with_its_default():
    used = VARIABLE.findall((ROOT / "docker-compose.yml").read_text())
    assert dict(explained_variables()) == dict(used)
    assert len(dict(used)) == len(set(used)), "one variable has two defaults"
    assert {name for name, _ in VARIABLE.findall((ROOT / "deploy/docker-compose.cuda.yml").read_text())} <= dict(
        used
    ).keys()
    assert "${" not in VARIABLE.sub("", (ROOT / "docker-compose.yml").read_text())


def explained_variables():
    """Variable lines of .env.example; each stands below a line that explains it."""
    text = (ROOT / ".env.example").read_text()
    assert not re.search(r"\n\n# \w+=", text)
    return re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["api", "ray-head", "ray-worker"])
def test_nodes_have_the_environment_that_wmss_serve_gives_them(name, monkeypatch):
    for variable in engine_environment():
        monkeypatch.delenv(variable, raising=False)
    environment = {key: with_defaults(value) for key, value in environments()[name].items()}
    assert engine_environment().items() <= environment.items()
    assert environment["RAY_AUTH_MODE"] == "token"


def test_no_environment_holds_a_secret():
    for environment in environments().values():
        for key, value in environment.items():
            assert not re.search("PASSWORD|SECRET|TOKEN", key) or key.endswith(("_FILE", "_PATH", "_PARALLELISM")), key
            if key == "WMSS_DATABASE_URL":
                assert make_url(with_defaults(value)).password is None


def test_api_head_and_workers_share_home_secrets_and_models():
    assert services()["api"]["volumes"] == services()["ray-head"]["volumes"] == services()["ray-worker"]["volumes"]
    mounts = dict(with_defaults(volume).split(":")[:2] for volume in services()["api"]["volumes"])
    environment = environments()["api"]
    assert mounts["home"] == environment["WMSS_HOME"]
    assert mounts["./models"] == environment["WMSS_MODEL_ROOTS"]
    for variable in ("PGPASSFILE", "RAY_AUTH_TOKEN_PATH"):
        assert Path(environment[variable]).parent == Path(mounts["secrets"])


def test_the_build_context_holds_what_is_copied_and_nothing_else():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    sources = {source.split("/")[0] for line in copied for source in line.split()}
    assert sources == allowed
    assert all((ROOT / source).exists() for source in sources)
