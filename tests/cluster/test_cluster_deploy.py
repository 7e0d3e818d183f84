"""deploy/cluster fits the program: configurations are the program's own and start real servers, what the manifests name
exists, what they wait for is long enough, and their schemas have nothing to say."""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nats
import pytest
import yaml
from nats.js.errors import NoKeysError, NotFoundError
from scenarios.world import PATIENCE_S, ROOT, wait_until

from cluster.rig import Servers, free_ports
from pool.cluster import accounts, wire
from pool.cluster.nats_server import LOOPBACK, configuration, healthy, program
from pool.cluster.topology import ensure
from pool.config.settings import Config, load_config

HERE = ROOT / "deploy" / "cluster"
KUBERNETES = HERE / "kubernetes"
OVERLAYS = ("base", "gpu", "keda", "tls")
COMPOSE: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())
CONFIGS = sorted(HERE.glob("**/*.json"))
SECRETS = {"admin_password", "client_password", "node_password", "route_password", "http_token"}


def name_of(path: Path) -> str:
    return str(path.relative_to(HERE))


def config_of(path: Path) -> Config:
    return load_config(path, engines=False)


# ---- nats-server

FILES = runpy.run_path(str(HERE / "configurations.py"))["FILES"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_configurations_are_what_the_program_writes(path: Path) -> None:
    assert path.read_text() == configuration(FILES[path]), "python deploy/cluster/configurations.py"


def test_one_file_starts_three_servers_that_know_each_other(tmp_path: Path) -> None:
    """The plain configuration with the environment that compose.yaml and the StatefulSet give it, on loopback."""
    ports = free_ports(9)
    environment = {f"{role.upper()}_PASSWORD": f"p{role}" for role in (*accounts.ROLES, "route")}
    environment |= {f"ROUTE_{number}": f"nats://route:proute@{LOOPBACK}:{ports[6 + number]}" for number in range(3)}
    text = (KUBERNETES / "base" / "nats-server.conf").read_text()
    processes = []

    async def use() -> None:
        client = await nats.connect(f"nats://{LOOPBACK}:{ports[0]}", user="admin", password="padmin")
        try:
            await ensure(client.jetstream(), replicas=3, max_waiting=10, result_s=60, lease_s=5)
        finally:
            await client.close()

    try:
        for number in range(3):
            own = text
            for kind, there in enumerate(("0.0.0.0:4222", "0.0.0.0:8222", "0.0.0.0:6222")):
                assert own.count(there) == 1
                own = own.replace(there, f"{LOOPBACK}:{ports[3 * kind + number]}")
            own = own.replace('"/data"', f'"{tmp_path / str(number)}"')
            path = tmp_path / f"{number}.conf"
            path.write_text(own)
            env = {**environment, "SERVER_NAME": f"nats-{number}"}
            processes.append(
                subprocess.Popen(
                    [program(), "-c", str(path)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
        for port in ports[3:6]:
            wait_until(lambda port=port: healthy(LOOPBACK, port), "a server that serves")
        asyncio.run(use())
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ---- configurations of the pool


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_configurations_of_the_pool_are_valid(path: Path) -> None:
    config = config_of(path)
    assert config.notes == ()
    assert config.cluster.replicas == 3
    assert len(config.cluster.servers) == 3
    assert config.cluster.user == ("node" if config.engines else "client")
    assert bool(config.engines) == (path.name == "node.json")
    for engine in config.engines.values():
        assert find_spec(engine.engine.partition(":")[0]) is not None


# ---- containers


def used_secrets(service: dict[str, Any]) -> set[str]:
    return {f"/run/secrets/{name}" for name in service.get("secrets", ())}


def test_compose_mounts_what_its_programs_read() -> None:
    services = COMPOSE["services"]
    assert set(COMPOSE["secrets"]) == SECRETS
    assert all((ROOT / one["file"]).exists() for one in COMPOSE["configs"].values())
    for name, service in services.items():
        for config in service["configs"]:
            path = ROOT / COMPOSE["configs"][config["source"]]["file"]
            if path.suffix == ".json":
                found = config_of(path)
                addresses = {f"nats://{other}:4222" for other in services if other.startswith("nats-")}
                assert set(found.cluster.servers) == addresses
                if name != "setup":
                    assert str(found.cluster.password_file) in used_secrets(service)
                    assert not found.http.token_file or str(found.http.token_file) in used_secrets(service)
    words = services["setup"]["command"]
    assert words[words.index("--password-file") + 1] in used_secrets(services["setup"])
    assert [volume for service in services.values() for volume in service.get("volumes", ())] == [
        f"{name}:{'/data' if name.startswith('nats') else '/var/lib/filepool'}" for name in COMPOSE["volumes"]
    ]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_entrypoint_of_a_server_gives_it_the_environment_that_it_reads(tmp_path: Path) -> None:
    for name in SECRETS:
        (tmp_path / name).write_text(f"p{name}\n")
    service = COMPOSE["services"]["nats-1"]
    shell, flags, script = service["entrypoint"]
    script = script.replace("$$", "$").replace("/run/secrets", str(tmp_path))
    start = f"exec nats-server -c {service['configs'][0]['target']}"
    assert start in script
    argv = [shell, flags, script.replace(start, "exec env -0")]
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"], **service["environment"]}, capture_output=True)
    given = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    wanted = set(re.findall(r"\$([A-Z_0-9]+)", re.sub(r'"[^"]*"', "", FILE_OF_ALL)))
    assert wanted == {"SERVER_NAME", "ROUTE_PASSWORD", *(f"ROUTE_{n}" for n in range(3))} | {
        f"{role.upper()}_PASSWORD" for role in accounts.ROLES
    }
    assert wanted <= set(given)
    assert given["NODE_PASSWORD"] == "pnode_password"
    assert given["ROUTE_2"] == "nats://route:proute_password@nats-2:6222"
    assert given["SERVER_NAME"] == "nats-1"


FILE_OF_ALL = (KUBERNETES / "base" / "nats-server.conf").read_text()


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s?", text)[1])  # type: ignore[index]


def test_a_drain_has_the_time_that_it_takes() -> None:
    for name in ("node-0", "node-1"):
        assert (
            seconds(COMPOSE["services"][name]["stop_grace_period"]) > config_of(HERE / "node.json").drain_grace_s + 30
        )
    for overlay in OVERLAYS:
        for path in (KUBERNETES / overlay).glob("node.json"):
            spec = manifest("node", "StatefulSet", "base")["spec"]["template"]["spec"]
            command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            waits = float(command[command.index("--timeout") + 1])
            assert spec["terminationGracePeriodSeconds"] > waits > config_of(path).drain_grace_s + 10


# ---- Kubernetes


def built(overlay: str) -> list[dict[str, Any]]:
    """What kubectl would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([kubectl, "kustomize", str(KUBERNETES / overlay)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def manifest(name: str, kind: str, overlay: str) -> dict[str, Any]:
    (found,) = [one for one in built(overlay) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pods(overlay: str) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    everything = built(overlay)
    for one in everything:
        if one["kind"] in ("StatefulSet", "Job"):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"], everything


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_fit_their_schemas(overlay: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in built(overlay):
        if not document["apiVersion"].startswith("keda.sh"):  # a kind of its own
            validator.validate(document, "1.30", strict=True)
    wrong = manifest("node", "StatefulSet", "base")
    wrong["spec"]["replicaz"] = 1
    with pytest.raises(Exception, match="replicaz"):
        validator.validate(wrong, "1.30", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_mount_what_their_programs_read(overlay: str) -> None:
    seen = set()
    for name, spec, everything in pods(overlay):
        seen.add(name)
        (container,) = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        files: dict[str, str] = {}
        for volume in spec["volumes"]:
            if "secret" in volume and volume["secret"]["secretName"] == "filepool-cluster":
                items = {item["key"]: item["path"] for item in volume["secret"]["items"]}
                assert set(items) <= SECRETS
                files |= {f"{mounts[volume['name']]}/{path}": key for key, path in items.items()}
            elif "secret" in volume:
                files |= {f"{mounts[volume['name']]}/{key}": key for key in ("ca.crt", "tls.crt", "tls.key")}
            elif "configMap" in volume:
                (found,) = [
                    m
                    for m in everything
                    if m["kind"] == "ConfigMap" and m["metadata"]["name"] == volume["configMap"]["name"]
                ]
                files |= {f"{mounts[volume['name']]}/{key}": text for key, text in found["data"].items()}
        for variable in container.get("env", ()):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                assert variable["valueFrom"]["secretKeyRef"]["key"] in SECRETS
        words = [*container.get("command", ()), *container.get("args", ())]
        if name == "nats":
            text = files[words[words.index("-c") + 1]]
            given = {variable["name"] for variable in container["env"]}
            assert set(re.findall(r"\$([A-Z_0-9]+)", re.sub(r'"[^"]*"', "", text))) <= given
            assert set(re.findall(r'_file: "([^"]+)"', text)) <= set(files)
            assert '"/data"' in text
            assert mounts["data"] == "/data"
            continue
        assert find_spec(words[words.index("-m") + 1]) is not None
        document = json.loads(files["/etc/filepool/config.json"])  # where the image begins
        cluster = document["cluster"]
        read = [words[words.index("--password-file") + 1]] if "--password-file" in words else [cluster["password_file"]]
        read += [cluster["tls_ca"]] if "tls_ca" in cluster else []
        read += [document["http"]["token_file"]] if "http" in document else []
        assert set(read) <= set(files)
        assert name == "cluster-setup" or document["spool"].startswith(mounts["data"])
    assert seen == {"nats", "node", "gateway", "cluster-setup"}


def test_nothing_is_lost_when_a_machine_is_emptied() -> None:
    nats_ = manifest("nats", "StatefulSet", "base")["spec"]
    budget = manifest("nats", "PodDisruptionBudget", "base")["spec"]
    assert nats_["replicas"] == 3
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"] == nats_["selector"]["matchLabels"]
    spec = nats_["template"]["spec"]
    (rule,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert spec["terminationGracePeriodSeconds"] > seconds(re.findall(r'lame_duck_duration: "(\d+s)"', FILE_OF_ALL)[0])
    (claim,) = nats_["volumeClaimTemplates"]
    kept_mb = int(re.findall(r"max_file_store: (\d+)MB", FILE_OF_ALL)[0])
    assert int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 1024 > kept_mb


def test_no_secret_is_in_a_manifest() -> None:
    for overlay in OVERLAYS:
        assert not [one for one in built(overlay) if one["kind"] == "Secret"]
    example = yaml.safe_load((KUBERNETES / "base" / "secret.example.yaml").read_text())
    assert example["stringData"] == dict.fromkeys(example["stringData"], "")
    assert set(example["stringData"]) == SECRETS


def test_the_network_lets_through_what_is_needed() -> None:
    everything = built("base")
    policies = {one["metadata"]["name"]: one["spec"] for one in everything if one["kind"] == "NetworkPolicy"}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    (who,) = policies["nats"]["ingress"][0]["from"]
    wanted = who["podSelector"]["matchLabels"]
    for one in everything:
        if one["kind"] in ("StatefulSet", "Job") and one["metadata"]["name"] != "nats":
            assert wanted.items() <= one["spec"]["template"]["metadata"]["labels"].items()


def test_keda_looks_at_queues_that_there_are() -> None:
    scaled = manifest("node", "ScaledObject", "keda")["spec"]
    assert "replicas" not in manifest("node", "StatefulSet", "keda")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "node"
    engines = config_of(KUBERNETES / "base" / "node.json").engines
    for trigger in scaled["triggers"]:
        about = trigger["metadata"]
        assert (about["account"], about["stream"]) == (accounts.ACCOUNT, wire.JOBS)
        assert about["consumer"] in {wire.consumer(engine, (), "normal") for engine in engines}
        assert about["natsServerMonitoringEndpoint"] == "nats.filepool.svc.cluster.local:8222"


def test_a_node_with_a_gpu_asks_for_one() -> None:
    (container,) = manifest("node", "StatefulSet", "gpu")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["resources"]["limits"]["memory"]
    assert {engine.device for engine in config_of(KUBERNETES / "gpu" / "node.json").engines.values()} == {"cuda"}


# ---- Slurm and systemd


def tool(name: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("argv", [["bash", "-n"], ["shellcheck"]], ids=["bash", "shellcheck"])
def test_the_script_for_slurm_is_sound(argv: list[str]) -> None:
    script = HERE / "slurm" / "node.sbatch"
    done = subprocess.run([tool(argv[0]), *argv[1:], str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script.read_text(), re.MULTILINE))
    grace_s = int(re.findall(r"B:TERM@(\d+)", options["signal"])[0])
    assert "requeue" in options
    assert grace_s > 100  # what the script leaves to a drain


def test_a_task_of_slurm_is_a_node_until_its_time_is_over(tmp_path: Path) -> None:
    """Slurm itself is not here: what it sets and sends comes from the test, and `scontrol` notes it."""
    folder = tmp_path / "shared"
    folder.mkdir()
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tools / "scontrol").chmod(0o755)
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    async def nodes(servers: Servers) -> list[str]:
        async with servers.connected() as client:
            with contextlib.suppress(NoKeysError, NotFoundError):
                return list(await (await client.jetstream().key_value(wire.NODES)).keys())
            return []

    with Servers(tmp_path) as servers:
        cluster = {"servers": servers.urls, "lease_s": 2}
        document = {"min_free_mb": 0, "engines": {"echo": {"engine": "inference.fake:Echo"}}, "cluster": cluster}
        (folder / "config.json").write_text(json.dumps(document))
        env = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FILEPOOL_PYTHON": sys.executable,
            "FILEPOOL_CONFIG": str(folder / "config.json"),
            "FILEPOOL_SCRATCH": str(scratch),
            "SLURM_JOB_ID": "9",
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "2",
        }
        with open(tmp_path / "log", "w") as log:
            task = subprocess.Popen(["bash", str(HERE / "slurm" / "node.sbatch")], env=env, stdout=log, stderr=log)
        try:
            wait_until(lambda: asyncio.run(nodes(servers)) == ["slurm-7-2"], "a node in the cluster")
            task.terminate()
            assert task.wait(PATIENCE_S) == 0, (tmp_path / "log").read_text()
        finally:
            task.kill()
            task.wait()
        assert asyncio.run(nodes(servers)) == []
    assert (tmp_path / "asked").read_text() == "requeue 9\n"
    assert list(scratch.iterdir()) == []  # and the folder that all machines see is as it was
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(HERE / "systemd" / name)
    return parser["Service"]


def test_units_say_what_the_programs_do() -> None:
    node, server = unit("filepool-node.service"), unit("filepool-nats.service")
    module = re.findall(r"-m ([a-z.]+)", node["ExecStart"])[0]
    assert find_spec(module) is not None
    default = load_config(ROOT / "deploy" / "config.json")
    assert seconds(node["TimeoutStopSec"]) > default.drain_grace_s + 10
    assert node["RestartPreventExitStatus"] == "4 6"
    assert node["KillMode"] == "process"  # what it started is adopted by the next one
    assert server["KillSignal"] == "SIGUSR2"
    assert seconds(server["TimeoutStopSec"]) > 30
