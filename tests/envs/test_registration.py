"""The environment is found by its id: after an import, by the package in the id, and through the entry point."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import gymnasium
import pytest

from splitload.base.errors import ProfileError
from splitload.envs import ENV_ID, register

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GROUP = "gymnasium.envs"
READS_ENTRY_POINTS = int(gymnasium.__version__.split(".")[0]) < 1


def made(env_id, before, profile, folder):
    """Return what a new process says that makes the environment, with every warning an error."""
    (folder / "profile.json").write_text(json.dumps(profile.to_json()))
    code = (
        f"import pathlib, gymnasium\n{before}\n"
        "from splitload.plan.profile import Profile\n"
        f"env = gymnasium.make({env_id!r}, profile=Profile.read(pathlib.Path('profile.json')))\n"
        "env.reset(seed=0)\n"
        "print(env.step(5)[4]['num_stages'])\n"
    )
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize(
    ("env_id", "before"), [(f"splitload.envs:{ENV_ID}", ""), (ENV_ID, "import splitload.envs"), (ENV_ID, "")]
)
def test_make_in_a_fresh_process(profile, tmp_path, env_id, before):
    done = made(env_id, before, profile, tmp_path)
    if (env_id, before) == (ENV_ID, "") and not READS_ENTRY_POINTS:
        assert "Namespace splitload not found" in done.stderr, "this Gymnasium reads entry points: say so in envs/"
    else:
        assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_profile_may_be_the_path_of_its_file(profile, tmp_path, kind):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json()))
    env = gymnasium.make(f"splitload.envs:{ENV_ID}", profile=kind(path), objective="ttfo", max_stages=8)
    assert env.unwrapped.profile == profile
    assert env.unwrapped.max_stages == profile.num_blocks < 8, "the README's call takes what there is"
    with pytest.raises(ProfileError, match="cannot read profile"):
        gymnasium.make(f"splitload.envs:{ENV_ID}", profile=kind(tmp_path / "none.json"))


@pytest.mark.skipif(not READS_ENTRY_POINTS, reason="Gymnasium 1.0 and later reads no entry points")
def test_gymnasium_is_imported_halfway_through_this_package(tmp_path):
    code = f"import splitload.envs, gymnasium\nassert {ENV_ID!r} in gymnasium.registry"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path)


def test_registers_once_and_silently():
    del gymnasium.registry[ENV_ID]
    register()
    spec = gymnasium.registry[ENV_ID]
    register()
    assert gymnasium.registry[ENV_ID] is spec


def test_entry_point_names_what_registers():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, value),) = project["entry-points"][GROUP].items()
    assert name == "__root__", "Gymnasium puts the name of any other before the ids"
    del gymnasium.registry[ENV_ID]
    EntryPoint(name, value, GROUP).load()()
    assert ENV_ID in gymnasium.registry
