import pytest

from tests.eval.suites.hub import HUB


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """Folders of the small copies by suite, read without the network and with a cache of their own."""
    datasets = pytest.importorskip("datasets", reason="the `suites` extra is not installed")
    root = tmp_path_factory.mktemp("hub")
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name, tables in HUB.items():
        for table in tables:
            table.write(root / name)
    yield {name: root / name for name in HUB}
    patch.undo()
