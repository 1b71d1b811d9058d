"""The sizes that follow from a network's layers, against the paper and against torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from unet.errors import ModelError
from unet.model.architecture import Architecture
from unet.network.unet import UNet


def test_the_network_of_2015():
    """Ronneberger 2015, figure 1: 572 -> 388; context 92; stride 16; 31,030,658 parameters."""
    a = Architecture.of()
    assert a.output((572, 572)) == (388, 388)
    assert a.loss == (184, 184)
    assert a.context == (92, 92)
    assert a.stride == (16, 16)
    assert a.halo == ((94, 94), (94, 94))
    assert a.parameters == 31_030_658
    assert a.window((384, 384)) == (572, 572)


def test_the_3d_network_of_2016():
    """Cicek 2016 (https://arxiv.org/abs/1606.06650): three poolings, 132 -> 44 a side."""
    a = Architecture.of(dims=3, depth=3)
    assert a.output((132, 132, 116)) == (44, 44, 28)


def test_388_is_no_stride():
    a = Architecture.of()
    assert 388 % a.stride[0] == 4
    assert [n for n in range(180, 240) if a.nearest_legal(n, 0)[0] == n] == [188, 204, 220, 236]


@st.composite
def architectures(draw):
    dims = draw(st.sampled_from([2, 3]))
    depth = draw(st.integers(1, 3 if dims == 2 else 2))
    axes = st.tuples(*[st.sampled_from([1, 3, 5] if dims == 2 else [1, 3])] * dims)
    pools = st.tuples(*[st.sampled_from([1, 2, 3])] * dims)
    return Architecture.of(
        in_channels=draw(st.integers(1, 2)),
        classes=draw(st.integers(2, 3)),
        width=draw(st.integers(1, 2)),
        depth=depth,
        dims=dims,
        kernel=[draw(axes) for _ in range(depth + 1)],
        pool=[draw(pools) for _ in range(depth)],
    )


def network(a: Architecture) -> UNet:
    return UNet(a)


@settings(max_examples=30, deadline=None)
@given(architectures(), st.integers(1, 2))
def test_sizes_parameters_and_operations_are_those_of_torch(a, steps):
    core = tuple(steps * s for s in a.stride)
    window = a.window(core)
    net = network(a)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        # The counter knows torch's own convolution, not the one of oneDNN.
        output = net.double()(torch.zeros((1, a.in_channels, *window), dtype=torch.float64))
    assert output.shape[1:] == (a.classes, *a.output(window))
    assert sum(p.numel() for p in net.parameters()) == a.parameters
    assert counter.get_total_flops() == a.flop(window)


@settings(max_examples=30, deadline=None)
@given(architectures(), st.data())
def test_an_illegal_size_is_refused_with_the_nearest_legal_ones(a, data):
    size = data.draw(st.integers(1, 80))
    below, above = a.nearest_legal(size, 0)
    assert above > size
    assert below is None or below <= size
    whole = a.window(a.stride)[1:]
    if below == size:
        a.output((size, *whole))
    else:
        with pytest.raises(ModelError, match=str(above)):
            a.output((size, *whole))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kernel": 2}, "odd kernel"),
        ({"dims": 4}, "2 or 3 dimensions"),
        ({"classes": 1}, "classes of at least 2"),
        ({"depth": 0}, "depth of at least 1"),
        ({"kernel": [3, 3, 3]}, "2 numbers"),
        ({"pool": [[2, 2]]}, "4 rows"),
        *(({"dims": wrong}, "2 or 3 dimensions") for wrong in (2.0, "2", None)),
        *(
            ({name: wrong}, f"{name} of at least .* got")
            for name in ("in_channels", "classes", "width", "depth")
            for wrong in (4.0, "4", None, [4])
        ),
        *(
            ({name: wrong}, f"Expected {name} as one whole number")
            for name in ("kernel", "pool")
            for wrong in (3.0, "33", None, [3.0, 3.0], [None, 3], [["3", "3"]] * 4)
        ),
    ],
)
def test_numbers_that_define_no_network_are_refused(wrong, message):
    with pytest.raises(ModelError, match=message):
        Architecture.of(**wrong)
