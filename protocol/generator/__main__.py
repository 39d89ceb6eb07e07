"""`python -m protocol.generator` makes the documents anew."""

from protocol.generator.files import made, there


def main() -> None:
    """Write every file that is made, and delete those that are not made any more."""
    files = made()
    for path in there() - files.keys():
        path.unlink()
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


main()
