"""The placeholders of a prompt: `{column}` is a column of the rows, `{{` and `}}` are braces."""

import re

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}")


def names_in(template: str) -> list[str]:
    """The columns that a template names, each once, in order."""
    names = (match.group(1) for match in PLACEHOLDER.finditer(template))
    return list(dict.fromkeys(name for name in names if name is not None))


def fault(template: str) -> str | None:
    """What is wrong with the placeholders of a template, as a clause; None if nothing is."""
    rest = PLACEHOLDER.sub(lambda match: " " * len(match.group()), template)
    brace = re.search(r"[{}]", rest)
    if brace is not None:
        start = brace.start()
        return (
            f"has a brace without its pair at {template[start : start + 20]!r}, expected columns "
            "in braces, as {text}; close the brace, or write {{ and }} for braces in the prompt"
        )
    if not names_in(template):
        return (
            "names no column, so that all rows would have the same prompt; name one in braces, as "
            "{text}"
        )
    return None
