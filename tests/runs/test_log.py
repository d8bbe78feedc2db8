"""Progress where no log is kept."""

from latentwire.runs import log


def test_counted_work_tells_a_line_now_and_then_and_leaves_standard_output_alone(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    with log.counted("eval", "answers", 100) as add:
        for _ in range(10):
            add(2)
            now += 2.0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["eval: 18 of 100 answers, 1.0 a second, 1 min 22 s left"]
