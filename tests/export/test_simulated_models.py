"""The bundles that the simulation stores are those that the exporter makes from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from export.__main__ import main
from service.repository.bundle import load_bundle
from simulation.bundles import LISTENER, TRANSLATOR
from simulation.exported import REPOSITORY, export


@pytest.mark.parametrize("model", [LISTENER, TRANSLATOR])
def test_a_bundle_is_what_the_exporter_makes(model: str, tmp_path: Path) -> None:
    """If they differ, run `python -m simulation.exported` to make them again."""
    codes: list[int] = []
    export(model, tmp_path, run=lambda arguments: codes.append(main(arguments)))
    assert codes == [0]
    made, kept = (load_bundle(folder / model / "1").manifest for folder in (tmp_path, REPOSITORY))
    assert made.model_dump(exclude={"exported_with"}) == kept.model_dump(exclude={"exported_with"})
