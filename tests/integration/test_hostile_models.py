"""Two hundred hostile model folders against a service that trains."""

import pytest

from tests.integration.hostile_models import in_a_home_of_its_own, is_good


@pytest.mark.slow
def test_a_service_withstands_hostile_model_folders(tmp_path):
    found = in_a_home_of_its_own(tmp_path, folders=200, seed=1)
    assert is_good(found), found
