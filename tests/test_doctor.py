import pytest

from splatdistill import doctor


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_every_missing_thing_comes_with_advice():
    assert all(finding.ok or finding.advice for finding in doctor.examine())


def test_what_the_default_run_needs_is_required():
    findings = by_name(doctor.examine())
    assert all(
        findings[name].required
        for name in ("torch", "gsplat", "diffusers", "transformers", "teacher weights")
    )
    assert not findings["native extension"].required and not findings["CUDA"].required


def test_status_says_whether_the_default_run_can_work(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Finding("a", True, "", required=True)]))
    assert doctor.main([]) == 0
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Finding("a", False, "gone", "get it", True)]))
    assert doctor.main([]) == 1
    assert "get it" in capsys.readouterr().out


def test_an_option_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--foo"])
    assert stop.value.code == 2 and "--foo" in capsys.readouterr().err


def test_an_incomplete_teacher_is_found(tmp_path, monkeypatch):
    assert not doctor._teacher(tmp_path).ok
    for part in doctor.TEACHER_PARTS:
        (tmp_path / part).mkdir()
    for part in ("transformer", "vae", "text_encoder"):
        (tmp_path / part / "weights.safetensors").write_bytes(b"x")
    assert doctor._teacher(tmp_path).ok
    (tmp_path / "transformer" / "weights.safetensors").write_bytes(b"")
    assert not doctor._teacher(tmp_path).ok


def test_a_missing_package_is_reported_not_raised():
    assert not doctor._package("surely-not-installed").ok


def test_a_tool_that_does_not_run_is_reported(tmp_path):
    broken = tmp_path / "compiler"
    broken.write_bytes(b"\x00")
    broken.chmod(0o755)
    assert not doctor._tool("compiler", [str(broken)], "use").ok
    assert not doctor._tool("compiler", [str(tmp_path / "absent")], "use").ok
