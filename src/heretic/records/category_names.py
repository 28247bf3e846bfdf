"""Names of the categories that prompts have."""

NO_CATEGORY = "none"
"""The category of prompts whose cell is empty, in sets that have categories."""


def category_key(name: str) -> str:
    """What two names of one category share: case and white space are ignored."""
    return " ".join(name.split()).casefold()
