"""Every file of real draws, read as it was downloaded: each trap of its format, and agreement with the reference.

The real files are no part of the project; without them these tests are skipped, and the rows written out below, in
each format's own form, still check the readers.
"""

import csv
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from helios.draws import MOST_BYTES, DrawError, drawn_columns, load_draws, parse_draws, read_draws, write_draws
from helios.formats import FORMATS, Text, choose_format
from helios.game import POWERBALL

SHARED = Path(__file__).resolve().parents[2] / "shared/data/powerball"
TODAY = date(2026, 8, 6)
WHITES, DRAWN = POWERBALL.white_columns, drawn_columns()

# file, format, origin, rows, missing draws, rows that tell the order drawn, rows with unsorted whites
FILES = [
    ("draws.csv", "columns", "", 3838, 0, 0, 0),
    ("ny_open_data.csv", "New York Open Data", "New York Open Data", 1972, 6, 0, 1),
    ("ny_api_rows.json", "New York Open Data, JSON", "New York Open Data", 1972, 6, 0, 0),
    ("texas_lottery.csv", "Texas Lottery", "Texas Lottery", 1777, 0, 1777, 1765),
    ("powerball_com_winnums.txt", "powerball.com", "powerball.com", 1871, 0, 1871, 1855),
    ("kaggle_cc0_1992_2026.csv", "Kaggle compilation", "", 3813, 21, 2001, 1985),
    ("double_play.csv", "columns", "", 24, 0, 0, 0),
]


def shared(name):
    if not SHARED.is_dir():
        pytest.skip(f"real draws are not part of the project and {SHARED} is not there")
    return SHARED / name


@pytest.fixture(scope="module")
def reference():
    return read_draws(shared("draws.csv"), today=TODAY)[0]


@pytest.mark.parametrize("name, form, origin, rows, missing, ordered, reordered", FILES)
def test_every_file_is_read_whole(name, form, origin, rows, missing, ordered, reordered):
    table, report = read_draws(shared(name), strict=True, today=TODAY)
    assert (report.format, report.origin, report.rows, len(table)) == (form, origin, rows, rows)
    assert (len(report.missing), report.ordered, report.reordered) == (missing, ordered, reordered)
    assert [report.set_aside, report.duplicates, report.contradictions, report.future, report.off_calendar] == [[]] * 5
    assert (set(DRAWN) <= set(table.columns)) == bool(ordered)
    assert table.draw_date.is_monotonic_increasing and (np.diff(table[WHITES]) > 0).all()


@pytest.mark.parametrize("name", [name for name, *_ in FILES if name not in ("draws.csv", "double_play.csv")])
def test_every_file_agrees_with_the_reference_on_every_common_date(name, reference):
    table, _ = read_draws(shared(name), today=TODAY)
    both = table.merge(reference, on="draw_date", suffixes=("", "_reference"))
    assert len(both) == len(table)
    for column in [*WHITES, "powerball"]:
        assert (both[column] == both[f"{column}_reference"]).all(), column
    given = both[both.multiplier.notna() & both.multiplier_reference.notna()]
    assert len(given) > 1000 and (given.multiplier == given.multiplier_reference).all()


def test_the_order_drawn_is_kept_as_the_file_has_it():
    table, _ = read_draws(shared("texas_lottery.csv"), today=TODAY)
    with shared("texas_lottery.csv").open() as file:
        for row, line in zip(table.itertuples(), csv.reader(file), strict=True):
            assert [getattr(row, c) for c in DRAWN] == [int(cell) for cell in line[4:9]]
            assert [getattr(row, c) for c in WHITES] == sorted(int(cell) for cell in line[4:9])


def test_two_sources_recorded_the_same_order():
    texas, _ = read_draws(shared("texas_lottery.csv"), today=TODAY)
    powerball, _ = read_draws(shared("powerball_com_winnums.txt"), today=TODAY)
    both = texas.merge(powerball, on="draw_date")
    assert len(both) == 592
    assert (both[[f"{c}_x" for c in DRAWN]].to_numpy() == both[[f"{c}_y" for c in DRAWN]].to_numpy()).all()


def test_the_kaggle_file_has_the_order_drawn_for_some_years_and_says_so_nowhere(reference):
    table, report = read_draws(shared("kaggle_cc0_1992_2026.csv"), today=TODAY)
    ordered = table[table.drawn_1.notna()]
    assert [day.date() for day in ordered.draw_date.iloc[[0, -1]]] == [date(1997, 11, 1), date(2016, 12, 31)]
    for name in ("texas_lottery.csv", "powerball_com_winnums.txt"):
        both = ordered.merge(read_draws(shared(name), today=TODAY)[0], on="draw_date")
        assert len(both) > 700
        assert (both[[f"{c}_x" for c in DRAWN]].to_numpy() == both[[f"{c}_y" for c in DRAWN]].to_numpy()).all()


