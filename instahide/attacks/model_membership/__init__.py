"""Membership in a trained model: was this image among those the model learnt from?

    run = train_shadow_models(candidates, num_shadows=32, law=EncoderConfig(num_mixed=4), public=pool)
    result = model_membership(run.view(), run.truth())

or, with numbers made elsewhere, ``model_membership(*read_scores_file("scores.npz"))``.
"""

from .attack import model_membership
from .scores_file import read_scores_file
from .shadows import ShadowRun, train_shadow_models
from .view import ModelView

__all__ = ["ModelView", "ShadowRun", "model_membership", "read_scores_file", "train_shadow_models"]
