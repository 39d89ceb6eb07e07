"""What is made, file by file."""

import json
from pathlib import Path
from typing import Any, Final

from protocol.generator.document import document
from protocol.generator.messages import MESSAGES
from protocol.generator.page import with_tables
from protocol.generator.schemas import as_file, schema_of

FOLDER: Final = Path(__file__).parents[1]
PAGE: Final = FOLDER.parent / "PROTOCOL.md"


def made() -> dict[Path, str]:
    """Return the text of each file that is made, by its path."""
    schemas = {
        FOLDER / "schemas" / f"{name}.json": _json(as_file(name, schema_of(name, model)))
        for name, model in MESSAGES.items()
    }
    return {PAGE: with_tables(PAGE.read_text()), FOLDER / "asyncapi.json": _json(document()), **schemas}


def there() -> set[Path]:
    """Return the paths of the made files that are there."""
    return {PAGE, FOLDER / "asyncapi.json", *(FOLDER / "schemas").glob("*.json")}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
