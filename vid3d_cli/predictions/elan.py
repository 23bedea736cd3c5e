"""Segments as an ELAN annotation file: a tier per stream, or per stream and class if classes may overlap.

Source: the schema EAFv3.0.xsd (https://www.mpi.nl/tools/elan/EAFv3.0.xsd).
"""

from __future__ import annotations

import mimetypes
import os
from datetime import datetime
from typing import TYPE_CHECKING
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ..segments import Segment
from ..text import printable
from ..version import __version__
from ..video.sources import is_url, without_password
from .formats import Writer
from .subtitles import span_ms
from .views import shown_streams

if TYPE_CHECKING:
    from ..results import VideoResult

_TYPE, _CLASSES = "segment", "classes"
_UNDETERMINED = {  # as ELAN writes it
    "LANG_ID": "und",
    "LANG_DEF": "http://cdb.iso.org/lg/CDB-00130975-001",
    "LANG_LABEL": "undetermined (und)",
}


class Eaf(Writer):
    """Writes the tiers of one video."""

    holds_many = False

    def write(self, result: VideoResult, name: str) -> None:
        root = Element(
            "ANNOTATION_DOCUMENT",
            {
                "AUTHOR": f"vid3d {__version__}",
                "DATE": datetime.now().astimezone().isoformat(timespec="seconds"),
                "FORMAT": "3.0",
                "VERSION": "3.0",
                "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
                "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
            },
        )
        header = SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
        SubElement(header, "MEDIA_DESCRIPTOR", self._media(result.video))
        time_order = SubElement(root, "TIME_ORDER")
        slots: list[Element] = []
        for tier, segments in self._tiers(result).items():
            _add_tier(root, tier, segments, slots)
        time_order.extend(sorted(slots, key=lambda slot: int(slot.attrib["TIME_VALUE"])))
        annotations = SubElement(header, "PROPERTY", NAME="lastUsedAnnotationId")
        annotations.text = str(len(slots) // 2)
        facts = {"TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false", "CONTROLLED_VOCABULARY_REF": _CLASSES}
        SubElement(root, "LINGUISTIC_TYPE", {"LINGUISTIC_TYPE_ID": _TYPE, **facts})
        SubElement(root, "LANGUAGE", _UNDETERMINED)
        vocabulary = SubElement(root, "CONTROLLED_VOCABULARY", CV_ID=_CLASSES)  # ELAN offers its values in a menu
        SubElement(vocabulary, "DESCRIPTION", LANG_REF="und")
        for number, label in enumerate(dict.fromkeys(map(printable, result.labels)), start=1):
            entry = SubElement(vocabulary, "CV_ENTRY_ML", CVE_ID=f"cveid{number}")
            SubElement(entry, "CVE_VALUE", DESCRIPTION="", LANG_REF="und").text = label
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        self.stream.write(f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')

    def _tiers(self, result: VideoResult) -> dict[str, list[Segment]]:
        """Return the segments by the name of their tier."""
        streams = shown_streams(result)
        is_multi_label = self.choices.rule.multi_label
        tiers: dict[str, list[Segment]] = {} if is_multi_label else {stream: [] for stream in streams}
        for segment in result.segments_by(self.choices.rule, streams):
            tier = f"{segment.stream}: {printable(segment.label)}" if is_multi_label else segment.stream
            tiers.setdefault(tier, []).append(segment)
        return tiers

    def _media(self, video: str) -> dict[str, str]:
        mime_type = mimetypes.guess_type(video)[0] or ""
        facts = {"MIME_TYPE": mime_type if mime_type.startswith("video/") else "unknown"}
        if is_url(video):
            return {"MEDIA_URL": printable(without_password(video)), **facts}
        absolute = os.path.abspath(video)  # noqa: PTH100  (links stay)
        # Without percent escapes, as ELAN writes and reads it (`FileUtility.urlToAbsPath`).
        facts = {"MEDIA_URL": printable(f"file://{absolute}"), **facts}
        if self.path is not None:
            relative = os.path.relpath(absolute, self.path.absolute().parent)
            facts["RELATIVE_MEDIA_URL"] = printable(relative if relative.startswith("../") else f"./{relative}")
        return facts


def _add_tier(root: Element, name: str, segments: list[Segment], slots: list[Element]) -> None:
    """Append a tier; and to `slots` two time slots per segment, which no other segment uses."""
    tier = SubElement(root, "TIER", LINGUISTIC_TYPE_REF=_TYPE, TIER_ID=name)
    last_end = 0
    for segment in segments:
        start, end = span_ms(segment)
        start = max(start, last_end)  # segments of less than 1 ms would overlap
        end = last_end = max(end, start + 1)
        annotation = SubElement(
            SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION", ANNOTATION_ID=f"a{len(slots) // 2 + 1}"
        )
        for number, ms in ((1, start), (2, end)):
            slot = f"ts{len(slots) + 1}"
            slots.append(Element("TIME_SLOT", TIME_SLOT_ID=slot, TIME_VALUE=str(ms)))
            annotation.set(f"TIME_SLOT_REF{number}", slot)
        SubElement(annotation, "ANNOTATION_VALUE").text = printable(segment.label)
