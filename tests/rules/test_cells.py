import torch

from milseg.data.bags import UNKNOWN
from milseg.rules.cells import flat_log_probs, flat_scores, log_not
from tests.rules.cases import random_case


def test_an_unknown_class_is_0_without_a_gradient():
    scores, tags, _ = random_case()
    tags[1, 2] = UNKNOWN
    scores.requires_grad_()
    for flat in (flat_scores(scores, tags), flat_log_probs(scores, tags)):
        assert (flat[1, 2] == 0).all()
        (gradient,) = torch.autograd.grad(flat.sum(), scores)
        assert (gradient[1, 2] == 0).all()


def test_what_is_not_the_only_known_class_has_a_floor():
    known = torch.tensor([[True, False]])
    log_p = torch.tensor([[[0.0], [0.0]]])
    assert float(log_not(log_p, known)[0, 0, 0]) == -1e4
