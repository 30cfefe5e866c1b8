"""The environment is found by its id: after an import, or by the package in the id."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

from splitload.base.errors import ProfileError
from splitload.envs import ENV_ID, register


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
    if (env_id, before) == (ENV_ID, ""):
        assert "Namespace splitload not found" in done.stderr, "this Gymnasium reads entry points: say so in envs/"
    else:
        assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_profile_may_be_the_path_of_its_file(profile, tmp_path, kind):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile.to_json()))
    env = gymnasium.make(f"splitload.envs:{ENV_ID}", profile=kind(path), objective="ttfo", max_stages=8)
    assert env.unwrapped.profile == profile
    assert env.unwrapped.max_stages == profile.num_blocks < 8, "the call in docs/environment.md takes what there is"
    with pytest.raises(ProfileError, match="cannot read profile"):
        gymnasium.make(f"splitload.envs:{ENV_ID}", profile=kind(tmp_path / "none.json"))


def test_registers_once_and_silently():
    del gymnasium.registry[ENV_ID]
    register()
    spec = gymnasium.registry[ENV_ID]
    register()
    assert gymnasium.registry[ENV_ID] is spec