def test_texas_has_no_multiplier_column_while_none_was_drawn():
    lines = shared("texas_lottery.csv").read_text().splitlines()
    assert {len(line.split(",")) for line in lines} == {10, 11}
    table, _ = read_draws(shared("texas_lottery.csv"), today=TODAY)
    without = table[table.multiplier.isna()].draw_date
    assert (without.min().date(), without.max().date(), len(without)) == (date(2012, 1, 18), date(2014, 1, 18), 210)


def test_powerball_com_ends_lines_with_carriage_returns_and_writes_two_digit_years():
    data = shared("powerball_com_winnums.txt").read_bytes()
    assert b"\r" in data and b"\n" not in data
    table, _ = read_draws(shared("powerball_com_winnums.txt"), today=TODAY)
    assert [day.date() for day in table.draw_date.iloc[[0, -1]]] == [date(1997, 11, 1), date(2015, 10, 3)]
    assert table.era.iloc[0] == "5/45+1/45", "its oldest row is the last of the first era"


def test_the_json_of_new_york_says_the_same_as_its_csv():
    one, _ = read_draws(shared("ny_api_rows.json"), today=TODAY)
    other, _ = read_draws(shared("ny_open_data.csv"), today=TODAY)
    assert_frame_equal(one, other)


def test_double_play_in_the_new_york_file_is_not_read(reference):
    with shared("ny_open_data.csv").open() as file:
        extra = [row for row in csv.DictReader(file) if row["double_play_winning_numbers"].strip()]
    double, _ = read_draws(shared("double_play.csv"), today=TODAY)
    assert len(extra) == len(double) == 24
    ny, _ = read_draws(shared("ny_open_data.csv"), today=TODAY)
    both = ny.merge(double, on="draw_date")
    assert len(both) == 24
    same = (both[[f"{c}_x" for c in WHITES]].to_numpy() == both[[f"{c}_y" for c in WHITES]].to_numpy()).all(axis=1)
    assert not same.any()


def test_the_kaggle_file_lacks_seven_weeks():
    _, report = read_draws(shared("kaggle_cc0_1992_2026.csv"), today=TODAY)
    assert (report.missing[0], report.missing[-1]) == (date(2025, 5, 7), date(2025, 6, 23))


@pytest.mark.parametrize("name", [name for name, *_ in FILES])
def test_the_name_of_a_file_decides_nothing(name, tmp_path):
    (tmp_path / "x.json").write_bytes(shared(name).read_bytes())
    assert_frame_equal(read_draws(tmp_path / "x.json", today=TODAY)[0], read_draws(SHARED / name, today=TODAY)[0])


@pytest.mark.parametrize("name", ["texas_lottery.csv", "powerball_com_winnums.txt"])
def test_the_order_survives_writing_and_reading(name, tmp_path):
    table, _ = read_draws(shared(name), today=TODAY)
    write_draws(table, tmp_path / "own.csv")
    again, report = read_draws(tmp_path / "own.csv", strict=True, today=TODAY)
    assert report.ordered == len(table)
    assert_frame_equal(again, table)


# The same two draws in every format, so that the readers are tested without the real files too

TWO = {
    "columns": "draw_date,w1,w2,w3,w4,w5,powerball,multiplier\n2026-08-03,8,30,41,48,54,4,2\n2026-08-05,14,20,59,60,61,25,3\n",
    "New York Open Data": "Draw Date,Winning Numbers,Multiplier\n08/05/2026,14 20 59 60 61 25,3\n08/03/2026,08 30 41 48 54 04,2\n",
    "New York Open Data, JSON": '[{"draw_date": "2026-08-03T00:00:00.000", "winning_numbers": "08 30 41 48 54 04", "multiplier": "2"},'
                                '\n{"draw_date": "2026-08-05T00:00:00.000", "winning_numbers": "14 20 59 60 61 25", "multiplier": "3"}]',
    "Texas Lottery": "Powerball,8,3,2026,41,8,30,54,48,4,2\nPowerball,8,5,2026,60,14,61,20,59,25,3\n",
    "powerball.com": "Date\tWB1\tWB2\tWB3\tWB4\tWB5\tPB\tPP\r8/5/26\t60\t14\t61\t20\t59\t25\t3\r8/3/26\t41\t8\t30\t54\t48\t4\t2\r",
    "Kaggle compilation": "date,num1,num2,num3,num4,num5,powerball,powerplay\n2026-08-03,8,30,41,48,54,4,2\n2026-08-05,14,20,59,60,61,25,3\n",
}


