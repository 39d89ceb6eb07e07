"""What is made, file by file."""

import json
from pathlib import Path
from typing import Any, Final

from protocol.generator.document import document
from protocol.generator.messages import MESSAGES
from protocol.generator.schemas import as_file, sent, told

FOLDER: Final = Path(__file__).parents[1]


def made() -> dict[Path, str]:
    """Return the text of each file that is made, by its path."""
    schemas = {
        FOLDER / "schemas" / f"{name}.json": _json(as_file(name, (sent if name.startswith("request.") else told)(model)))
        for name, model in MESSAGES.items()
    }
    return {FOLDER / "asyncapi.json": _json(document()), **schemas}


def there() -> set[Path]:
    """Return the paths of the made files that are there."""
    return {FOLDER / "asyncapi.json", *(FOLDER / "schemas").glob("*.json")}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
