"""Loading a model, reading its residuals, editing it, generating with it."""

from heretic.model.core import Model
from heretic.records.plan import AbliterationParameters

__all__ = ["AbliterationParameters", "Model"]