@pytest.mark.parametrize("form", FORMATS)
def test_two_draws_in_every_format(form):
    table, report = parse_draws(TWO[form].encode(), "two", strict=True, today=TODAY)
    assert report.format == form
    expected, _ = parse_draws(TWO["columns"].encode(), "two", today=TODAY)
    assert_frame_equal(table[expected.columns], expected)
    if form in ("Texas Lottery", "powerball.com"):
        assert table[DRAWN].to_numpy().tolist() == [[41, 8, 30, 54, 48], [60, 14, 61, 20, 59]]


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_of_one_format_only(form):
    taking = [name for name, reads in FORMATS.items() if _takes(reads, TWO[form])]
    assert taking == [form]


def _takes(reads, text):
    return reads(Text(text), 5) is not None


def test_a_new_format_is_one_function_and_one_entry(monkeypatch):
    from helios.formats import Draw, Parsed, day_in, draws_in, whole

    def semicolons(text, picked=5):
        if not text.lines or text.lines[0][1].count(";") != picked + 1:
            return None
        return Parsed(draws_in(text.lines, lambda c: Draw(day_in(c[0], "%d.%m.%Y", "5.8.2026"), tuple(
            whole(ball, "white") for ball in c[1:-1]), whole(c[-1], "powerball")), ";"))

    monkeypatch.setitem(FORMATS, "semicolons", semicolons)
    table, report = parse_draws(b"5.8.2026;14;20;59;60;61;25\n", "mine", strict=True, today=TODAY)
    assert (report.format, len(table), table.powerball[0]) == ("semicolons", 1, 25)


@pytest.mark.parametrize("form, bad, reason", [
    ("Texas Lottery", "Lotto Texas,8,1,2026,1,2,3,4,5,6,2", "a line of 'Lotto Texas', not of Powerball"),
    ("Texas Lottery", "Powerball,13,1,2026,1,2,3,4,5,6,2", "'13/1/2026' is not a date"),
    ("Texas Lottery", "Powerball,8,1,2026,1,2,3,4,5", "fewer columns"),
    ("Texas Lottery", "Powerball,8,1,2026,1,2,3,4,5,6,2,9", "12 cells where at most 11 belong"),
    ("powerball.com", "8/1/26\t1\t2\t3\t4\t5\tx\t2", "powerball 'x' is not a number"),
    ("powerball.com", "8/1/2026\t1\t2\t3\t4\t5\t6\t2", "is not a date like 10/3/15"),
    ("Kaggle compilation", "2026-08-01,1,2,3,4,5,27,2", "powerball 27 is outside 1 to 26"),
])
def test_a_bad_row_is_set_aside_and_the_rest_is_kept(form, bad, reason):
    text = TWO[form].rstrip("\r\n") + "\n" + bad + "\n"
    table, report = parse_draws(text.encode(), "x", today=TODAY)
    [row] = report.set_aside
    assert len(table) == 2 and reason in row.reason and row.value == bad.replace("\t", " ")
    assert row.line == len(Text(text).lines)


@pytest.mark.parametrize("entry, reason", [
    ('{"draw_date": "2026-08-01T20:00:00.000", "winning_numbers": "1 2 3 4 5 6"}', "is not a date like"),
    ('{"draw_date": "2026-08-01T00:00:00.000", "winning_numbers": "1 2 3 4 5"}', "holds 5 numbers where 6 belong"),
    ('{"draw_date": "2026-08-01T00:00:00.000"}', "winning_numbers is missing"), ("7", "is missing"), ("null", "is missing"),
    ('{"draw_date": "2026-08-01", "winning_numbers": "1 2 3 4 5 6", "multiplier": [2]}', "is not a number"),
])
def test_a_bad_entry_of_json_is_set_aside(entry, reason):
    text = TWO["New York Open Data, JSON"].rstrip("]") + "," + entry + "]"
    table, report = parse_draws(text.encode(), "x", today=TODAY)
    [row] = report.set_aside
    assert len(table) == 2 and reason in row.reason and row.line == 3


@pytest.mark.parametrize("text", ['[{"draw_date": "2026-08-', "[" * 100_000, "[1, 2", '[{"draw_date": }]'])
def test_json_that_breaks_off_is_one_line(text):
    with pytest.raises(DrawError, match="begins like JSON and breaks"):
        parse_draws(text.encode(), "x", strict=True, today=TODAY)


@pytest.mark.parametrize("text", ["[]", "[1, 2]", '{"a": 1}', '[{"name": "Ada"}]'])
def test_json_of_something_else_is_of_no_known_format(text):
    assert choose_format(Text(text)) is None


# Order

