"""Writes a run's report: evidence, pictures and attention maps into one HTML file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artkv import shell
from artkv.config import Config, override_config
from artkv.errors import UserError
from artkv.evaluation.results import selection_note
from artkv.evaluation.run_roles import CONTROL
from artkv.files import check_writable, reason_of, told, write_whole
from artkv.report.attention import as_json, describe, read_attention, telling_rows
from artkv.report.cases import Case, gallery, join_cases, telling_images
from artkv.report.differences import described_comparison
from artkv.report.evidence import Evidence, read_evidence
from artkv.report.facts import without_folders
from artkv.report.page import Note, is_own_page, json_for_script, render
from artkv.report.pictures import Pictures, take_pictures
from artkv.run_folder.layout import REPORT

if TYPE_CHECKING:  # with the model comes torch
    from artkv.evaluation.attention import PaintingAttention

# Mail servers commonly refuse attachments of more than 25 MB.
MOST_BYTES = 24_000_000
# Of the page without data: texts, plots, script and style.
_FRAME_BYTES = 400_000
DEFAULT_ATTENTION = 12


@dataclass(frozen=True)
class ReportSettings:
    """What a report is of, and what goes into it.

    run_dir: the run's folder. controls: folders of runs without a prefix. split: None for test, val or train, the first
    that was evaluated. output: the file; None for `report.html` in the run's folder. pictures: most of them; None for
    as many as the file has room for. attention: paintings with maps; None for a dozen where the model can be loaded.
    overrides: of the run's config, as `section.key=value`.
    """

    run_dir: Path
    controls: Sequence[Path] = ()
    split: str | None = None
    output: Path | None = None
    pictures: int | None = None
    attention: int | None = None
    overrides: Sequence[str] = ()


def write_report(settings: ReportSettings) -> Path:
    """Writes the report, whole or not at all, and returns its path.

    Raises:
        UserError: if the folder holds no run or no evaluation, a control did not answer the same questions, the output
            is a folder or a file that is no report, or attention was asked for and the model cannot be loaded, or an
            override is why it cannot.
    """
    output = settings.output or settings.run_dir / REPORT
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; give a file in it, such as {output / REPORT}")
    is_other = output.exists() and not output.is_file()  # a device, which is told below
    if settings.output is not None and output.suffix.lower() not in (".html", ".htm") and not is_other:
        found = "is there already, and no HTML" if output.is_file() else "would hold HTML"
        raise UserError(f"--output {output}: {found}; give the page a name of its own in .html")
    if output.is_file():
        _check_own_page(output)
    if settings.run_dir.is_dir():  # else that is told
        check_writable(output, f"--output {output}")
    evidence = read_evidence(settings.run_dir, settings.controls, settings.split)
    config = override_config(evidence.config, settings.overrides)
    cases = join_cases(evidence.evaluations)
    attentions, attention_note = _attention(settings, evidence, config, cases)
    images = telling_images(cases)
    texts = json_for_script(gallery(evidence.evaluations, cases, images))
    room = MOST_BYTES - _FRAME_BYTES - len(texts.encode(errors="replace"))
    pictures = take_pictures(images, config.dataset.image_root, settings.pictures, room)
    _tell_missing(pictures, settings)
    html = render(
        evidence,
        {
            **described_comparison(evidence),
            "notes": _notes(evidence, settings),
            "attention": describe(attentions, evidence.has_prefix) if attentions else None,
            "attention_note": attention_note,
            "picture_note": _picture_note(pictures, settings),
            "gallery_json": json_for_script(gallery(evidence.evaluations, cases, pictures.images)),
            "pictures_json": json_for_script(list(pictures.jpegs)),
            "attention_json": json_for_script(as_json(attentions, evidence.has_prefix)),
        },
    )
    # A lone surrogate stands for a byte that was no UTF-8.
    with told(f"--output {output}", "make room there, or give another file"):
        write_whole(output, lambda path: path.write_text(html, encoding="utf-8", errors="replace"))
    return output


def _check_own_page(output: Path) -> None:
    """Raises `UserError` for a file that is there and that another report may not replace."""
    try:
        is_own = is_own_page(output)
    except OSError as error:
        raise UserError(
            f"--output {output}: is there already, and cannot be read ({reason_of(error)}); give another name"
        ) from None
    if not is_own:
        raise UserError(
            f"--output {output}: is there already, and no report of artkv's; remove it, or give another name"
        )


def _notes(evidence: Evidence, settings: ReportSettings) -> list[Note]:
    notes = []
    compare = shell.command("artkv", "compare", settings.run_dir, *settings.controls, "--split", evidence.split)
    compared = {} if evidence.comparison is None else evidence.comparison.against
    if not evidence.has_prefix:
        notes.append(Note("This run was trained without a prefix, as a control: it has no prefix to judge."))
    elif evidence.comparison is None:
        notes.append(Note("Differences and verdicts are missing. To make them, and then this report again:", compare))
    elif settings.controls and CONTROL not in compared:
        notes.append(Note("Differences to the control are missing. To make them, and then this report again:", compare))
    chosen = selection_note(evidence.run_dir, evidence.split, evidence.evaluations[0].checkpoint)
    told_by = () if evidence.comparison is None else evidence.comparison.notes
    notes += [
        Note(f"{text[0].upper()}{text[1:]}.") for text in dict.fromkeys([*([chosen] if chosen else []), *told_by])
    ]
    checkpoints = {one.checkpoint for one in evidence.evaluations if one.name != CONTROL}
    if len(checkpoints) > 1:
        notes.append(
            Note(f"The answers are of different checkpoints, {', '.join(sorted(checkpoints))}: evaluate all anew.")
        )
    return notes


def _is_of(error: UserError, overrides: Sequence[str]) -> bool:
    """Whether an error tells of what an override gives: by its key, or its value."""
    pairs = [override.partition("=")[::2] for override in overrides]
    return any(key in str(error) or (value and value in str(error)) for key, value in pairs)


def _attention(
    settings: ReportSettings, evidence: Evidence, config: Config, cases: Sequence[Case]
) -> tuple["list[PaintingAttention]", Note | None]:
    """The maps that were asked for, or those that come by default; without any, the reason and what adds them."""
    wanted = DEFAULT_ATTENTION if settings.attention is None else settings.attention
    split = [] if settings.split is None else ["--split", settings.split]
    number = str(wanted or DEFAULT_ATTENTION)
    adds = shell.command("artkv", "report", settings.run_dir, *settings.controls, *split, "--attention", number)
    if wanted == 0:
        return [], Note("This report was made without attention maps. To add them:", adds)
    try:
        return read_attention(evidence, config, telling_rows(cases, wanted)), None
    except UserError as error:
        if settings.attention is not None:
            raise
        if _is_of(error, settings.overrides):  # which was meant, and is wrong
            raise UserError(f"{error}; or give --attention 0, for a report without maps") from None
        first_line = without_folders(str(error).splitlines()[0])
        print(f"artkv: no attention maps: {error}", file=sys.stderr)
        return [], Note(
            f"There are no attention maps, for which the model is needed ({first_line}). To add them:", adds
        )


def _tell_missing(pictures: Pictures, settings: ReportSettings) -> None:
    """Raises `UserError` where another folder of pictures was asked for, and holds none of them; else says it."""
    if not pictures.missing:
        return
    if not pictures.images and any(setting.startswith("dataset.image_root=") for setting in settings.overrides):
        raise UserError(
            f"--set dataset.image_root: holds none of the pictures, of which the first is: {pictures.missing[0]}"
        )
    print(f"artkv: {len(pictures.missing)} pictures left out; the first: {pictures.missing[0]}", file=sys.stderr)


def _picture_note(pictures: Pictures, settings: ReportSettings) -> str:
    held = f"{len(pictures.images):,} pictures are in this file"
    if pictures.left_out:
        why = "as was asked" if len(pictures.images) == settings.pictures else "so that it can be mailed"
        held += f"; {pictures.left_out:,} are left out, {why}: those whose answers differ came first"
    if pictures.missing:
        held += f"; {len(pictures.missing):,} could not be read ({without_folders(pictures.missing[0])})"
    return f"{held}."
