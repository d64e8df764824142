"""What tests of several folders share; no test module imports another."""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("checks", "jobs", "namespace", "operators")))
