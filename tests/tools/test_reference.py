"""The reference has all that the code has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from meshd import schemas
from meshd.config_reference import reference
from meshd.ctl.commands import COMMANDS
from tests.meshd.schema import closed, validate
from tools.referrer import main, pages


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference") / "pages"
    assert main.main([str(directory)]) == 0
    return directory


def test_every_command_has_a_section_and_a_schema(written: Path) -> None:
    text = (written / "meshctl.md").read_text()
    for command in COMMANDS:
        assert f"\n## meshctl {command.words}\n" in text
        assert f"Example: `{command.example}`" in text
        schema = json.loads((written / f"schemas/meshctl-{command.words.replace(' ', '-')}.schema.json").read_text())
        Draft202012Validator.check_schema(schema)
        assert schema["title"] == f"meshctl {command.words} --json"
    assert "`--watch [SECONDS]`" in text and "`destination`" not in text and "`DEST`" in text


def test_every_method_key_and_metric_has_its_place(written: Path) -> None:
    text = (written / "rpc.md").read_text()
    assert all(f"\n## {name}\n" in text for name in pages.method_table())
    assert "| `interfaces[].name` | string |" in text
    text = (written / "configuration.md").read_text()
    assert all(f"| `{key.name}` |" in text for key in reference())
    assert "## [[interface]]" in text and "| `name` | *required* |" in text
    assert "| `meshd_neighbour_bytes_total` | counter |" in (written / "metrics.md").read_text()


@pytest.mark.parametrize(
    "schema", [schemas.STATUS, schemas.NEIGHBOUR, schemas.PATH], ids=["status", "neighbour", "path"]
)
def test_schemas_refuse_what_lacks_a_field_and_when_closed_what_has_another(schema: schemas.Schema) -> None:
    validate(pages.sample(schemas.FEE), closed(schemas.FEE))
    made = pages.sample(schema)
    name = schema["required"][0]
    with pytest.raises(ValidationError):
        validate({key: value for key, value in made.items() if key != name}, schema)
    with pytest.raises(ValidationError, match="Additional properties"):
        validate(made | {"more": 1}, closed(schema))
