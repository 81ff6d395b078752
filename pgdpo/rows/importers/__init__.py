"""Other people's preference data -> a manifest: one small file per format, one line each in the registry."""

from __future__ import annotations

from pgdpo.rows.importers.format import Format, Options
from pgdpo.rows.importers.formats import (
    best_of_n,
    densedpo,
    folders,
    localdpo,
    pickapic,
    rapidata,
    table,
    trl,
    videoalign,
    videodpo,
)
from pgdpo.rows.importers.run import Summary, import_data

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        pickapic.FORMAT,
        videodpo.FORMAT,
        videoalign.FORMAT,
        rapidata.FORMAT,
        densedpo.FORMAT,
        localdpo.FORMAT,
        folders.FORMAT,
        trl.FORMAT,
        best_of_n.FORMAT,
        table.FORMAT,
    )
}

__all__ = ["FORMATS", "Format", "Options", "Summary", "import_data"]
