"""How much each training example adds to each logit: datamodels by retraining, and projected gradients."""
