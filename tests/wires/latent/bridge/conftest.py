import pytest

from tests.support.bridges import reader_lm, saved, source_lm


@pytest.fixture(scope="session")
def source():
    return source_lm()


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    lm = saved(reader_lm(), tmp_path_factory.mktemp("models"))
    lm.model.requires_grad_(False)
    return lm
