"""The tree of errors: one root, builtin bases, and the picture of it at the head of the file."""

from __future__ import annotations

import inspect
import re

import pytest

from splitload import SplitloadError
from splitload.base import errors

LEAVES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, SplitloadError)]


def test_the_picture_is_the_tree() -> None:
    drawn = re.findall(r"^[├└]── (\w+) \((\w+)\)", errors.__doc__ or "", flags=re.MULTILINE)
    real = [(leaf.__name__, leaf.__bases__[1].__name__) for leaf in LEAVES if leaf is not SplitloadError]
    assert drawn == real


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if leaf is not SplitloadError])
def test_every_leaf_is_also_a_builtin(leaf: type[Exception]) -> None:
    assert leaf.__bases__[0] is SplitloadError
    assert leaf.__bases__[1].__module__ == "builtins"
    assert str(leaf("what, expected, actual, cure")) == "what, expected, actual, cure"
    assert leaf.__doc__


def test_unknown_name_says_what_is_near_and_what_is_known() -> None:
    error = errors.unknown_name("device", "s21", ["s20", "host"])
    assert isinstance(error, errors.UsageError)
    assert str(error) == "unknown device 's21'. Did you mean s20? Known: host, s20."
    assert str(errors.unknown_name("device", "zzz", ["s20"])) == "unknown device 'zzz'. Known: s20."
