"""What every test gets: shape checks on mmlib's signatures, one thread, fixed seeds.

``MMLIB_NO_SHAPES=1`` leaves the shape checks out.
"""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Before torch is imported: two workers of two threads each on two cores are five times slower.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.pop("MMLIB_LEDGER", None)  # a test that wants a mode sets it

if os.environ.get("MMLIB_NO_SHAPES", "") in ("", "0"):
    from jaxtyping import install_import_hook

    # All but the exercises: their checkers take any answer, and say themselves what is wrong.
    _modules = {path.stem for path in (Path(__file__).parents[1] / "mmlib").iterdir()}
    install_import_hook(
        [f"mmlib.{name}" for name in sorted(_modules - {"exercises", "__init__", "__pycache__"})],
        "beartype.beartype",
    )

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# The book's own scripts, last on the path, so that they hide no package of the same name.
sys.path.append(str(Path(__file__).parents[1] / "book" / "scripts"))

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

# Examples are the same in every run, and no test fails because the machine is busy.
hypothesis.settings.register_profile("book", deadline=None, derandomize=True)
hypothesis.settings.load_profile("book")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Callable[[Callable], Callable]:
    """Take the shape checks off a function, to see its own errors on bad input."""
    return inspect.unwrap
