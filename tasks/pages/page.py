"""Pages: the HTML that a run leaves, from the templates beside this file; all show sources by their file names."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


@cache
def template(name: str) -> Template:
    """The template ``tasks/<name>``; whatever a page is given is escaped, and what it lacks is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["file_name"] = name_of
    return environment.get_template(name)


def name_of(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]
