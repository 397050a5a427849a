"""Two reports: a verdict only beyond noise."""

import json

import pytest

from benchmarks.compare import Times, main, verdict


@pytest.mark.parametrize(
    "before,after,said",
    [
        ((1.0, 0.95, 1.05), (0.8, 0.75, 0.85), "faster"),
        ((1.0, 0.95, 1.05), (1.2, 1.15, 1.25), "slower"),
        ((1.0, 0.7, 1.3), (0.8, 0.75, 0.85), "same"),
        ((1.0, 0.999, 1.001), (0.98, 0.979, 0.981), "same"),
    ],
)
def test_verdicts(before, after, said):
    assert verdict(Times(*before), Times(*after)) == said


def report(path, **variants):
    rows = [{"operation": "op", "shape": "s", "dtype": "float32", "variants": variants}]
    path.write_text(json.dumps({"rows": rows, "ceilings": {"products": {"float32": 1e11}}}))
    return str(path)


def figures(median):
    return {"median_s": median, "low_s": 0.99 * median, "high_s": 1.01 * median}


def test_reports(tmp_path, capsys):
    a = report(tmp_path / "a.json", cpu=figures(1.0), folded=figures(4.0), reference=figures(9.0))
    b = report(tmp_path / "b.json", cpu=figures(0.5), folded=figures(4.0))
    assert main([a, b]) == 0
    printed = capsys.readouterr().out
    assert "2.00x as fast" in printed and "FASTER" in printed and "1.41x" in printed and "1 faster, 1 same" in printed
    assert main([b, a]) == 1 and "SLOWER" in capsys.readouterr().out


def test_a_row_that_fails_now_is_broken(tmp_path, capsys):
    a = report(tmp_path / "a.json", cpu=figures(1.0))
    b = report(tmp_path / "b.json", cpu={"failure": "wrong: relative error"})
    assert main([a, b]) == 1 and "BROKEN" in capsys.readouterr().out
    assert main([b, a]) == 0 and "MENDED" in capsys.readouterr().out
