"""The bytes that a block moves and keeps, counted on fake tensors at full width."""

from block_bytes import BLOCKS, count, table


def test_blocks_move_a_quarter_and_keep_no_more(capsys):
    counts = {name: count(name) for name in BLOCKS}
    with capsys.disabled():
        print("\nbytes per hidden element, eager → fused\n" + table(counts))
    for name, (eager, fused) in counts.items():
        assert fused.forward < eager.forward / 4, name
        assert fused.backward < eager.backward / 3, name
        assert fused.saved <= eager.saved, name
