"""Loading a model, reading its residuals, editing it, generating with it."""

from heretic.model.library import LibraryModel as Model
from heretic.records.plan import AbliterationParameters

__all__ = ["AbliterationParameters", "Model"]
