"""`heretic audit FOLDER`: check a saved model against its base and its documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from heretic.cli.options import check_saved
from heretic.errors import ExportError
from heretic.system.display import json_text, safe
from heretic.system.models import check_model_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from heretic.compare.findings import Finding


@click.command("audit", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--base",
    metavar="MODEL",
    help="The base model: folder or Hub id. Default: the one that the folder's documents name, "
    "looked for beside the folder, in it and here, or in the Hub's cache.",
)
@click.option("--base-commit", metavar="COMMIT", help="Its branch, tag or commit on the Hub.")
@click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with the base's configuration."
)
@click.option(
    "--digests/--no-digests",
    default=True,
    help="Whether weight files are hashed. Default: digests.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(
    folder: Path,
    base: str | None,
    base_commit: str | None,
    trust_remote_code: bool,
    digests: bool,
    as_json: bool,
) -> int:
    """Check the model or adapter that Heretic saved in FOLDER. Nothing is changed.

    Compared with the base: which tensors there are, which differ, by which rank, and the files
    beside them. Compared with each other: digests, index, reproduce.json and the card's figures.
    The exit status is 1 if something is wrong.
    """
    check_saved(folder)
    from heretic.export.files import REPRODUCTION

    if not (folder / REPRODUCTION).exists():
        raise ExportError(
            f"{folder} holds no {REPRODUCTION}, which every model that Heretic saved has.",
            remedy="`heretic compare` compares any two models.",
        )
    if base is not None:
        check_model_named(base, base_commit)
    from rich.console import Console

    from heretic.cli.display.reporter import make_reporter
    from heretic.compare.audit import audit
    from heretic.compare.findings import failures
    from heretic.model.source import ModelSource

    source = None
    if base is not None:
        source = ModelSource(
            model=base, model_commit=base_commit, trust_remote_code=trust_remote_code
        )
    with make_reporter(Console(stderr=True)) as display:
        findings = audit(folder, display, base=source, digests=digests)
    failed = bool(failures(findings))
    if as_json:
        data = {
            "folder": str(folder),
            "failed": failed,
            "findings": [finding.to_dict() for finding in findings],
        }
        click.echo(json_text(data, indent=2))
    else:
        _print(folder, findings)
    return 1 if failed else 0


def _print(folder: Path, findings: Sequence[Finding]) -> None:
    """The verdict, then one line for each finding."""
    from rich.text import Text

    from heretic.cli.display.text import make_console
    from heretic.compare.findings import failures

    console = make_console()
    wrong = failures(findings)
    rest = [finding for finding in findings if not finding.failed]
    if wrong:
        verdict, style = f"{folder} fails: {len(wrong)} findings.", "red"
    elif rest:
        verdict, style = f"Nothing wrong was found in {folder}; not all was audited.", "yellow"
    else:
        verdict, style = f"{folder} is what its plan and its documents say.", "green"
    console.print(Text(safe(verdict), style=style))
    for finding in (*wrong, *rest):
        mark = "✗" if finding.failed else "-"
        console.print(Text(safe(f"{mark} {finding.check}: {finding.text}")))
