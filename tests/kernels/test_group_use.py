"""`group_errors` as a citizen of PyTorch: opcheck, torch.compile, second derivatives, and wrong use."""

import pytest
import torch
from kernel_inputs import DEVICE, make_pairs

from pgdpo_kernels import group_errors, set_backend

pytestmark = pytest.mark.quick


def test_opcheck():
    pred, target, ref = make_pairs((3, 2, 4, 3, 5), (torch.bfloat16, torch.float32, torch.float32))
    mask, groups = torch.rand(2, 120, device=DEVICE), torch.tensor([0, 1, 0], device=DEVICE)
    where, ops = (mask, [0, 0, 1, 1], 2), torch.ops.pgdpo_kernels
    torch.library.opcheck(ops.pair_errors.default, (pred, target, ref, *where, False, 1, groups))
    apart = [list(x) for x in (pred, target, ref)]
    torch.library.opcheck(ops.separate_errors.default, (*apart, *where, False, 1, groups))
    torch.library.opcheck(
        ops.separate_errors.default, (apart[0][:2], apart[1][:2], [], None, [], 0, True, 2, None)
    )
    errors = torch.rand(4, 3, 2, device=DEVICE)
    slopes = errors, errors[:1].clone(), None, errors[1].clone()
    backward = (*slopes, pred, target, ref, *where, None, None, 1, groups)
    torch.library.opcheck(ops.pair_errors_backward.default, backward)
    torch.library.opcheck(ops.separate_errors_backward.default, (*slopes, *apart, *where, 1, groups))


def test_compiles_whole(backend):
    def step(pred, target, ref):
        errors = group_errors(pred, target, ref, 3, segments=2, mask=mask)
        ragged = group_errors(pred, target, ref, (0, 0, 1, 1, 1, 2))
        pairs = ragged.pairs(first, first + 1)
        return errors.excess.square().sum() + errors.drift.sum() + pairs.excess_rejected.sum()

    first, mask = torch.tensor([0, 2], device=DEVICE), torch.rand(2, 4, device=DEVICE)
    pred, target, ref = make_pairs((6, 2, 4, 3, 5))
    outcomes = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        policy = pred.clone().requires_grad_()
        loss = function(policy, target, ref)
        outcomes.append((loss, *torch.autograd.grad(loss, policy)))
    for eager, compiled in zip(*outcomes, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-6, atol=1e-7)


def test_a_second_derivative_is_refused():
    pred, target, ref = make_pairs((3, 2, 4, 3, 5))
    with set_backend("triton"):
        for leaves in ([pred.clone()], [x.clone() for x in pred]):
            leaves = [x.requires_grad_() for x in leaves]
            errors = group_errors(leaves if len(leaves) > 1 else leaves[0], target, ref, 3)
            (grad, *_) = torch.autograd.grad(errors.excess.sum(), leaves, create_graph=True)
            with pytest.raises(RuntimeError, match="no gradient of their gradients"):
                torch.autograd.grad(grad.norm(), leaves)


PRED, TARGET, REF = make_pairs((6, 2, 4, 3, 5))
WRONG = {
    "members": (lambda: group_errors(PRED, TARGET, REF, 4), ValueError, "groups=4 .* the 6 samples"),
    "none": (lambda: group_errors(PRED, TARGET, REF, 0), ValueError, "groups=0"),
    "bool": (lambda: group_errors(PRED, TARGET, REF, True), TypeError, "groups must be K or .*True"),
    "float groups": (lambda: group_errors(PRED, TARGET, REF, torch.ones(6)), TypeError, "got torch.float32"),
    "too few": (lambda: group_errors(PRED, TARGET, REF, [0, 1]), ValueError, r"6 samples, got \(0, 1\)"),
    "negative": (lambda: group_errors(PRED, TARGET, REF, [0] * 5 + [-1]), ValueError, "index of 0 or more"),
    "cross": (lambda: group_errors(PRED, TARGET, REF, 3, cross=True), ValueError, "groups=2, got groups=3"),
    "mask": (
        lambda: group_errors(PRED, TARGET, REF, 3, mask=torch.ones(3, 4, device=DEVICE)),
        ValueError,
        r"one sample of each group, \(2, 2, 4, 3, 5\).*\[2, F\]; got shape \(3, 4\)",
    ),
    "both": (
        lambda: group_errors(PRED, TARGET, REF, ref_errors=torch.ones(6)),
        ValueError,
        "either ref_pred or ref_errors, got both",
    ),
    "cached": (
        lambda: group_errors(PRED, TARGET, ref_errors=torch.ones(3)),
        ValueError,
        r"ref_errors must be \[N, S\] = \(6, 1\).*\(3,\)",
    ),
    "shape": (
        lambda: group_errors(PRED, TARGET[:, :1], REF),
        ValueError,
        "target must have the shape of pred",
    ),
    "ragged shapes": (
        lambda: group_errors([PRED[0], PRED[0, :1]], TARGET[:2]),
        ValueError,
        r"pred\[1\] must have the shape of pred\[0\], \(2, 4, 3, 5\)",
    ),
    "dtypes": (
        lambda: group_errors([PRED[0], PRED[0].half()], TARGET[:2]),
        TypeError,
        r"pred\[1\] is torch.float16, pred\[0\] torch.float32",
    ),
    "lengths": (
        lambda: group_errors(list(PRED), list(TARGET[:5])),
        ValueError,
        "target has 5 samples, pred 6",
    ),
    "no samples": (
        lambda: group_errors([], []),
        TypeError,
        "pred must be .* sequence of N tensors, got none",
    ),
    "scalars": (lambda: group_errors([PRED[0, 0, 0, 0, 0]] * 2, TARGET[:2]), ValueError, "shape"),
    "weights": (lambda: group_errors(PRED, TARGET, weights={"a": 1.0}), ValueError, "weights are of parts"),
    "names": (
        lambda: group_errors({"picture": PRED}, {"sound": TARGET}),
        ValueError,
        r"target must be a mapping of pred's parts, \['picture'\], got \['sound'\]",
    ),
    "weight": (
        lambda: group_errors({"a": PRED}, {"a": TARGET}, weights={"a": float("nan")}),
        ValueError,
        r"weights\['a'\] must be a finite number",
    ),
    "part": (
        lambda: group_errors({"a": PRED}, {"a": TARGET[:, :1]}),
        ValueError,
        r"target\['a'\] must have the shape of pred\['a'\]",
    ),
    "samples of parts": (
        lambda: group_errors({"a": PRED, "b": PRED[:4]}, {"a": TARGET, "b": TARGET[:4]}),
        ValueError,
        r"'b' has errors \(4, 1\), the parts before it \(6, 1\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_named(name, backend):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