def test_a_sorted_file_in_a_format_of_drawn_order_keeps_no_order():
    rng = np.random.default_rng(1)
    days = list(POWERBALL.draw_dates(date(2025, 1, 1), date(2026, 8, 1)))[:200]
    drawn = [rng.permutation(69)[:5] + 1 for _ in days]
    def text(n_sorted):
        return "".join(f"Powerball,{d.month},{d.day},{d.year},{','.join(map(str, sorted(w) if i < n_sorted else w))},6,2\n"
                       for i, (d, w) in enumerate(zip(days, drawn, strict=True)))
    table, report = parse_draws(text(40).encode(), "x", today=TODAY)
    assert (report.order_refused, report.ordered) == (200, 0) and not set(DRAWN) & set(table.columns)
    assert any("stand sorted" in line for line in report.lines())
    table, report = parse_draws(text(0).encode(), "x", today=TODAY)
    assert report.ordered == 200 and table[DRAWN].notna().all().all()


@pytest.mark.parametrize("order, reason", [
    ("61,14,20,59,", "has 4 of 5 balls"), ("61,14,20,59,58", "has other balls than"), ("61,14,20,59,x", "'x' is not a number")])
def test_an_order_that_does_not_fit_its_whites_is_set_aside(order, reason):
    text = f"draw_date,w1,w2,w3,w4,w5,powerball,{','.join(DRAWN)}\n2026-08-05,14,20,59,60,61,25,{order}\n"
    [row] = parse_draws(text.encode(), "x", today=TODAY)[1].set_aside
    assert reason in row.reason


def test_an_order_may_be_known_for_some_draws_only(tmp_path):
    text = f"draw_date,w1,w2,w3,w4,w5,powerball,{','.join(DRAWN)}\n2026-08-03,8,30,41,48,54,4,,,,,\n2026-08-05,14,20,59,60,61,25,61,14,20,59,60\n"
    table, report = parse_draws(text.encode(), "x", strict=True, today=TODAY)
    assert report.ordered == 1 and pd.isna(table.drawn_1[0]) and table.drawn_1[1] == 61
    write_draws(table, tmp_path / "own.csv")
    assert_frame_equal(read_draws(tmp_path / "own.csv", today=TODAY)[0], table)


# Files that are too much

def test_a_file_of_200_mb_ends_in_one_line(tmp_path):
    with (tmp_path / "big.csv").open("wb") as file:
        file.write(TWO["columns"].encode())
        file.seek(200 * 2**20)
        file.write(b"x")
    filler = tmp_path / "big.csv"
    with filler.open("r+b") as file:          # no NUL in the part that is looked at, so only the size is wrong
        file.write(b"2026-08-05,14,20,59,60,61,25,3\n" * (MOST_BYTES // 31 + 1))
    with pytest.raises(DrawError, match="larger than 64 MB") as raised:
        load_draws(filler)
    assert "\n" not in str(raised.value) and "name another file" in str(raised.value)


def test_a_binary_file_ends_in_one_line(tmp_path):
    (tmp_path / "x.csv").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(DrawError, match="binary or UTF-16") as raised:
        load_draws(tmp_path / "x.csv")
    assert "\n" not in str(raised.value)


def test_a_report_lists_a_thousand_lines_and_counts_the_rest():
    text = "draw_date,w1,w2,w3,w4,w5,powerball\n" + "2026-08-05,1,2,3,4,5,99\n" * 1500
    table, report = parse_draws(text.encode(), "x", today=TODAY)
    assert (len(table), len(report.set_aside), report.more_set_aside, report.rows) == (0, 1000, 500, 1500)
    assert report.lines()[1].startswith("1500 set aside: line 2:") and report.lines()[1].endswith("and 1497 more")


def test_lines_that_contradict_are_listed_and_those_that_repeat_are_not():
    text = TWO["columns"] + "2026-08-05,14,20,59,60,61,25,3\n2026-08-05,14,20,59,60,62,25,3\n"
    _, report = parse_draws(text.encode(), "x", today=TODAY)
    assert [row.line for row in report.contradictions] == [5] and len(report.duplicates) == 2
    assert report.contradicted == [date(2026, 8, 5)]


def test_each_contradicted_date_is_listed_once_and_none_is_left_out():
    days = [date(2026, 8, 5) - timedelta(days=i) for i in range(1200)]
    text = "draw_date,w1,w2,w3,w4,w5,powerball\n" + "".join(f"{day},1,2,3,4,5,{p}\n" for p in (6, 7, 8) for day in days)
    table, report = parse_draws(text.encode(), "x", today=TODAY)
    assert len(report.contradictions) == 1000 and report.contradicted == days and set(table.powerball) == {6}
