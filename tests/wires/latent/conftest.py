import pytest

from tests.support.latent_wires import text_models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return text_models(tmp_path_factory.mktemp("text_models"))
