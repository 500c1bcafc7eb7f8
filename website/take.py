"""Copy a lesson as a small app: a zip file or a folder."""

import re
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from io import BytesIO
from pathlib import Path

import click
from flask import Blueprint, Response, abort, render_template, send_file
from markupsafe import Markup

from demos import LESSONS
from website.code import line_of, read
from website.needs import imported, lesson_files, with_imports
from website.pages import texts

LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same files make the same zip file

bp = Blueprint("take", __name__, cli_group=None)


@bp.get("/demos/<name>.zip")
def download(name: str) -> Response:
    if name not in LESSONS:
        abort(404, unknown(name))
    return send_file(
        BytesIO(zipped(name)),
        "application/zip",
        as_attachment=True,
        download_name=f"{name}.zip",
    )


@bp.cli.command("take")
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
def take(name: str, folder: Path) -> None:
    """Write the lesson NAME to FOLDER, as a small app."""
    if name not in LESSONS:
        raise click.ClickException(unknown(name))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise click.ClickException(f"{folder} exists and is not empty.")
    try:
        for path, content in app_files(name).items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as new:
                new.write(content)
    except OSError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{folder / 'README.md'} says how to run it.")


def unknown(name: str) -> str:
    return f"There is no lesson {name!r}. The lessons are {', '.join(LESSONS)}."


def zipped(name: str) -> bytes:
    """Return the lesson's app as a zip file with one folder."""
    data = BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in app_files(name).items():
            info = zipfile.ZipInfo(f"{name}/{path}", LONG_AGO)
            info.create_system = 3  # Unix, or the next line is ignored
            info.external_attr = 0o644 << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return data.getvalue()


def app_files(name: str) -> dict[str, bytes]:
    """Return the files of a small app that runs a lesson, by path."""
    lesson, files = texts(LESSONS[name]), lesson_files(name)
    page = f"templates/{name}.html"
    values = {
        "lesson": lesson,
        "lessons": sorted([name, *LESSONS[name].uses]),
        "paths": sorted(files.keys() - {page}),
        "live": Markup(files[page]),
        "imported": imported(files),
        "line": line_of(lesson.attempt_snippets, f"demos/{name}.py"),
    }
    files["app.py"] = render("app.py.jinja", values)
    files = with_imports(files)
    files[page] = render("page.html", values)
    files["README.md"] = render("README.md.jinja", values)
    files["static/style.css"] = read("website/templates/take/style.css")
    files["requirements.txt"] = requirements(imported(files))
    files["LICENSE"] = read("LICENSE")
    return {path: files[path].encode() for path in sorted(files)}


def render(template: str, values: dict[str, object]) -> str:
    return render_template(f"take/{template}", **values) + "\n"


def requirements(modules: set[str]) -> str:
    """Return our pinned versions of the packages with these modules."""
    names = set()
    for name in modules:
        names |= packages().get(name.partition(".")[0], set())
    lines = read("requirements.txt").splitlines(keepends=True)
    return "".join(
        line for line in lines if re.split(r"[\[=]", line)[0] in names
    )


@cache
def packages() -> dict[str, set[str]]:
    """Map each installed module to the packages that contain it."""
    return {
        module: {name.lower().replace("_", "-") for name in names}
        for module, names in packages_distributions().items()
    }
