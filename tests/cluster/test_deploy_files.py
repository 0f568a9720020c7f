"""The files that start clusters: Ray's own schema accepts the one for `ray up`; the KubeRay manifest is consistent."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

DEPLOY = Path(__file__).parents[2] / "deploy"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.mark.cluster
def test_rays_schema_accepts_the_file_for_ray_up() -> None:
    ray = pytest.importorskip("ray")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    Draft7Validator(schema).validate(read("ray-up.yaml"))


def test_the_kuberay_manifest_has_one_image_and_limits_that_equal_its_requests() -> None:
    spec = read("kuberay.yaml")["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for container in containers:  # Ray counts the limits, Kubernetes schedules by the requests
        assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        mounted = {mount["name"] for each in group["template"]["spec"]["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
