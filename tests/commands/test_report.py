import pytest

from tests.report.conftest import finished_run  # noqa: F401 - a fixture


def test_a_report_is_one_file_and_a_run_stays_as_it_was(run, finished_run, tmp_path):  # noqa: F811
    before = sorted(finished_run.rglob("*"))
    out = tmp_path / "page.html"
    ran = run("report", finished_run, "--out", out)
    assert (ran.status, ran.out) == (0, [str(out)])
    assert sorted(finished_run.rglob("*")) == before
    assert run("report", finished_run).out == [str(finished_run / "report.html")]
    assert (finished_run / "report.html").read_text() == out.read_text()
    (finished_run / "report.html").unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no run: run.json is missing"),
        ("{", "run.json is damaged"),
        ("[1]", "run.json is damaged: it names no experiment"),
        ('{"experiment": 3}', "run.json is damaged: it names no experiment"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(run, tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    ran = run("report", tmp_path)
    assert ran.status == 1 and len(ran.err) == 1 and message in ran.err[0]
    assert not (tmp_path / "report.html").exists()


def test_a_place_that_cannot_be_written_is_one_line(run, finished_run, tmp_path):  # noqa: F811
    for out in (tmp_path, tmp_path / "no" / "page.html"):
        ran = run("report", finished_run, "--out", out)
        assert ran.status == 1 and len(ran.err) == 1
        assert f"--out: wanted a file in a folder that exists, got {out}" in ran.err[0]
