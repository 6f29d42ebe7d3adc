"""The shape checks of tests/conftest.py are on, and can be taken off."""

import os

import jaxtyping
import pytest
import torch

from mmlib.attention import causal_keep

pytestmark = pytest.mark.skipif(
    os.environ.get("MMLIB_NO_SHAPES", "") not in ("", "0"), reason="MMLIB_NO_SHAPES is set"
)


def test_a_wrong_argument_is_caught_by_the_signature():
    with pytest.raises(jaxtyping.TypeCheckError):
        causal_keep("three")


def test_without_the_checks_a_function_sees_it_itself(unchecked):
    with pytest.raises(Exception, match="three|str|int") as caught:
        unchecked(causal_keep)("three")
    assert not isinstance(caught.value, jaxtyping.TypeCheckError)


def test_every_test_runs_on_one_thread_with_deterministic_algorithms():
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
