import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from a3d_det2.layers import FUSION_CONVS, SliceConv, build_fusion_conv

ALL = sorted(FUSION_CONVS)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(1, 5),
    st.integers(4, 9),
    st.sampled_from([1, 3, (3, 5)]),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_slice_conv_is_conv2d_on_every_slice(n, d, size, kernel, stride, padding, dilation, groups, bias):
    size += 2 * 4  # room for the dilated kernel
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    conv2d = nn.Conv2d(4, 6, kernel, **options).double()
    conv = SliceConv(4, 6, kernel, d, **options).double()
    conv.load_state_dict(conv2d.state_dict())
    x = torch.randn(n, 4, d, size, size + 1, dtype=torch.double)
    expected = torch.stack([conv2d(x[:, :, k]) for k in range(d)], dim=2)
    torch.testing.assert_close(conv(x), expected)


def test_same_padding():
    conv2d, conv = nn.Conv2d(4, 6, 3, padding="same"), SliceConv(4, 6, 3, 2, padding="same")
    conv.load_state_dict(conv2d.state_dict())
    x = torch.randn(1, 4, 2, 7, 8)
    torch.testing.assert_close(conv(x)[:, :, 1], conv2d(x[:, :, 1]))


@pytest.mark.parametrize("op", ALL)
def test_every_operator_keeps_the_contract(op):
    groups = 1 if op == "acs" else 2
    conv = build_fusion_conv(op, 4, 6, 3, 5, stride=2, padding=1, dilation=1, groups=groups, bias=True)
    assert conv.weight.shape == ((6, 4 // groups, 3, 3, 3) if op == "i3d" else (6, 4 // groups, 3, 3))
    assert conv.bias.shape == (6,)
    x = torch.randn(2, 4, 5, 9, 8)
    if op != "alignshift":
        assert conv(x).shape == (2, 6, 5, 5, 4)
    assert conv(x, thickness=torch.tensor([1.0, 5.0])).shape == (2, 6, 5, 5, 4)
    assert build_fusion_conv(op, 4, 6, 1, 5, bias=False).bias is None


@pytest.mark.parametrize("op", ALL)
def test_gradients(op):
    conv = build_fusion_conv(op, 8, 3, 3, 3, padding=1).double()
    if op == "p3d":
        nn.init.normal_(conv.fusion_weight)
    x = torch.randn(2, 8, 3, 3, 4, dtype=torch.double, requires_grad=True)
    names, values = zip(*conv.named_parameters(), strict=True)
    thickness = torch.tensor([1.0, 5.0], dtype=torch.double)

    def forward(x, *values):
        return torch.func.functional_call(conv, dict(zip(names, values, strict=True)), (x, thickness))

    assert torch.autograd.gradcheck(forward, (x, *values))
    conv(x, thickness).square().sum().backward()
    assert all(p.grad.any() for p in conv.parameters())


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("kernel", [1, 3])
def test_which_slices_reach_the_middle_one(op, kernel):
    """All with a3d, the neighbours with the others of the paper, none without fusion."""
    conv = build_fusion_conv(op, 16, 6, kernel, 5, padding=kernel // 2)
    if hasattr(conv, "fusion_weight"):  # which may start as no fusion
        nn.init.normal_(conv.fusion_weight)
    x = torch.zeros(1, 16, 5, 5, 5)
    base = conv(x, torch.tensor([3.0]))[:, :, 2]
    reached = []
    for d in range(5):
        changed = x.clone()
        changed[:, :, d] = torch.randn(16, 5, 5)
        if not torch.allclose(conv(changed, torch.tensor([3.0]))[:, :, 2], base):
            reached.append(d)
    neighbours = [2] if kernel == 1 else [1, 2, 3]
    known = {"none": [2], "i3d": neighbours, "acs": neighbours, "a3d": [0, 1, 2, 3, 4]}
    known |= {name: [1, 2, 3] for name in ("p3d", "tsm", "alignshift")}
    assert reached == known.get(op, reached)
    assert 2 in reached


@pytest.mark.parametrize("op", ALL)
def test_autocast_memory_format_and_empty_batch(op):
    conv = build_fusion_conv(op, 16, 6, 3, 3, padding=1)
    thickness = torch.tensor([1.0, 5.0])
    x = torch.randn(2, 16, 3, 8, 8)
    expected = conv(x, thickness)
    channels_last = x.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(conv(channels_last, thickness), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conv(x.transpose(3, 4).contiguous().transpose(3, 4), thickness), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x, thickness)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    half = conv.bfloat16()(x.bfloat16(), thickness)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)
    empty = torch.zeros(0, 16, 3, 8, 8, requires_grad=True)
    y = conv.float()(empty, torch.zeros(0))
    assert y.shape == (0, 6, 3, 8, 8)
    y.sum().backward()


@pytest.mark.parametrize("op", ALL)
def test_compiles_without_a_graph_break(op):
    conv = build_fusion_conv(op, 16, 6, 3, 3, padding=1)
    x, thickness = torch.randn(2, 16, 3, 8, 8), torch.tensor([1.0, 5.0])
    torch._dynamo.reset()
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, thickness), conv(x, thickness))


