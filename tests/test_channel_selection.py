"""Which channels are read, against reading all of them and selecting afterwards."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unet.planning.channel_selection import ChannelSelection


def channels_of(selection: ChannelSelection) -> list[int]:
    """The channels that arrive: all samples of each index of axis c that is read."""
    indices = [c for start, stop in selection.reads for c in range(start, stop)]
    return [c * selection.samples + sample for c in indices for sample in range(selection.samples)]


def test_one_channel_of_many_is_read_alone():
    selection = ChannelSelection.of((3,))
    assert (selection.reads, selection.positions) == (((3, 4),), (0,))
    assert selection.is_all_in_order


def test_the_samples_of_a_pixel_are_read_together():
    """Green of a file with 2 channels of red, green and blue each: all three samples are read."""
    selection = ChannelSelection.of((1,), samples=3)
    assert (selection.reads, selection.positions) == (((0, 1),), (1,))
    assert selection.channels_read == 3
    assert not selection.is_all_in_order


def test_the_example_of_the_module():
    selection = ChannelSelection.of((4, 0), samples=3)
    assert channels_of(selection) == [0, 1, 2, 3, 4, 5]
    assert selection.positions == (4, 0)


def test_channels_with_a_gap_are_read_apart_unless_one_chunk_holds_them():
    assert ChannelSelection.of((0, 2)).reads == ((0, 1), (2, 3))
    assert ChannelSelection.of((0, 2), chunk=3).reads == ((0, 3),)


def test_all_channels_in_another_order_are_put_in_order():
    selection = ChannelSelection.of((2, 1, 0))
    assert (selection.reads, selection.positions) == (((0, 3),), (2, 1, 0))
    assert not selection.is_all_in_order


@given(st.lists(st.integers(0, 23), min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 5))
def test_positions_lead_to_the_selected_channels(channels, samples, chunk):
    selection = ChannelSelection.of(tuple(channels), samples, chunk)
    read = channels_of(selection)
    assert [read[position] for position in selection.positions] == channels
    assert selection.channels_read == len(read) == len(set(read))
    assert selection.is_all_in_order == (read == channels)
