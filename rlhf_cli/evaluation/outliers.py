"""Responses that a reward model is not used to: outliers in its last hidden layer (Lee et al. 2018)."""

import torch
from jaxtyping import Float
from torch import Tensor

QUANTILE = 0.95
SHRINK = 0.1


def outlying(now: Float[Tensor, "N H"], usual: Float[Tensor, "M H"]) -> float:
    """The share of responses whose Mahalanobis distance to the mean of the usual ones is more than that of nineteen in
    twenty of these: about 0.05 where nothing changed.

    Rows are a reward model's features of a text (`rewards/classifier.py:features`). There may be as many dimensions as
    responses, so the covariance is shrunk by a tenth towards its mean variance.
    """
    now, usual = now.double(), usual.double()
    covariance = torch.cov(usual.T)
    even = torch.eye(usual.shape[1], dtype=torch.float64) * covariance.diagonal().mean()
    factor = torch.linalg.cholesky((1 - SHRINK) * covariance + SHRINK * even + 1e-12 * torch.eye(len(even)))

    def distances(features: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor, (features - usual.mean(0)).T, upper=False).norm(dim=0)

    return float((distances(now) > distances(usual).quantile(QUANTILE)).double().mean())
