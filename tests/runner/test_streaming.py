"""Text from bytes: whatever the cuts, the text is the same and nothing of a stop string is shown."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from moe_gguf.runner.streaming import TextStream, overlap

TEXT = st.text(st.sampled_from("ab\n é😀"), max_size=30)


def pushed(data: bytes, cuts: list[int], stops: list[str]) -> tuple[list[str], str | None]:
    """Push bytes cut at some places; return all that came out, and the stop string."""
    stream = TextStream(stops)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    shown = [stream.push(data[start:stop]) for start, stop in itertools.pairwise(places)]
    return [*shown, stream.flush()], stream.stopped


@given(TEXT, st.lists(st.integers(0, 90)))
def test_characters_are_never_cut(text: str, cuts: list[int]) -> None:
    shown, stopped = pushed(text.encode(), cuts, [])
    assert "".join(shown) == text and stopped is None
    assert not any("�" in part for part in shown)


@given(TEXT, st.lists(st.integers(0, 90)), st.text("ab\n", min_size=1, max_size=4))
def test_nothing_of_a_stop_string_is_shown(text: str, cuts: list[int], stop: str) -> None:
    shown, stopped = pushed(text.encode(), cuts, [stop])
    assert "".join(shown) == text.partition(stop)[0]
    assert stopped == (stop if stop in text else None)


@given(TEXT, st.lists(st.integers(0, 90)), st.lists(st.text("ab ", max_size=3), max_size=4))
def test_several_stop_strings(text: str, cuts: list[int], stops: list[str]) -> None:
    shown, stopped = pushed(text.encode(), cuts, stops)
    answer = "".join(shown)
    assert text.startswith(answer)
    assert not any(stop in answer for stop in stops if stop)
    if stopped is None:
        assert answer == text
    else:
        assert text[len(answer) :].startswith(stopped)


@given(st.binary(max_size=20), st.lists(st.integers(0, 20)))
def test_broken_bytes_are_replaced_whatever_the_cuts(data: bytes, cuts: list[int]) -> None:
    assert "".join(pushed(data, cuts, [])[0]) == data.decode("utf-8", "replace")


@given(st.text("ab"), st.text("ab", min_size=1))
def test_overlap(text: str, stop: str) -> None:
    lengths = [n for n in range(1, len(stop)) if text.endswith(stop[:n])]
    assert overlap(text, stop) == max(lengths, default=0)
