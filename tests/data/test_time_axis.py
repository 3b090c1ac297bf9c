"""Calendar steps and bare numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopol_tkg.data.time_axis import TimeAxis, floor_to_step, granularity_seconds
from geopol_tkg.errors import DataError, UsageError

DAY = 86400
NOVEMBER = 1509494400  # 2017-11-01T00:00:00Z, a Wednesday


@pytest.mark.parametrize(
    ("text", "seconds"), [("15min", 900), ("1h", 3600), ("1d", DAY), ("2w", 14 * DAY), (" 1d ", DAY)]
)
def test_granularity(text, seconds):
    assert granularity_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "d", "0h", "1.5h", "-1d", "1day", "1 d"])
def test_bad_granularity_is_refused(text):
    with pytest.raises(UsageError, match="granularity"):
        granularity_seconds(text)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [(900, NOVEMBER + 5 * 900), (DAY, NOVEMBER), (7 * DAY, NOVEMBER - 2 * DAY)],
)
def test_steps_begin_at_midnight_and_weeks_on_monday(step, wanted):
    assert floor_to_step(NOVEMBER + 5 * 900 + 17, step) == wanted


@given(st.integers(-(10**9), 4 * 10**9), st.sampled_from([900, 3600, DAY, 7 * DAY]))
def test_a_step_holds_its_second(seconds, step):
    start = floor_to_step(seconds, step)
    assert start <= seconds < start + step
    assert floor_to_step(start, step) == start


def test_calendar_labels_golden():
    axis = TimeAxis(NOVEMBER, 900, "15min")
    assert axis.label(0) == "2017-11-01T00:00:00Z"
    assert axis.label(-1) == "2017-10-31T23:45:00Z"
    assert axis.index("2017-11-01T00:29:59") == 1
    assert axis.index("2017-11-01T02:00:00+02:00") == 0
    assert axis.index("2017-11-01") == axis.index("20171101") == 0
    assert axis.index("20171101002959") == 1


@given(st.integers(-1000, 100_000), st.sampled_from([("15min", 900), ("1d", DAY), (None, 24)]))
def test_index_is_the_inverse_of_label(index, kind):
    axis = TimeAxis(0 if kind[0] is None else NOVEMBER, kind[1], kind[0])
    assert axis.index(axis.label(index)) == index


@pytest.mark.parametrize("granularity", ["1d", None])
def test_bad_times_are_refused(granularity):
    with pytest.raises(DataError, match="is not an"):
        TimeAxis(0, DAY, granularity).index("yesterday")


def test_offset_between_axes():
    older, newer = TimeAxis(NOVEMBER, DAY, "1d"), TimeAxis(NOVEMBER + 30 * DAY, DAY, "1d")
    assert newer.offset_to(older) == 30
    assert older.offset_to(newer) == -30
    assert newer.label(3) == older.label(3 + newer.offset_to(older))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (TimeAxis(NOVEMBER, 3600, "1h"), "granularity"),
        (TimeAxis(NOVEMBER, DAY, None), "granularity"),
        (TimeAxis(NOVEMBER + 60, DAY, "1d"), "do not align"),
    ],
)
def test_axes_that_do_not_fit_are_refused(other, message):
    with pytest.raises(DataError, match=message):
        TimeAxis(NOVEMBER, DAY, "1d").offset_to(other)