@pytest.mark.parametrize("op", ALL)
def test_gradient_checkpointing(op):
    conv = build_fusion_conv(op, 16, 6, 3, 3, padding=1)
    x, thickness = torch.randn(2, 16, 3, 8, 8, requires_grad=True), torch.tensor([1.0, 5.0])
    (expected,) = torch.autograd.grad(conv(x, thickness).square().sum(), x)
    y = checkpoint(conv, x, thickness, use_reentrant=False)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize(
    ("thickness", "message"),
    [
        (None, r"Expected the slice thickness in mm, a tensor of shape \(2,\). Got None"),
        (2.0, "as a tensor. Got a float"),
        (torch.ones(3), r"shape \(2,\). Got \(3,\)"),
        (torch.ones(2, 1), r"shape \(2,\). Got \(2, 1\)"),
        (torch.tensor([1.0, 0.0]), r"must be positive, in mm. Got \[1.0, 0.0\]"),
        (torch.tensor([-1.0, 1.0]), "must be positive"),
        (torch.tensor([float("nan"), 1.0]), "must be positive"),
        (torch.tensor([float("inf"), 1.0]), "must be positive"),
    ],
)
@pytest.mark.parametrize(("op", "options"), [("alignshift", {}), ("a3d", {"thickness_aware": True})])
def test_bad_thickness_is_named(op, options, thickness, message):
    with pytest.raises(ValueError, match=message):
        build_fusion_conv(op, 8, 6, 1, 3, **options)(torch.randn(2, 8, 3, 4, 4), thickness)


@pytest.mark.parametrize("reference", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(("op", "options"), [("alignshift", {}), ("a3d", {"thickness_aware": True})])
def test_bad_reference_thickness(op, options, reference):
    with pytest.raises(ValueError, match="reference_thickness must be a positive number of mm"):
        build_fusion_conv(op, 8, 6, 1, 3, reference_thickness=reference, **options)


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("shape", [(2, 4, 9, 9), (2, 3, 5, 9, 9), (2, 4, 3, 9, 9)])
def test_wrong_shape_is_named(op, shape):
    with pytest.raises(ValueError, match=r"C = 4 and D = 5. Got \(2, "):
        build_fusion_conv(op, 4, 6, 3, 5)(torch.randn(shape), torch.ones(2))


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("kernel", [1, 3])
def test_2d_weights_load_unchanged(op, kernel):
    conv2d = nn.Conv2d(4, 6, kernel)
    conv = build_fusion_conv(op, 4, 6, kernel, 5)
    own_alone = set(conv.state_dict()) - set(conv2d.state_dict())
    assert own_alone <= {"fusion_weight"}
    assert bool(own_alone) == hasattr(conv, "fusion_weight")
    missing, unexpected = conv.load_state_dict(conv2d.state_dict(), strict=False)
    assert (set(missing), unexpected) == (own_alone, [])
    assert torch.equal(conv.weight, conv.from_2d(conv2d.weight))
    if op != "i3d":
        assert torch.equal(conv.weight, conv2d.weight)


def test_unknown_operator_lists_the_choices():
    message = "Unknown fusion operator 'c3d'. Choose one of none, i3d, p3d, acs, tsm, alignshift, a3d"
    with pytest.raises(ValueError, match=message):
        build_fusion_conv("c3d", 4, 6, 3, 5)


def test_no_slices_is_an_error():
    with pytest.raises(ValueError, match="num_slices >= 1. Got 0"):
        SliceConv(4, 6, 3, 0)
