"""From a chosen trial to files: merged weights or an adapter, documents, the Hub, and back."""

from heretic.export.documents.card import get_readme_intro, model_card
from heretic.export.hub import check_upload, upload
from heretic.export.reproduce import ReproductionResult, reproduce
from heretic.export.request import (
    ExportOptions,
    ExportRequest,
    FullPrecision,
    HeldOut,
    LongReplies,
    Repacked,
    Strategy,
)
from heretic.export.saving import check_export, check_place, save
from heretic.export.staging import keep, temporary, upload_place
from heretic.export.verify import verify

__all__ = [
    "ExportOptions",
    "ExportRequest",
    "FullPrecision",
    "HeldOut",
    "LongReplies",
    "Repacked",
    "ReproductionResult",
    "Strategy",
    "check_export",
    "check_place",
    "check_upload",
    "get_readme_intro",
    "keep",
    "model_card",
    "reproduce",
    "save",
    "temporary",
    "upload",
    "upload_place",
    "verify",
]
